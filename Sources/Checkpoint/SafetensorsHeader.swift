import SystemIO
import Tensors

/// A tensor of a checkpoint: what it is and where its bytes stand.
public struct TensorInfo: Sendable, Hashable {
  public let name: String
  /// Of what it stands for, where it is scaled.
  public let dtype: DType
  /// Extents, the slowest first; empty for a single value. Those of a file make no more bits than an `Int` counts, with zeros
  /// left out, too.
  public let shape: [Int]
  /// The path of the file that holds the bytes.
  public let file: String
  /// Where in that file, in bytes from its beginning. The start need not be aligned.
  public let byteRange: Range<Int>
  /// How it is stored, if it is not in ``dtype``.
  public internal(set) var coding: WeightCoding?
  /// Where it stands in a larger tensor, or in one that is turned.
  public internal(set) var part: TensorPart?

  /// The name of the tensor in the file that it is in, or is a part of.
  public var storedName: String { part?.whole ?? name }

  /// The tensor as a matrix: the first extent makes the rows, and a vector is one row.
  public var matrixDimensions: (rows: Int, columns: Int) {
    let rows = shape.count > 1 ? shape[0] : 1
    return (rows, rows == 0 ? 0 : shape.reduce(1, *) / rows)
  }

  /// Bytes of the tensor in ``dtype``.
  public var byteCount: Int { dtype.byteCount(ofShape: shape) ?? byteRange.count }
}

/// The header of one safetensors file, checked against the file it describes.
///
/// A file is eight bytes with the length n of the header (little-endian), n bytes of JSON, and the
/// tensors' bytes, without gaps. Whoever holds a header may rely on all of that.
/// - SeeAlso: https://github.com/huggingface/safetensors#format
public struct SafetensorsHeader: Sendable, Equatable {
  /// The tensors in the order of their bytes.
  public let tensors: [TensorInfo]
  /// The free-form strings under `__metadata__`.
  public let metadata: [String: String]

  static let lengthFieldByteCount = 8
  /// How a git-lfs pointer begins, which a clone without git-lfs has in place of a large file.
  public static let pointerBeginning = "version https://git-lfs.github.com/spec/"
  static let metadataKey = "__metadata__"
  static let maximumByteCount = 100_000_000
  static let maximumTensorCount = 1_000_000

  /// - Throws: ``SafetensorsError``, one violation for each broken rule of the format.
  public init(of file: MappedFile) throws(SafetensorsError) {
    let checker = HeaderChecker(file: file.path)
    let start = try checker.dataStart(file)
    let members = try checker.members(file, start)
    metadata = try checker.metadata(members[Self.metadataKey])
    let dataByteCount = file.byteCount - start
    try checker.checkThatAllIsThere(members, dataByteCount)
    var tensors: [TensorInfo] = []
    for (name, entry) in members where name != Self.metadataKey {
      tensors.append(try checker.tensor(name, entry, dataStart: start))
    }
    tensors.sort {
      ($0.byteRange.lowerBound, $0.byteRange.upperBound, $0.name)
        < ($1.byteRange.lowerBound, $1.byteRange.upperBound, $1.name)
    }
    try checker.checkThatTensorsFill(start..<file.byteCount, tensors)
    self.tensors = tensors
  }
}

/// The rules of the format, one function for each part of a file.
private struct HeaderChecker {
  let file: String

  private func error(_ violation: SafetensorsError.Violation) -> SafetensorsError {
    SafetensorsError(file: file, violation: violation)
  }

  /// Where the tensors' bytes begin.
  func dataStart(_ file: MappedFile) throws(SafetensorsError) -> Int {
    let fieldLength = SafetensorsHeader.lengthFieldByteCount
    guard file.byteCount >= fieldLength else {
      throw error(.noHeaderLength(fileByteCount: file.byteCount))
    }
    if begins(file, with: SafetensorsHeader.pointerBeginning) { throw error(.pointer) }
    let length = file.withBytes(0..<fieldLength) { bytes in
      (0..<fieldLength).reduce(UInt64(0)) {
        $0 | UInt64(unsafe bytes.unsafeLoad(fromByteOffset: $1, as: UInt8.self)) << (8 * UInt64($1))
      }
    }
    guard length <= SafetensorsHeader.maximumByteCount else {
      throw error(.headerTooLong(byteCount: length))
    }
    let available = file.byteCount - fieldLength
    guard Int(length) <= available else {
      throw error(.headerTruncated(byteCount: Int(length), available: available))
    }
    return fieldLength + Int(length)
  }

  private func begins(_ file: MappedFile, with text: String) -> Bool {
    let expected = Array(text.utf8)
    guard file.byteCount >= expected.count else { return false }
    return file.withBytes(0..<expected.count) { bytes in
      unsafe bytes.withUnsafeBytes { unsafe $0.elementsEqual(expected) }
    }
  }

