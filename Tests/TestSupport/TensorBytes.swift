/// The bytes of a safetensors file, put together by hand: independent of the engine's writer, and free to be
/// wrong.
public func tensorFile(header: String, data: [UInt8]) -> [UInt8] {
  littleEndian([UInt64(header.utf8.count)]) + Array(header.utf8) + data
}

/// The little-endian bytes of whole numbers or bit patterns.
public func littleEndian<Bits: FixedWidthInteger>(_ values: [Bits]) -> [UInt8] {
  values.flatMap { value in
    (0..<Bits.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * Bits($0))) }
  }
}

extension TemporaryDirectory {
  /// Writes `rows` of one length as `input_ids` `[rows, length]`, I64, and gives the file's path.
  public func write(tokens rows: [[Int64]], to name: String = "tokens.safetensors") throws -> String {
    let data = littleEndian(rows.flatMap { $0 })
    let header =
      #"{"input_ids":{"dtype":"I64","shape":[\#(rows.count),\#(rows.first?.count ?? 0)],"#
      + #""data_offsets":[0,\#(data.count)]}}"#
    return try write(tensorFile(header: header, data: data), to: name)
  }

  /// Writes random rows of token ids below `vocabulary`, the same for the same seed.
  public func write(
    randomTokens rows: Int, of length: Int, vocabulary: Int64, seed: UInt64,
    to name: String = "tokens.safetensors"
  ) throws -> String {
    var generator = SeededGenerator(seed: seed)
    let tokens = (0..<rows).map { _ in
      (0..<length).map { _ in Int64.random(in: 0..<vocabulary, using: &generator) }
    }
    return try write(tokens: tokens, to: name)
  }
}
