/// A 64-bit checksum against damage, not against malice.
///
/// Four lanes take one little-endian 64-bit word each in turn; a step xors the word in, multiplies by an
/// odd constant and rotates, and the lanes are folded in the same way. Every step is a bijection of the
/// lane for a given word and of the word for a given lane, so a change within one aligned word is always
/// found, and any other with a probability of 1 − 2⁻⁶⁴.
@unsafe func blockHash(_ bytes: UnsafeRawBufferPointer, seed: UInt64 = 0) -> UInt64 {
  let multiplier: UInt64 = 0x9E37_79B9_7F4A_7C15  // 2⁶⁴ / golden ratio, odd
  func mixed(_ lane: UInt64, _ word: UInt64) -> UInt64 {
    let product = (lane ^ word) &* multiplier
    return product << 29 | product >> 35
  }

  var lane0 = seed &+ 0x243F_6A88_85A3_08D3  // digits of π, so that no lane begins at zero
  var lane1 = seed &+ 0x1319_8A2E_0370_7344
  var lane2 = seed &+ 0xA409_3822_299F_31D0
  var lane3 = seed &+ 0x082E_FA98_EC4E_6C89
  let count = bytes.count
  var offset = 0
  func word(_ index: Int) -> UInt64 {
    UInt64(littleEndian: unsafe bytes.loadUnaligned(fromByteOffset: offset + 8 * index, as: UInt64.self))
  }
  while offset + 32 <= count {
    lane0 = mixed(lane0, word(0))
    lane1 = mixed(lane1, word(1))
    lane2 = mixed(lane2, word(2))
    lane3 = mixed(lane3, word(3))
    offset += 32
  }
  var hash = mixed(seed, UInt64(count))
  for lane in [lane0, lane1, lane2, lane3] { hash = mixed(hash, lane) }
  while offset < count {
    var word: UInt64 = 0
    for byte in offset..<min(offset + 8, count) {
      word |= UInt64(unsafe bytes[byte]) << UInt64(8 * (byte - offset))
    }
    hash = mixed(hash, word)
    offset += 8
  }
  return hash ^ hash >> 32
}

/// The checksum of `bytes`; parts of a longer stretch are chained by giving each the sum before it as `seed`.
public func checksum(of bytes: RawSpan, seed: UInt64 = 0) -> UInt64 {
  unsafe bytes.withUnsafeBytes { unsafe blockHash($0, seed: seed) }
}
