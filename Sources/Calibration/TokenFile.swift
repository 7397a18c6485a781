import Checkpoint
import SystemIO
import Tensors

extension TokenRows {
  /// Reads `input_ids` `[samples, sequenceLength]`, I32 or I64, from a safetensors file.
  /// - Throws: ``CalibrationError/badTokenFile(source:reason:)``, or what reading the file throws.
  public init(tokenFile path: String) throws {
    let file = try MappedFile(path: path)
    let header = try SafetensorsHeader(of: file)
    guard let tensor = header.tensors.first(where: { $0.name == "input_ids" }) else {
      throw CalibrationError.badTokenFile(source: path, reason: "has no tensor input_ids")
    }
    guard tensor.dtype == .int32 || tensor.dtype == .int64, (1...2).contains(tensor.shape.count) else {
      throw CalibrationError.badTokenFile(
        source: path, reason: "input_ids is \(tensor.dtype.rawValue) with shape \(tensor.shape)")
    }
    let columns = tensor.shape[tensor.shape.count - 1]
    // Rows of nothing take no bytes, so that a file may claim any number of them.
    let rowCount = columns == 0 ? 0 : tensor.shape.count == 2 ? tensor.shape[0] : 1
    let width = tensor.dtype.byteWidth
    let ids = try file.withBytes(tensor.byteRange) { bytes in
      try (0..<rowCount * columns).map { index in
        let id =
          width == 4
          ? Int64(bytes.littleEndianInteger(at: index * width, as: Int32.self))
          : bytes.littleEndianInteger(at: index * width, as: Int64.self)
        guard let token = Int32(exactly: id) else {
          throw CalibrationError.badTokenFile(source: path, reason: "id \(id) at index \(index) is no token")
        }
        return token
      }
    }
    self.init(
      name: path, rows: (0..<rowCount).map { Array(ids[$0 * columns..<($0 + 1) * columns]) })
  }
}

extension RawSpan {
  /// The little-endian integer at a byte offset, which need not be aligned.
  func littleEndianInteger<Integer: FixedWidthInteger & BitwiseCopyable>(
    at offset: Int, as type: Integer.Type
  ) -> Integer {
    Integer(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: type))
  }
}
