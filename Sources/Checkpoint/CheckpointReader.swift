import SystemIO
import Tensors

/// The weights of a checkpoint, read through memory-mapped files.
///
/// Nothing of the weights is in memory but the rows being converted: their pages are given back after.
public final class CheckpointReader: WeightSource {
  public let directory: String
  /// `config.json`; null for a reader of a single file.
  public let configuration: JSONValue
  /// Every tensor by its name.
  public let tensors: [String: TensorInfo]
  /// The names in the order in which the tensors stand in the files.
  public let tensorNames: [String]
  /// The strings under `__metadata__`, of all files together.
  public let metadata: [String: String]
  /// What else belongs to the checkpoint (configuration, tokenizer, chat templates, licence, …): the regular files in the
  /// directory and below it that hold no weights and are not hidden, by their relative paths.
  public let otherFiles: [String]
  /// What is no part of it: weights in other formats, and links that lead nowhere.
  public let foreignFiles: [String]

  /// Whether the checkpoint's files may be links.
  public let symlinks: SymlinkPolicy
  private let files: [String: MappedFile]
  /// The bytes of all tensors together.
  public let byteCount: Int
  /// The scales of tensors that stand for others.
  private let scales: [String: TensorInfo]
  /// The header of a GGUF file.
  public let gguf: GGUFHeader?
  /// What reads tensors that are computed of those in the files.
  let computing: (any WeightSource)?

  /// Opens all shards of the checkpoint in `directory` and checks their headers.
  /// - Throws: ``CheckpointError``, ``SafetensorsError`` or ``FileError``.
  public convenience init(directory: String, symlinks: SymlinkPolicy = .follow) throws {
    let configurationPath = FileSystem.join(directory, "config.json")
    let isModel = try FileSystem.kind(of: configurationPath) != nil
    if try !isModel && FileSystem.kind(of: FileSystem.join(directory, Self.adapterFileName)) != nil {
      throw CheckpointError.adapter(directory: directory)
    }
    if !isModel, try FileSystem.kind(of: directory) == .directory {
      let inner = try Self.innerCheckpoints(of: directory)
      if !inner.isEmpty { throw CheckpointError.nested(directory: directory, inner: inner) }
    }
    let index = try ShardIndex(directory: directory, symlinks: symlinks)
    guard isModel else {
      throw CheckpointError.missingConfiguration(directory: directory)
    }
    try self.init(
      directory: directory,
      configuration: JSONValue(contentsOf: configurationPath, symlinks: symlinks),
      shards: index.shards, shardOfTensor: index.shardOfTensor,
      files: Self.files(
        in: directory, besides: index.shards + [index.format.indexName], symlinks: symlinks),
      symlinks: symlinks)
  }

  /// The folders of a directory that hold a checkpoint, the first ones.
  private static func innerCheckpoints(of directory: String) throws -> [String] {
    let inner = try FileSystem.names(in: directory).sorted().lazy.filter { name in
      !name.hasPrefix(".")
        && (try? FileSystem.kind(of: "\(directory)/\(name)/config.json")) == .regular
    }
    return Array(inner.prefix(3))
  }

  private static let adapterFileName = "adapter_config.json"

  /// Opens a directory, or a GGUF file.
  /// - Throws: as the others do
  public static func open(_ path: String, symlinks: SymlinkPolicy = .follow) throws -> CheckpointReader {
    if let file = try ggufFile(of: path) {
      return try CheckpointReader(gguf: file, isAlone: file == path, symlinks: symlinks)
    }
    return try CheckpointReader(directory: path, symlinks: symlinks)
  }

  /// The GGUF file that a path names, or that stands in a directory in which no other model does; nil for anything else.
  /// - Throws: ``GGUFError/Reason/severalModels(_:)``, or ``FileError``
  public static func ggufFile(of path: String) throws -> String? {
    if GGUFFiles.isGGUF(path), try FileSystem.kind(of: path) != .directory { return path }
    guard try FileSystem.kind(of: path) == .directory else { return nil }
    let models = GGUFFiles.models(ofDirectory: try FileSystem.names(in: path).filter { !$0.hasPrefix(".") })
    guard models.count <= 1 else { throw GGUFError(file: path, reason: .severalModels(models)) }
    return models.first.map { FileSystem.join(path, $0) }
  }

