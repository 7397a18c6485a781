import SystemIO
import Tensors

/// The header of a GGUF file, checked against the file that it describes.
///
/// A file is `GGUF`, a version, counts, keys with their values, descriptions of tensors, and behind all that, aligned, the
/// tensors' data. Whoever holds a header may rely on every place in it.
/// - SeeAlso: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
public struct GGUFHeader: Sendable {
  public enum Value: Sendable, Equatable {
    case integer(Int)
    case number(Double)
    case flag(Bool)
    case text(String)
    /// Of elements of a type, which stand in the file.
    case array(type: UInt32, count: Int, bytes: Range<Int>)
  }

  public struct Key: Sendable {
    public let name: String
    public let value: Value
    /// The key with its value, in the file.
    public let bytes: Range<Int>
  }

  public struct Tensor: Sendable {
    public let name: String
    public let type: GGUFTensorType
    /// The slowest extent first: the reverse of the file's order.
    public let shape: [Int]
    /// The path of the file that it is in, and its bytes there.
    public let file: String
    public let bytes: Range<Int>
  }

  /// The path of the file, or of the first of several.
  public let file: String
  public let keys: [Key]
  public let tensors: [Tensor]

  public subscript(_ key: String) -> Value? { keys.first { $0.name == key }?.value }

  static let magic: [UInt8] = Array("GGUF".utf8)
  /// What is written.
  static let version: UInt32 = 3
  /// Of flags, among the types of values.
  static let flagType: UInt32 = 7
  static let alignmentKey = "general.alignment"
  static let standardAlignment = 32
  static let mostDimensions = 4

  static func padded(_ byteCount: Int, to alignment: Int) -> Int {
    (byteCount + alignment - 1) / alignment * alignment
  }

  /// - Throws: ``GGUFError``
  public init(of file: MappedFile) throws {
    self = try file.withBytes(0..<file.byteCount) { bytes in
      try GGUFHeader(reading: bytes, file: file.path, byteCount: file.byteCount)
    }
    for tensor in tensors where tensor.bytes.upperBound > file.byteCount {
      throw GGUFError(
        file: file.path,
        reason: .outOfFile(tensor: tensor.name, missingBytes: tensor.bytes.upperBound - file.byteCount))
    }
  }

  /// One header of the parts of a model: the keys of the first one, and the tensors of all.
  /// - Parameter parts: in their order
  /// - Throws: ``GGUFError``
  init(joining parts: [GGUFHeader]) throws(GGUFError) {
    let first = parts[0]
    var names: Set<String> = []
    for (index, part) in parts.enumerated() {
      for (key, expected) in [("split.no", index), ("split.count", parts.count)]
      where part[key] != .integer(expected) {
        throw GGUFError(file: part.file, reason: .badKey(key))
      }
      for tensor in part.tensors where !names.insert(tensor.name).inserted {
        throw GGUFError(file: part.file, reason: .duplicate(tensor.name))
      }
    }
    if case .integer(let count) = first["split.tensors.count"], count != names.count {
      throw GGUFError(file: first.file, reason: .badKey("split.tensors.count"))
    }
    file = first.file
    keys = first.keys
    tensors = parts.flatMap(\.tensors)
  }

  /// How long the file is when it is complete, as its header says.
  /// - Parameters:
  ///   - beginning: as much of the file as was read; a header that goes on behind it is ``GGUFError/Reason/truncated(byte:)``
  ///   - byteCount: of the file as it is
  /// - Throws: ``GGUFError``
  public static func completeByteCount(
    _ beginning: RawSpan, file: String, byteCount: Int
  ) throws(GGUFError) -> Int {
    let header = try GGUFHeader(reading: beginning, file: file, byteCount: byteCount)
    return header.tensors.last?.bytes.upperBound ?? header.keys.last?.bytes.upperBound ?? 0
  }

