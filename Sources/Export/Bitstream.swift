// Every packed format is the same stream: codes of b bits one after the other, least significant bit
// first, cut into 32-bit little-endian words. 32 codes fill b words exactly, and with 3 bits a code
// may straddle two words. What differs between formats is where the words go, hence the stride.

/// The words that `count` codes of `bits` bits take.
public func wordCount(codes count: Int, bits: Int) -> Int {
  (count * bits + 31) / 32
}

/// Packs codes of `bits` bits, of which each keeps only its low `bits` bits.
///
/// Word k goes to `words[start + k · stride]`; the rest of the last word is zero.
public func pack(
  _ codes: Span<UInt8>, bits: Int, into words: inout MutableSpan<UInt32>, start: Int = 0, stride: Int = 1
) {
  let mask: UInt64 = (1 << UInt64(bits)) - 1
  var pending: UInt64 = 0
  var pendingBits = 0
  var position = start
  var first = 0
  if bits <= 4 {
    // Eight codes at a time: neighbours are pushed together in pairs, then pairs, then fours.
    let bytes = unsafe codes.bytes
    let (pairs, fours) = ((1 << UInt64(2 * bits)) - 1 as UInt64, (1 << UInt64(4 * bits)) - 1 as UInt64)
    let (inBytes, inPairs) = (mask &* 0x0001_0001_0001_0001, pairs &* 0x0000_0001_0000_0001)
    let (one, two, four) = (UInt64(8 - bits), UInt64(16 - 2 * bits), UInt64(32 - 4 * bits))
    while first + 8 <= codes.count {
      var eight = UInt64(
        littleEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: first, as: UInt64.self))
      eight = (eight & inBytes) | ((eight & (inBytes &<< 8)) &>> one)
      eight = (eight & inPairs) | ((eight & (inPairs &<< 16)) &>> two)
      eight = (eight & fours) | ((eight & (fours &<< 32)) &>> four)
      pending |= eight &<< UInt64(pendingBits)
      pendingBits += 8 * bits
      if pendingBits >= 32 {
        words[position] = UInt32(truncatingIfNeeded: pending).littleEndian
        position += stride
        pending &>>= 32
        pendingBits -= 32
      }
      first += 8
    }
  }
  for index in first..<codes.count {
    // Masked before it is shifted: a code that is too large must not reach its neighbour.
    pending |= (UInt64(codes[index]) & mask) &<< UInt64(pendingBits)
    pendingBits += bits
    if pendingBits >= 32 {
      words[position] = UInt32(truncatingIfNeeded: pending).littleEndian
      position += stride
      pending &>>= 32
      pendingBits -= 32
    }
  }
  if pendingBits > 0 { words[position] = UInt32(truncatingIfNeeded: pending).littleEndian }
}

/// Undoes ``pack(_:bits:into:start:stride:)``: fills `codes[outputStart ..< outputStart + count]` from
/// the words at `start`, `start + stride`, …
public func unpack(
  _ words: Span<UInt32>, bits: Int, start: Int = 0, stride: Int = 1, count: Int,
  into codes: inout MutableSpan<UInt8>, at outputStart: Int = 0
) {
  let mask: UInt64 = (1 << UInt64(bits)) - 1
  var pending: UInt64 = 0
  var pendingBits = 0
  var position = start
  for index in outputStart..<(outputStart + count) {
    if pendingBits < bits {
      pending |= UInt64(UInt32(littleEndian: words[position])) &<< UInt64(pendingBits)
      position += stride
      pendingBits += 32
    }
    codes[index] = UInt8(truncatingIfNeeded: pending & mask)
    pending &>>= UInt64(bits)
    pendingBits -= bits
  }
}
