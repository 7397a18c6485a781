import SystemIO
import Tensors

/// The tensors of a file that `torch.save` wrote: `pytorch_model.bin`, or a shard of it.
///
/// Such a file is a zip archive of a pickle and of the bytes of every storage, or, before torch 1.6, five pickles with the
/// storages after them. The bytes stand in it as they are, so tensors are read where they lie. The pickle is read by an
/// ``Unpickler``, which executes nothing. Tensors may share a storage, and each has to lie in one piece.
public struct TorchFile: Sendable, Equatable {
  /// The tensors in the order of their bytes.
  public let tensors: [TensorInfo]
  /// How long the file has to be.
  public let byteCount: Int

  /// The bytes of a file that is mapped, or read.
  struct Bytes {
    let path: String
    let byteCount: Int
    private let readRange: (Range<Int>) throws -> [UInt8]

    init(path: String, byteCount: Int, read: @escaping (Range<Int>) throws -> [UInt8]) {
      self.path = path
      self.byteCount = byteCount
      readRange = read
    }

    /// - Parameter range: inside the file
    func read(_ range: Range<Int>) throws -> [UInt8] { try readRange(range) }

    func error(_ violation: TorchFileError.Violation) -> TorchFileError {
      TorchFileError(file: path, violation: violation)
    }
  }

  /// - Throws: ``TorchFileError``
  public init(of file: MappedFile) throws {
    try self.init(path: file.path, byteCount: file.byteCount) { range in
      file.withBytes(range) { bytes in unsafe bytes.withUnsafeBytes { unsafe Array($0) } }
    }
  }

  /// - Parameter read: gives bytes of the file, of a range inside it
  /// - Throws: ``TorchFileError``, and what `read` throws
  public init(path: String, byteCount: Int, read: @escaping (Range<Int>) throws -> [UInt8]) throws {
    let file = Bytes(path: path, byteCount: byteCount, read: read)
    let pointer = Array(SafetensorsHeader.pointerBeginning.utf8)
    let beginning = try file.read(0..<min(byteCount, pointer.count))
    if beginning == pointer { throw file.error(.pointer) }
    if beginning.starts(with: ZipRecords.beginning) {
      self = try Self.archive(file)
    } else if beginning.starts(with: LegacyBeginning.bytes) {
      self = try Self.legacy(file)
    } else {
      throw file.error(beginning.count < 4 ? .truncated("it has \(byteCount) bytes") : .unknownFormat)
    }
  }

  private init(
    _ tensors: [(name: String, tensor: Unpickler.Tensor)], in storages: [(Unpickler.Storage, Range<Int>)],
    of file: Bytes, byteCount: Int
  ) throws(TorchFileError) {
    var infos: [TensorInfo] = []
    var names: Set<String> = []
    for (name, tensor) in tensors {
      guard names.insert(name).inserted else { throw file.error(.duplicateTensor(name)) }
      let (storage, bytes) = storages[tensor.storage]
      let width = storage.dtype.byteWidth
      guard let count = storage.dtype.byteCount(ofShape: tensor.shape) else {
        throw file.error(.impossibleTensor(name, reason: "the shape \(tensor.shape) is too large"))
      }
      guard tensor.isContiguous else {
        throw file.error(.notContiguous(tensor: name, strides: tensor.strides))
      }
      guard count <= bytes.count, tensor.offset <= (bytes.count - count) / width else {
        throw file.error(
          .impossibleTensor(name, reason: "it reaches beyond its storage of \(bytes.count) bytes"))
      }
      let start = bytes.lowerBound + tensor.offset * width
      infos.append(
        TensorInfo(
          name: name, dtype: storage.dtype, shape: tensor.shape, file: file.path,
          byteRange: start..<start + count))
    }
    self.tensors = infos.sorted {
      ($0.byteRange.lowerBound, $0.byteRange.upperBound, $0.name)
        < ($1.byteRange.lowerBound, $1.byteRange.upperBound, $1.name)
    }
    self.byteCount = byteCount
  }