  /// - Parameter byteCount: of the file, of which `bytes` are the first ones, or all
  private init(reading bytes: RawSpan, file: String, byteCount: Int) throws(GGUFError) {
    func error(_ reason: GGUFError.Reason) -> GGUFError { GGUFError(file: file, reason: reason) }
    var cursor = Cursor(file: file, byteCount: byteCount)
    guard bytes.byteCount >= 4,
      Self.magic.indices.allSatisfy({
        unsafe bytes.unsafeLoad(fromByteOffset: $0, as: UInt8.self) == Self.magic[$0]
      })
    else { throw error(.notGGUF) }
    cursor.place = 4
    let version: UInt32 = try cursor.integer(bytes)
    if version.byteSwapped == 2 || version.byteSwapped == 3 { throw error(.bigEndian) }
    guard version == 2 || version == 3 else { throw error(.version(version)) }
    let tensorCount = try cursor.count(bytes, "the number of tensors", leastBytes: 24)
    let keyCount = try cursor.count(bytes, "the number of keys", leastBytes: 13)
    var keys: [Key] = []
    var names: Set<String> = []
    for _ in 0..<keyCount {
      let start = cursor.place
      let name = try cursor.text(bytes)
      guard !name.isEmpty, names.insert(name).inserted else { throw error(.duplicate(name)) }
      let type: UInt32 = try cursor.integer(bytes)
      let value = try cursor.value(bytes, type, key: name)
      keys.append(Key(name: name, value: value, bytes: start..<cursor.place))
    }
    let alignment = try Self.alignment(keys, file: file)
    var described: [(name: String, shape: [Int], type: GGUFTensorType, offset: UInt64)] = []
    names = []
    for _ in 0..<tensorCount {
      let name = try cursor.text(bytes)
      guard !name.isEmpty, names.insert(name).inserted else { throw error(.duplicate(name)) }
      let dimensions: UInt32 = try cursor.integer(bytes)
      guard (1...UInt32(Self.mostDimensions)).contains(dimensions) else {
        throw error(.shape([Int(dimensions)], tensor: name))
      }
      var shape: [Int] = []
      for _ in 0..<dimensions {
        let extent: UInt64 = try cursor.integer(bytes)
        guard extent > 0, let extent = Int(exactly: extent) else { throw error(.shape([], tensor: name)) }
        shape.insert(extent, at: 0)
      }
      let number: UInt32 = try cursor.integer(bytes)
      guard let type = GGUFTensorType(number: number) else {
        throw error(.tensorType(number, tensor: name))
      }
      described.append((name, shape, type, try cursor.integer(bytes)))
    }
    let dataStart = Self.padded(cursor.place, to: alignment)
    var end = 0
    var tensors: [Tensor] = []
    for (name, shape, type, offset) in described {
      guard let byteCount = Self.byteCount(shape, type) else { throw error(.shape(shape, tensor: name)) }
      guard offset == UInt64(end) else { throw error(.place(found: offset, expected: end, tensor: name)) }
      guard end < 1 << 60 else { throw error(.shape(shape, tensor: name)) }
      tensors.append(
        Tensor(
          name: name, type: type, shape: shape, file: file,
          bytes: dataStart + end..<dataStart + end + byteCount))
      end = Self.padded(end + byteCount, to: alignment)
    }
    self.file = file
    self.keys = keys
    self.tensors = tensors
  }

  private static func alignment(_ keys: [Key], file: String) throws(GGUFError) -> Int {
    guard let value = keys.first(where: { $0.name == alignmentKey })?.value else { return standardAlignment }
    guard case .integer(let alignment) = value, alignment >= 8, alignment <= 1 << 20,
      alignment & (alignment - 1) == 0
    else { throw GGUFError(file: file, reason: .alignment("\(value)")) }
    return alignment
  }

  /// - Returns: nil for a shape that the type cannot have
  static func byteCount(_ shape: [Int], _ type: GGUFTensorType) -> Int? {
    guard let columns = shape.last, var bytes = type.byteCount(ofRow: columns) else { return nil }
    for extent in shape.dropLast() {
      let (product, overflow) = bytes.multipliedReportingOverflow(by: extent)
      // Beyond any file, and far from where sums overflow.
      guard !overflow, product < 1 << 56 else { return nil }
      bytes = product
    }
    return bytes < 1 << 56 ? bytes : nil
  }
}