  /// Whether a path leads to one GGUF file, as ``ggufFile(of:)`` finds it. What stands in the way of an answer is told when
  /// the path is opened.
  public static func isGGUF(_ path: String) -> Bool { ((try? ggufFile(of: path)) ?? nil) != nil }

  /// The files that a model is: all below its directory, hidden ones aside, or all parts of a GGUF file that is named itself.
  /// - Returns: the directory, and names relative to it
  public static func files(
    of path: String, symlinks: SymlinkPolicy
  ) throws -> (directory: String, names: [String]) {
    if try ggufFile(of: path) == path {
      return (FileSystem.parent(of: path), GGUFFiles.parts(of: FileSystem.name(of: path)))
    }
    return (path, try FileSystem.regularFiles(below: path, symlinks: symlinks))
  }

  /// Opens a GGUF file, or all parts of one that is split: what it says of its model stands for config.json, and its
  /// tensors have the names that they have there.
  /// - Parameters:
  ///   - path: of the file, or of any of its parts
  ///   - isAlone: whether what stands beside it is no part of it
  /// - Throws: ``GGUFError`` or ``FileError``.
  public convenience init(
    gguf path: String, isAlone: Bool = true, symlinks: SymlinkPolicy = .follow
  ) throws {
    let file = try GGUFFile(path, symlinks: symlinks)
    let reader = try CheckpointReader(file, isAlone: isAlone, symlinks: symlinks)
    let latents = file.model.splitsLatents ? SplitLatents(reader, layers: file.model.layers) : nil
    var tensors = reader.tensors
    for tensor in latents?.tensors ?? [] { tensors[tensor.name] = tensor }
    self.init(
      reader, configuration: reader.configuration, tensors: tensors, names: reader.tensorNames, by: latents)
  }

  /// A GGUF file with its tensors as they stand in it.
  private init(_ file: GGUFFile, isAlone: Bool, symlinks: SymlinkPolicy) throws {
    directory = file.directory
    configuration = file.model.configuration
    let stored = file.model.tensors(of: file.header)
    var tensors: [String: TensorInfo] = [:]
    for tensor in stored where tensors.updateValue(tensor, forKey: tensor.name) != nil {
      throw GGUFError(file: file.header.file, reason: .duplicate(tensor.name))
    }
    self.tensors = tensors
    tensorNames = stored.map(\.name)
    metadata = [:]
    let others =
      isAlone
      ? (copied: [], foreign: [])
      : try Self.files(in: file.directory, besides: file.parts, symlinks: symlinks)
    otherFiles = others.copied + others.foreign.filter(GGUFFiles.isProjector)
    foreignFiles = others.foreign.filter { !GGUFFiles.isProjector($0) }
    self.symlinks = symlinks
    files = file.mapped
    byteCount = stored.reduce(0) { $0 + $1.byteRange.count }
    scales = [:]
    computing = nil
    gguf = file.header
  }

  /// Opens one safetensors file that stands for itself, such as a set of token ids.
  /// - Throws: ``SafetensorsError`` or ``FileError``.
  public convenience init(file: String, symlinks: SymlinkPolicy = .follow) throws {
    try self.init(
      directory: FileSystem.parent(of: file), configuration: .null,
      shards: [FileSystem.name(of: file)], shardOfTensor: [:], files: ([], []), symlinks: symlinks)
  }