  // MARK: Zip archives

  private static func archive(_ file: Bytes) throws -> TorchFile {
    let records = try ZipRecords(of: file).ranges
    let suffix = "/data.pkl"
    guard let name = records.keys.filter({ $0.hasSuffix(suffix) }).min(), let place = records[name] else {
      throw file.error(.damagedArchive("there is no data.pkl, so it is no file of torch.save"))
    }
    guard place.count <= Unpickler.maximumByteCount else {
      throw file.error(.tooLarge("the pickle has \(place.count) bytes"))
    }
    let root = name.dropLast(suffix.count)
    if let order = records["\(root)/byteorder"], order.count < 16,
      try String(decoding: file.read(order), as: UTF8.self) != "little"
    {
      throw file.error(.bigEndian)
    }
    var unpickler = Unpickler(try file.read(place), of: file)
    let tensors = try unpickler.stateDict()
    let storages = try unpickler.storages.map { storage in
      guard let bytes = records["\(root)/data/\(storage.key)"] else {
        throw file.error(.damagedArchive("there is no record for storage '\(storage.key)'"))
      }
      return (storage, bytes)
    }
    return try TorchFile(tensors, in: storages, of: file, byteCount: file.byteCount)
  }

  // MARK: Before torch 1.6

  /// A pickle of a number that says what the file is.
  private enum LegacyBeginning {
    static let bytes: [UInt8] = [
      0x80, 2, 0x8A, 10, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19, 0x2E,
    ]
  }

  private static func legacy(_ file: Bytes) throws -> TorchFile {
    // All pickles stand at the beginning: what comes after them is weights.
    let bytes = try file.read(0..<min(file.byteCount, Unpickler.maximumByteCount))
    var position = LegacyBeginning.bytes.count
    // The version of the format, and sizes of the machine's types.
    for _ in 0..<2 {
      var pickle = Unpickler(bytes, from: position, of: file)
      try pickle.skip()
      position = pickle.position
    }
    var object = Unpickler(bytes, from: position, of: file)
    let tensors = try object.stateDict()
    var list = Unpickler(bytes, from: object.position, of: file)
    let keys = try list.texts()
    position = list.position
    let storages = Dictionary(grouping: object.storages, by: \.key)
    var ranges: [String: Range<Int>] = [:]
    for key in keys {
      guard let storage = storages[key]?.first, storages[key]?.count == 1 else {
        throw file.error(.damagedPickle("storage '\(key)' is not that of a tensor", byte: position))
      }
      guard file.byteCount - position >= 8 else { throw file.error(.truncated("storages are missing")) }
      let count = try file.read(position..<position + 8).integer(UInt64.self, at: 0)
      let (byteCount, overflow) = storage.count.multipliedReportingOverflow(by: storage.dtype.byteWidth)
      guard count == storage.count, !overflow else {
        throw file.error(.impossibleTensor(key, reason: "the storage has \(count) elements"))
      }
      position += 8
      guard byteCount <= file.byteCount - position else {
        throw file.error(
          .truncated("\(byteCount - (file.byteCount - position)) bytes of a storage are missing"))
      }
      ranges[key] = position..<position + byteCount
      position += byteCount
    }
    let places = try object.storages.map { storage in
      guard let range = ranges[storage.key] else {
        throw file.error(.damagedPickle("storage '\(storage.key)' is missing", byte: position))
      }
      return (storage, range)
    }
    return try TorchFile(tensors, in: places, of: file, byteCount: position)
  }
}

extension Unpickler.Tensor {
  /// Whether the elements follow one another in the order of their indices.
  fileprivate var isContiguous: Bool {
    if shape.contains(0) { return true }
    var expected = 1
    for (extent, stride) in zip(shape, strides).reversed() where extent != 1 {
      if stride != expected { return false }
      expected *= extent
    }
    return true
  }
}
