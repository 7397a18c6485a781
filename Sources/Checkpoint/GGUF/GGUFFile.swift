import SystemIO
import Tensors

/// A GGUF file, or all parts of one that is split, opened, and what it says of its model.
struct GGUFFile {
  let directory: String
  /// The names of the parts in the directory.
  let parts: [String]
  /// The parts by their paths.
  let mapped: [String: MappedFile]
  let header: GGUFHeader
  let model: GGUFModel

  /// - Parameter path: of the file, or of any of its parts
  /// - Throws: ``GGUFError`` or ``FileError``
  init(_ path: String, symlinks: SymlinkPolicy) throws {
    directory = FileSystem.parent(of: path)
    parts = GGUFFiles.parts(of: FileSystem.name(of: path))
    let paths = parts.map { [directory] in FileSystem.join(directory, $0) }
    let isMissing = try paths.map { try !FileSystem.exists($0) }
    if isMissing.contains(true), isMissing.contains(false) {
      let missing = zip(parts, isMissing).filter(\.1).map(\.0)
      throw GGUFError(file: path, reason: .missingParts(missing))
    }
    let files = try paths.map { try MappedFile(path: $0, symlinks: symlinks) }
    let headers = try files.map { try GGUFHeader(of: $0) }
    if case .integer(let count) = headers[0]["split.count"], count > 1, parts.count == 1 {
      throw GGUFError(file: path, reason: .badKey("split.count"))
    }
    let header = parts.count == 1 ? headers[0] : try GGUFHeader(joining: headers)
    let mapped = Dictionary(uniqueKeysWithValues: files.map { ($0.path, $0) })
    func values(of tensor: GGUFHeader.Tensor) throws(GGUFError) -> [Float] {
      guard tensor.type.plainType == .float32, tensor.shape.count == 1, tensor.shape[0] <= 1 << 16 else {
        throw GGUFError(file: path, reason: .badKey(tensor.name))
      }
      guard let file = mapped[tensor.file] else { preconditionFailure("a file that was not opened") }
      let values = Matrix(rows: 1, columns: tensor.shape[0])
      _ = file.withBytes(tensor.bytes) { bytes in
        values.withMutableSpan { convertWeights(bytes, .float32, into: &$0) }
      }
      return values.elements
    }
    model = try GGUFModel(header, values: values(of:), bytes: files[0].bytes)
    self.header = header
    self.mapped = mapped
  }
}
