import Synchronization
import SystemIO
import Tensors

/// A tensor that is to be written.
public struct TensorPlan: Sendable, Hashable {
  public let name: String
  public let dtype: DType
  public let shape: [Int]
  public let byteCount: Int

  /// A tensor as it is read.
  public init(copying tensor: TensorInfo) {
    name = tensor.name
    dtype = tensor.dtype
    shape = tensor.shape
    byteCount = tensor.byteCount
  }

  /// A tensor in blocks of a GGUF file; its rows are whole blocks.
  public init(name: String, type: GGUFTensorType, shape: [Int]) {
    guard let byteCount = GGUFHeader.byteCount(shape, type) else {
      preconditionFailure("rows of \(name) are no whole blocks of \(type.name)")
    }
    self.name = name
    dtype = type.dtype
    self.shape = shape
    self.byteCount = byteCount
  }

  public init(name: String, dtype: DType, shape: [Int]) {
    precondition(shape.allSatisfy { $0 >= 0 }, "a tensor has no negative extent")
    guard let byteCount = dtype.byteCount(ofShape: shape) else {
      preconditionFailure("a tensor of more bytes than can be counted")
    }
    self.name = name
    self.dtype = dtype
    self.shape = shape
    self.byteCount = byteCount
  }
}

/// Writes a checkpoint whose tensors come in any order, in parts, from any thread.
///
/// All names and shapes are known beforehand, so headers and places are settled first, the disk space
/// is taken, and every part goes straight to its place: no shard is ever in memory.
public final class CheckpointWriter: Sendable {
  /// Where a tensor's bytes go.
  private struct Place: Sendable {
    let file: OutputFile
    let offset: Int
    let byteCount: Int
  }

  public let directory: String
  /// The names of the shards, in order.
  public let shards: [String]
  private let files: [OutputFile]
  private let places: [String: Place]
  private let index: JSONValue?
  /// The bytes of each tensor that have been written.
  private let written: Mutex<[String: RangeSet<Int>]>
  /// How many bytes of each tensor have been written one here, one there, each once. Held while they are.
  private let scattered = Mutex<[String: Int]>([:])

  /// Creates the files in `directory`, which exists, with their headers and all their space.
  ///
  /// - Parameters:
  ///   - plan: The tensors, each name once; they fill the shards in this order.
  ///   - shardSizeLimit: Bytes of tensors in one shard; a larger tensor gets a shard to itself.
  ///   - metadata: The strings under `__metadata__`; transformers insists on `format`.
  /// - Throws: ``FileError``, with ENOSPC if the tensors do not fit on the disk.
  public init(
    directory: String, plan: [TensorPlan], shardSizeLimit: Int = 5_000_000_000,
    metadata: [String: String] = ["format": "pt"]
  ) throws(FileError) {
    precondition(Set(plan.map(\.name)).count == plan.count, "a tensor is planned twice")
    let layouts = ShardLayout.layouts(of: plan, sizeLimit: shardSizeLimit, metadata: metadata)
    var shards: [String] = []
    var files: [OutputFile] = []
    var places: [String: Place] = [:]
    var weightMap: [String: JSONValue] = [:]
    for (number, layout) in layouts.enumerated() {
      let name =
        layouts.count == 1
        ? WeightFormat.safetensors.singleFileName
        : ShardIndex.seriesName(number: number + 1, count: layouts.count)
      let file = try OutputFile(creating: FileSystem.join(directory, name))
      try file.reserve(layout.fileByteCount)
      try file.write(layout.header, at: 0)
      for (tensor, offset) in layout.tensors {
        places[tensor.name] = Place(file: file, offset: offset, byteCount: tensor.byteCount)
        weightMap[tensor.name] = .string(name)
      }
      shards.append(name)
      files.append(file)
    }
    self.directory = directory
    self.shards = shards
    self.files = files
    self.places = places
    let totalByteCount = plan.reduce(0) { $0 + $1.byteCount }
    index =
      layouts.count == 1
      ? nil
      : ["metadata": ["total_size": .integer(totalByteCount)], "weight_map": .object(weightMap)]
    written = Mutex([:])
  }

