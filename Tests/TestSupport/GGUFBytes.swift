/// The header of a GGUF file, put together by hand: independent of the engine's writer, and free to be wrong.
public struct GGUFBytes {
  public var bytes = Array("GGUF".utf8)

  /// Version 3 and the two counts; what they count is to follow.
  public init(tensors: Int, keys: Int) {
    append(UInt32(3))
    append(UInt64(tensors))
    append(UInt64(keys))
  }

  public mutating func append<Number: FixedWidthInteger>(_ number: Number) { bytes += littleEndian([number]) }

  public mutating func append(_ text: String) {
    append(UInt64(text.utf8.count))
    bytes += Array(text.utf8)
  }

  /// Where a tensor's data stand and what they are: `shape` has the rows first, `offset` counts from the data's start.
  public mutating func append(tensor name: String, shape: [Int], type: UInt32, offset: Int) {
    append(name)
    append(UInt32(shape.count))
    for extent in shape.reversed() { append(UInt64(extent)) }
    append(type)
    append(UInt64(offset))
  }
}