  private init(
    directory: String, configuration: JSONValue, shards: [String], shardOfTensor: [String: String],
    files others: (copied: [String], foreign: [String]), symlinks: SymlinkPolicy
  ) throws {
    var files: [String: MappedFile] = [:]
    var tensors: [String: TensorInfo] = [:]
    var tensorNames: [String] = []
    var metadata: [String: String] = [:]
    var stored: [TensorInfo] = []
    // By the names that tensors have in the files.
    var fileOfTensor: [String: String] = [:]
    for shard in shards {
      let file = try MappedFile(path: FileSystem.join(directory, shard), symlinks: symlinks)
      let contents = try Self.contents(of: file)
      stored += contents.tensors
      metadata.merge(contents.metadata) { first, _ in first }
      files[file.path] = file
    }
    for tensor in stored { fileOfTensor[tensor.name] = tensor.file }
    // What the tensors of one shard mean may show in another.
    let unstacked = try StackedExperts.unstacked(
      TransposedLinears.turned(stored), configuration: configuration)
    for tensor in unstacked {
      if let other = tensors.updateValue(tensor, forKey: tensor.name) {
        throw CheckpointError.duplicateTensor(
          tensor: tensor.name, shards: [other.file, tensor.file])
      }
      tensorNames.append(tensor.name)
    }
    for (tensor, shard) in shardOfTensor.sorted(by: { $0.key < $1.key }) {
      let path = FileSystem.join(directory, shard)
      guard fileOfTensor[tensor] == path else {
        throw CheckpointError.tensorNotInShard(tensor: tensor, shard: path)
      }
    }
    self.directory = directory
    self.symlinks = symlinks
    self.configuration = configuration
    let scaled = try ScaledWeights(configuration: configuration, tensors: tensors)
    let hidden = scaled.hidden.union(unstacked.compactMap(\.coding?.scales))
    scales = tensors.filter { hidden.contains($0.key) }
    self.tensors = tensors.merging(scaled.tensors) { $1 }.filter { !hidden.contains($0.key) }
    self.tensorNames = tensorNames.filter { !hidden.contains($0) }
    byteCount = stored.reduce(0) { $0 + $1.byteRange.count }
    self.metadata = metadata
    otherFiles = others.copied
    foreignFiles = others.foreign
    self.files = files
    computing = nil
    gguf = nil
  }

  /// The same files with other tensors, some of which another source reads.
  init(
    _ reader: CheckpointReader, configuration: JSONValue, tensors: [String: TensorInfo], names: [String],
    by source: (any WeightSource)?
  ) {
    directory = reader.directory
    self.configuration = configuration
    metadata = reader.metadata
    otherFiles = reader.otherFiles
    foreignFiles = reader.foreignFiles
    symlinks = reader.symlinks
    files = reader.files
    byteCount = reader.byteCount
    scales = reader.scales
    computing = source
    gguf = reader.gguf
    self.tensors = tensors
    tensorNames = names
  }

  private static func contents(
    of file: MappedFile
  ) throws -> (tensors: [TensorInfo], metadata: [String: String]) {
    if WeightFormat(ofShard: file.path) == .torch { return (try TorchFile(of: file).tensors, [:]) }
    let header = try SafetensorsHeader(of: file)
    return (header.tensors, header.metadata)
  }

  /// Looks whether the files that were opened, and those that were read whole, are those of `source`.
  /// - Throws: ``SourceChange``
  public func check(_ source: SourceFiles) throws(SourceChange) {
    for (path, file) in files.sorted(by: { $0.key < $1.key }) {
      try source.check(file.stamp, of: FileSystem.name(of: path), in: directory)
    }
    try source.check(in: directory, symlinks: symlinks)
  }

  // MARK: Weights

  public func shape(of tensor: String) -> [Int]? { tensors[tensor]?.shape }

  /// Whether the checkpoint's quantization is one that is read as the weights it stands for.
  public var isScaled: Bool { ScaledWeights.isScaled(configuration: configuration) }