  /// Creates one GGUF file, with all its space.
  /// - Parameters:
  ///   - name: the file's, in `directory`
  ///   - plan: the tensors, in their order
  ///   - source: the GGUF file whose keys are kept
  ///   - fileType: llama.cpp's number of the mix of types
  /// - Throws: ``FileError``, with ENOSPC if the tensors do not fit on the disk.
  public init(
    gguf name: String, in directory: String, plan: [TensorPlan], keysOf source: CheckpointReader,
    fileType: UInt32
  ) throws(FileError) {
    guard let keys = source.gguf else { preconditionFailure("the source is no GGUF file") }
    let layout = GGUFLayout(plan, keysOf: keys, bytes: source.ggufBytes, fileType: fileType)
    let file = try OutputFile(creating: FileSystem.join(directory, name))
    try file.reserve(layout.fileByteCount)
    try file.write(layout.header, at: 0)
    self.directory = directory
    shards = [name]
    files = [file]
    places = Dictionary(
      uniqueKeysWithValues: zip(plan, layout.offsets).map {
        ($0.name, Place(file: file, offset: $1, byteCount: $0.byteCount))
      })
    index = nil
    written = Mutex([:])
  }

  /// Writes a part of a planned tensor.
  /// - Parameter offset: Where the part begins, in bytes from the tensor's first.
  /// - Throws: ``FileError``.
  public func write(_ tensor: String, _ bytes: RawSpan, at offset: Int = 0) throws(FileError) {
    guard let place = places[tensor] else { preconditionFailure("\(tensor) is not planned") }
    precondition(
      offset >= 0 && offset <= place.byteCount - bytes.byteCount, "bytes outside \(tensor)")
    try place.file.write(bytes, at: place.offset + offset)
    let range = offset..<offset + bytes.byteCount
    written.withLock { $0[tensor, default: RangeSet()].insert(contentsOf: range) }
  }

  /// Writes a part of a planned tensor.
  public func write(_ tensor: String, _ bytes: [UInt8], at offset: Int = 0) throws(FileError) {
    try write(tensor, unsafe bytes.span.bytes, at: offset)
  }

  /// Writes elements of a planned tensor between which others stand. Each is written once.
  /// - Parameters:
  ///   - bytes: one element behind the other
  ///   - width: bytes of one
  ///   - stride: from one element's place to the next one's, in elements
  ///   - offset: where the first one goes, in bytes from the tensor's first
  /// - Throws: ``FileError``.
  public func scatter(
    _ tensor: String, _ bytes: [UInt8], width: Int, stride: Int, at offset: Int
  ) throws(FileError) {
    guard let place = places[tensor] else { preconditionFailure("\(tensor) is not planned") }
    let count = bytes.count / width
    guard count > 0 else { return }
    let byteCount = ((count - 1) * stride + 1) * width
    precondition(offset >= 0 && offset <= place.byteCount - byteCount, "bytes outside \(tensor)")
    // What stands between is read and written back, so nobody else may write it meanwhile.
    try scattered.withLock { scattered throws(FileError) in
      var merged = try place.file.read(byteCount, at: place.offset + offset)
      for element in 0..<count {
        for byte in 0..<width { merged[element * stride * width + byte] = bytes[element * width + byte] }
      }
      try place.file.write(merged, at: place.offset + offset)
      scattered[tensor, default: 0] += bytes.count
    }
  }

  /// Brings everything to the disk, and writes the index if there are several shards.
  /// - Throws: ``CheckpointError/incomplete(tensor:missingBytes:)`` if a part was never written, or
  ///   ``FileError``.
  public func finish() throws {
    let written = self.written.withLock { $0 }
    let scattered = self.scattered.withLock { $0 }
    for (tensor, place) in places.sorted(by: { $0.key < $1.key }) {
      let count = written[tensor, default: RangeSet()].ranges.reduce(scattered[tensor] ?? 0) { $0 + $1.count }
      if count < place.byteCount {
        throw CheckpointError.incomplete(tensor: tensor, missingBytes: place.byteCount - count)
      }
    }
    for file in files {
      try file.synchronize()
      file.forget()
    }
    if let index {
      try AtomicFile.write(
        index.prettyText, to: FileSystem.join(directory, WeightFormat.safetensors.indexName))
    }
  }
}