  func members(_ file: MappedFile, _ dataStart: Int) throws(SafetensorsError) -> [String: JSONValue] {
    let text = file.withBytes(SafetensorsHeader.lengthFieldByteCount..<dataStart) { bytes in
      unsafe bytes.withUnsafeBytes { unsafe Array($0) }
    }
    let json: JSONValue
    do {
      json = try JSONValue(parsing: text, maximumDepth: 3)
    } catch {
      if case .duplicateKey(let name) = error.reason {
        throw self.error(
          .duplicateTensor(name, byte: SafetensorsHeader.lengthFieldByteCount + error.byte))
      }
      throw self.error(.headerNotJSON(error))
    }
    guard let members = json.object else { throw error(.headerNotObject) }
    guard members.count <= SafetensorsHeader.maximumTensorCount + 1 else {
      throw error(.tooManyTensors(members.count))
    }
    return members
  }

  func metadata(_ json: JSONValue?) throws(SafetensorsError) -> [String: String] {
    guard let json else { return [:] }
    guard let members = json.object else { throw error(.metadataNotStrings) }
    let strings = members.compactMapValues(\.string)
    guard strings.count == members.count else { throw error(.metadataNotStrings) }
    return strings
  }

  /// What a file lacks is up to the tensor that ends last, whichever of them is looked at first.
  func checkThatAllIsThere(
    _ members: [String: JSONValue], _ dataByteCount: Int
  ) throws(SafetensorsError) {
    let ends = members.compactMap { name, entry -> (end: Int, name: String)? in
      guard name != SafetensorsHeader.metadataKey,
        case .integer(let end)? = entry["data_offsets"]?.array?.last
      else { return nil }
      return (end, name)
    }
    if let last = ends.max(by: <), last.end > dataByteCount {
      throw error(.outOfRange(end: last.end, available: dataByteCount, tensor: last.name))
    }
  }

  func tensor(
    _ name: String, _ entry: JSONValue, dataStart: Int
  ) throws(SafetensorsError) -> TensorInfo {
    guard let typeName = entry["dtype"]?.string else {
      throw error(.invalidField("dtype", tensor: name))
    }
    let dtype = DType(rawValue: typeName)
    let shape = try integers("shape", entry, tensor: name)
    let offsets = try integers("data_offsets", entry, tensor: name)
    guard offsets.count == 2 else { throw error(.invalidField("data_offsets", tensor: name)) }
    guard offsets[0] <= offsets[1] else {
      throw error(.offsetsReversed(begin: offsets[0], end: offsets[1], tensor: name))
    }
    // Of a type that is not known, the file alone says how large a tensor is, though no element is less than a bit.
    guard let byteCount = shape.byteCount(elementBits: dtype.bitWidth ?? 1) else {
      throw error(.shapeOverflows(shape, tensor: name))
    }
    let stored = offsets[1] - offsets[0]
    guard stored == byteCount || dtype.bitWidth == nil && stored > byteCount else {
      throw error(.wrongByteCount(stored, expected: byteCount, tensor: name))
    }
    return TensorInfo(
      name: name, dtype: dtype, shape: shape, file: file,
      byteRange: dataStart + offsets[0]..<dataStart + offsets[1])
  }

  /// A list of numbers, none negative.
  private func integers(
    _ field: String, _ entry: JSONValue, tensor: String
  ) throws(SafetensorsError) -> [Int] {
    guard let elements = entry[field]?.array else { throw error(.invalidField(field, tensor: tensor)) }
    var integers: [Int] = []
    for element in elements {
      guard case .integer(let value) = element, value >= 0 else {
        throw error(.invalidField(field, tensor: tensor))
      }
      integers.append(value)
    }
    return integers
  }

  /// - Parameter tensors: Sorted by where they begin.
  func checkThatTensorsFill(_ data: Range<Int>, _ tensors: [TensorInfo]) throws(SafetensorsError) {
    var end = data.lowerBound
    var last: TensorInfo?
    for tensor in tensors {
      let start = tensor.byteRange.lowerBound
      if start < end, let last {
        throw error(.overlap(tensor.name, last.name, byte: start))
      }
      if start > end {
        throw error(.hole(end..<start, before: tensor.name))
      }
      end = tensor.byteRange.upperBound
      last = tensor
    }
    if end < data.upperBound { throw error(.trailingBytes(end..<data.upperBound)) }
  }
}

extension DType {
  /// Bytes of a tensor of this type, or nil if the type is not known, or the extents make more than can be counted.
  func byteCount(ofShape shape: [Int]) -> Int? { bitWidth.flatMap { shape.byteCount(elementBits: $0) } }
}

extension [Int] {
  /// Bytes of a tensor of these extents, or nil if those that are not zero make more bits than an `Int` counts. A zero makes
  /// the tensor empty, and yet somebody may multiply the others: of a shape that passes here, any of them can be, in any order.
  fileprivate func byteCount(elementBits: Int) -> Int? {
    var bits = elementBits
    for extent in self where extent != 0 {
      let (product, overflow) = bits.multipliedReportingOverflow(by: extent)
      if overflow { return nil }
      bits = product
    }
    return contains(0) ? 0 : bits / 8 + (bits % 8 == 0 ? 0 : 1)
  }
}