/// A place in a header that is being read.
private struct Cursor {
  let file: String
  /// Of the file, which may be longer than what is read.
  let byteCount: Int
  var place = 0

  init(file: String, byteCount: Int) {
    self.file = file
    self.byteCount = byteCount
  }

  private func error(_ reason: GGUFError.Reason) -> GGUFError { GGUFError(file: file, reason: reason) }

  mutating func integer<Number: FixedWidthInteger & BitwiseCopyable>(
    _ bytes: RawSpan
  ) throws(GGUFError) -> Number {
    let width = MemoryLayout<Number>.size
    guard width <= bytes.byteCount - place else { throw error(.truncated(byte: bytes.byteCount)) }
    defer { place += width }
    return Number(littleEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: place, as: Number.self))
  }

  /// A number of things, each of which takes so many bytes at least.
  mutating func count(_ bytes: RawSpan, _ what: String, leastBytes: Int) throws(GGUFError) -> Int {
    let start = place
    let count: UInt64 = try integer(bytes)
    guard let count = Int(exactly: count), count <= (byteCount - place) / leastBytes else {
      throw error(.count(what, byte: start))
    }
    return count
  }

  private mutating func skipText(_ bytes: RawSpan) throws(GGUFError) -> Range<Int> {
    let length = try count(bytes, "the length of a text", leastBytes: 1)
    guard length <= bytes.byteCount - place else { throw error(.truncated(byte: bytes.byteCount)) }
    defer { place += length }
    return place..<place + length
  }

  mutating func text(_ bytes: RawSpan) throws(GGUFError) -> String {
    let range = try skipText(bytes)
    let text = unsafe bytes.extracting(range).withUnsafeBytes { unsafe String(validating: $0, as: UTF8.self) }
    guard let text else { throw error(.badText(byte: range.lowerBound)) }
    return text
  }

  /// Bytes of an element of a type of fixed width.
  private static let widths: [UInt32: Int] = [
    0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8,
  ]
  private static let textType: UInt32 = 8
  private static let arrayType: UInt32 = 9

  mutating func value(_ bytes: RawSpan, _ type: UInt32, key: String) throws(GGUFError) -> GGUFHeader.Value {
    switch type {
    case 0: return .integer(Int(try integer(bytes) as UInt8))
    case 1: return .integer(Int(try integer(bytes) as Int8))
    case 2: return .integer(Int(try integer(bytes) as UInt16))
    case 3: return .integer(Int(try integer(bytes) as Int16))
    case 4: return .integer(Int(try integer(bytes) as UInt32))
    case 5: return .integer(Int(try integer(bytes) as Int32))
    case 6: return .number(Double(Float(bitPattern: try integer(bytes))))
    case GGUFHeader.flagType: return .flag((try integer(bytes) as UInt8) != 0)
    case Self.textType: return .text(try text(bytes))
    case 10:
      let value: UInt64 = try integer(bytes)
      return Int(exactly: value).map { .integer($0) } ?? .number(Double(value))
    case 11: return .integer(Int(try integer(bytes) as Int64))
    case 12: return .number(Double(bitPattern: try integer(bytes)))
    case Self.arrayType:
      let element: UInt32 = try integer(bytes)
      guard element == Self.textType || Self.widths[element] != nil else {
        throw error(.valueType(element, key: key))
      }
      let count = try count(bytes, "the length of \(key)", leastBytes: Self.widths[element] ?? 8)
      let start = place
      if let width = Self.widths[element] {
        guard count <= (bytes.byteCount - place) / width else {
          throw error(.truncated(byte: bytes.byteCount))
        }
        place += count * width
      } else {
        for _ in 0..<count { _ = try skipText(bytes) }
      }
      return .array(type: element, count: count, bytes: start..<place)
    default: throw error(.valueType(type, key: key))
    }
  }
}