  /// Fills `panel`, `[rows.count, columns]`, with the given rows of a tensor of any float type.
  /// - Throws: ``CheckpointError`` if there is no such tensor, or if it is not made of finite floats.
  public func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
    let info = try self.info(of: tensor)
    guard info.dtype.isSupportedFloat || info.dtype == .float8E8M0 && scales[tensor] != nil else {
      throw CheckpointError.notAFloat(tensor: tensor, info.dtype)
    }
    let (rowCount, columns) = info.matrixDimensions
    precondition(rows.lowerBound >= 0 && rows.upperBound <= rowCount, "rows outside the tensor")
    precondition(panel.rows == rows.count && panel.columns == columns, "the panel does not fit")
    if info.coding == .computed, let computing {
      return try computing.read(tensor, rows: rows, into: panel)
    }
    let bytes = info.bytes(ofRows: rows, columns: columns)
    willNeed(tensor, bytes)
    let isFinite = try withBytes(of: tensor, bytes) { bytes in
      switch info.coding {
      case .float8(let scaling):
        return try convert(bytes, scaling, to: info.dtype, rows: rows, into: panel)
      case .computed: preconditionFailure("another source reads it")
      case .blocks(let type):
        panel.withMutableSpan { type.read(bytes, into: &$0) }
        return panel.firstNonFinite == nil
      case .microscaled(let coding): return try convert(bytes, coding, rows: rows, into: panel)
      case nil:
        if let part = info.scatteredPart {
          return convertScattered(bytes, info.dtype, part, rows: rows, into: panel)
        }
        return panel.withMutableSpan { convertWeights(bytes, info.dtype, into: &$0) }
      }
    }
    release(tensor, bytes)
    if !isFinite, let index = panel.firstNonFinite {
      throw CheckpointError.nonFinite(
        tensor: tensor, file: info.file, index: rows.lowerBound * columns + index,
        value: panel[index / columns, index % columns])
    }
  }

  public func lend(_ tensor: String, rows: Range<Int>, _ body: (DType, RawSpan) -> Void) throws -> Bool {
    let info = try self.info(of: tensor)
    guard [.float32, .float16, .bfloat16].contains(info.dtype), info.coding == nil, info.scatteredPart == nil
    else {
      return false
    }
    let bytes = info.bytes(ofRows: rows, columns: info.matrixDimensions.columns)
    willNeed(tensor, bytes)
    try withBytes(of: tensor, bytes) { body(info.dtype, $0) }
    release(tensor, bytes)
    return true
  }

  /// Converts rows of 8-bit floats.
  /// - Returns: whether every element is finite
  private func convert(
    _ bytes: RawSpan, _ scaling: WeightScaling, to type: DType, rows: Range<Int>, into panel: Matrix
  ) throws -> Bool {
    // A vector of scales, or a single one, counts as one row.
    let info = try self.info(of: scaling.scales)
    let isMatrix = info.shape.count > 1
    let blocks = rows.lowerBound / scaling.rows..<(rows.upperBound + scaling.rows - 1) / scaling.rows
    let factorRows = isMatrix ? blocks : 0..<1
    let factors = Matrix(rows: factorRows.count, columns: info.matrixDimensions.columns)
    try read(scaling.scales, rows: factorRows, into: factors)
    let columns = panel.columns
    let width = scaling.columnCount(columns)
    let first = isMatrix ? blocks.lowerBound : 0
    panel.withMutableSpan { panel in
      factors.withSpan { factors in
        for row in rows {
          let start = (row - rows.lowerBound) * columns
          for column in 0..<columns {
            let bits = Int(unsafe bytes.unsafeLoad(fromByteOffset: start + column, as: UInt8.self))
            let factor = factors[(row / scaling.rows - first) * width + column / scaling.columns]
            panel[start + column] = (float8E4M3Values[bits] * factor).rounded(to: type)
          }
        }
      }
    }
    return panel.firstNonFinite == nil
  }

  /// Converts rows of four-bit floats; `bytes` begins with the first of them.
  /// - Returns: whether every element is finite
  private func convert(
    _ bytes: RawSpan, _ coding: MicroscaledRows, rows: Range<Int>, into panel: Matrix
  ) throws -> Bool {
    guard !rows.isEmpty else { return true }
    let columns = panel.columns
    let (width, blocks) = (columns / 2, columns / MicroscaledRows.blockSize)
    let first = coding.storedRow(rows.lowerBound)
    let scaleStart = (coding.firstScaleRow + first) * blocks
    let scaleEnd = (coding.firstScaleRow + coding.storedRow(rows.upperBound - 1) + 1) * blocks
    return try withBytes(of: coding.scales, scaleStart..<scaleEnd) { scales in
      panel.withMutableSpan { panel in
        for index in 0..<rows.count {
          let stored = index * coding.stride
          for block in 0..<blocks {
            let exponent = Int(
              unsafe scales.unsafeLoad(fromByteOffset: stored * blocks + block, as: UInt8.self))
            // 255 is no number.
            let factor = exponent == 255 ? .nan : Float(sign: .plus, exponent: exponent - 127, significand: 1)
            let column = block * MicroscaledRows.blockSize
            for pair in 0..<MicroscaledRows.blockSize / 2 {
              let bits = Int(
                unsafe bytes.unsafeLoad(
                  fromByteOffset: stored * width + column / 2 + pair, as: UInt8.self))
              let place = index * columns + column + 2 * pair
              panel[place] = float4E2M1Values[bits & 15] * factor
              panel[place + 1] = float4E2M1Values[bits >> 4] * factor
            }
          }
        }
      }
      return panel.firstNonFinite == nil
    }
  }

  // MARK: Bytes

  /// Reads all of a tensor in fp32, a panel at a time, to see that it can be.
  /// - Throws: ``CheckpointError/nonFinite(tensor:file:index:value:)``
  public func checkFinite(_ tensor: TensorInfo) throws {
    guard tensor.dtype.isSupportedFloat, !tensor.byteRange.isEmpty else { return }
    try forEachPanel(of: tensor.name, shape: tensor.shape) { _, _ in }
  }

  /// Lends bytes of a tensor as they are in the file; `range` counts from the tensor's first byte and
  /// the start need not be aligned.
  /// - Throws: ``CheckpointError/unknownTensor(_:)``, and what `body` throws.
  public func withBytes<Result>(
    of tensor: String, _ range: Range<Int>, _ body: (RawSpan) throws -> Result
  ) throws -> Result {
    let (file, bytes) = try location(of: tensor, range)
    return try file.withBytes(bytes, body)
  }

  /// Bytes of a GGUF file's header.
  func ggufBytes(_ range: Range<Int>) -> [UInt8] {
    guard let gguf, let file = files[gguf.file] else { preconditionFailure("no GGUF file") }
    return file.bytes(range)
  }

  /// Starts to read bytes of a tensor from the disk.
  public func willNeed(_ tensor: String, _ range: Range<Int>) {
    guard let (file, bytes) = try? location(of: tensor, range) else { return }
    file.willNeed(bytes)
  }

  public func willNeed(_ tensor: String) {
    guard let info = tensors[tensor] else { return }
    willNeed(tensor, 0..<info.byteRange.count)
  }

  /// Gives the memory of bytes of a tensor back. They can still be read.
  public func release(_ tensor: String, _ range: Range<Int>) {
    guard let (file, bytes) = try? location(of: tensor, range) else { return }
    file.release(bytes)
  }

  public func forget(_ tensor: String) {
    guard let info = tensors[tensor], let (file, bytes) = try? location(of: tensor, 0..<info.byteRange.count)
    else { return }
    file.forget(bytes)
  }

  private func info(of tensor: String) throws(CheckpointError) -> TensorInfo {
    guard let info = tensors[tensor] ?? scales[tensor] else { throw .unknownTensor(tensor) }
    return info
  }

  private func location(
    of tensor: String, _ range: Range<Int>
  ) throws(CheckpointError) -> (MappedFile, Range<Int>) {
    let info = try self.info(of: tensor)
    guard let file = files[info.file] else { throw .unknownTensor(tensor) }
    precondition(
      range.lowerBound >= 0 && range.upperBound <= info.byteRange.count, "bytes outside the tensor")
    let start = info.byteRange.lowerBound
    return (file, start + range.lowerBound..<start + range.upperBound)
  }

  // MARK: Other files

  /// Weights in any format: not copied along, they are large and would not be the quantized ones.
  private static let weightSuffixes = [
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5",
    ".msgpack", ".gguf", ".onnx", ".onnx_data",
  ]

  private static func files(
    in directory: String, besides weights: [String], symlinks: SymlinkPolicy
  ) throws -> (copied: [String], foreign: [String]) {
    var (copied, foreign): ([String], [String]) = ([], [])
    for path in try FileSystem.regularFiles(below: directory, symlinks: symlinks) {
      if weights.contains(path) { continue }
      if !weightSuffixes.contains(where: path.lowercased().hasSuffix) {
        copied.append(path)
      } else {
        foreign.append(path)
      }
    }
    for name in try FileSystem.names(in: directory) where !name.hasPrefix(".") {
      if try FileSystem.kind(of: FileSystem.join(directory, name), symlinks: symlinks) == nil {
        foreign.append(name)
      }
    }
    return (copied, foreign.sorted())
  }
}
