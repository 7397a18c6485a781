/// The bytes of a safetensors file, put together by hand: independent of the writer, and free to be
/// wrong.
func safetensors(_ header: String, data: [UInt8] = [], headerLength: UInt64? = nil) -> [UInt8] {
  let length = headerLength ?? UInt64(header.utf8.count)
  return (0..<8).map { UInt8(truncatingIfNeeded: length >> (8 * UInt64($0))) } + Array(header.utf8) + data
}

/// One entry of a header.
func entry(
  _ name: String, _ dtype: String = "F32", shape: [Int], offsets: (Int, Int)
) -> String {
  #""\#(name)":{"dtype":"\#(dtype)","shape":\#(shape),"data_offsets":[\#(offsets.0),\#(offsets.1)]}"#
}

/// The little-endian bytes of 16- or 32-bit patterns.
func littleEndian<Bits: FixedWidthInteger>(_ patterns: [Bits]) -> [UInt8] {
  patterns.flatMap { pattern in
    (0..<Bits.bitWidth / 8).map { UInt8(truncatingIfNeeded: pattern >> (8 * Bits($0))) }
  }
}
