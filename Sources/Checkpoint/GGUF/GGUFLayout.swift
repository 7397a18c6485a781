import Tensors

/// What stands where in a GGUF file that is to be written.
struct GGUFLayout {
  /// The file up to the first tensor.
  let header: [UInt8]
  /// The first byte of each tensor in the file.
  let offsets: [Int]
  let fileByteCount: Int

  /// Keys that a file has of its own.
  private static func isOwn(_ key: String) -> Bool {
    key.hasPrefix("split.") || key == GGUFHeader.alignmentKey || key == versionKey || key == fileTypeKey
  }
  private static let versionKey = "general.quantization_version"
  private static let fileTypeKey = "general.file_type"
  private static let quantizationVersion: UInt32 = 2
  private static let numberType: UInt32 = 4

  /// - Parameters:
  ///   - plan: the tensors, in their order
  ///   - source: the file whose keys are kept
  ///   - bytes: gives bytes of that file
  ///   - fileType: llama.cpp's number of the mix
  init(
    _ plan: [TensorPlan], keysOf source: GGUFHeader, bytes: (Range<Int>) -> [UInt8], fileType: UInt32
  ) {
    let kept = source.keys.filter { !Self.isOwn($0.name) }
    var header = GGUFHeader.magic
    header.append(littleEndian: GGUFHeader.version)
    header.append(littleEndian: UInt64(plan.count))
    header.append(littleEndian: UInt64(kept.count + 2))
    for key in kept { header += bytes(key.bytes) }
    for (name, value) in [(Self.versionKey, Self.quantizationVersion), (Self.fileTypeKey, fileType)] {
      header.append(text: name)
      header.append(littleEndian: Self.numberType)
      header.append(littleEndian: value)
    }
    var ends: [Int] = []
    var end = 0
    for tensor in plan {
      guard let type = GGUFTensorType(tensor.dtype) else {
        preconditionFailure("\(tensor.name) is of no type that GGUF has")
      }
      header.append(text: tensor.name)
      header.append(littleEndian: UInt32(tensor.shape.count))
      for extent in tensor.shape.reversed() { header.append(littleEndian: UInt64(extent)) }
      header.append(littleEndian: type.number)
      header.append(littleEndian: UInt64(end))
      ends.append(end)
      end = GGUFHeader.padded(end + tensor.byteCount, to: GGUFHeader.standardAlignment)
    }
    let start = GGUFHeader.padded(header.count, to: GGUFHeader.standardAlignment)
    header += [UInt8](repeating: 0, count: start - header.count)
    self.header = header
    offsets = ends.map { start + $0 }
    fileByteCount = start + end
  }
}

extension [UInt8] {
  mutating func append<Number: FixedWidthInteger>(littleEndian number: Number) {
    for byte in 0..<MemoryLayout<Number>.size { append(UInt8(truncatingIfNeeded: number >> (8 * byte))) }
  }

  mutating func append(text: String) {
    append(littleEndian: UInt64(text.utf8.count))
    self += Array(text.utf8)
  }
}
