import SystemIO

/// How long a safetensors file is when it is complete, as its header says.
///
/// The file may be growing, shrinking or hostile: it is read and never mapped, and what is kept is one
/// number. Whether the header keeps the rules of the format is for the job to find out.
enum ShardLength: Equatable {
  case complete(byteCount: Int)
  /// The header itself is not there, or none.
  case unknown(reason: String)

  private static let maximumHeaderByteCount = 100_000_000

  init(readingFrom path: String) {
    do {
      let file = try InputFile(path: path, symlinks: .refuse)
      guard let field = try Self.read(8, from: file) else {
        self = .unknown(reason: "the header is not complete")
        return
      }
      let length = field.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      guard length <= Self.maximumHeaderByteCount else {
        self = .unknown(reason: "it does not begin like a safetensors file")
        return
      }
      guard let header = try Self.read(Int(length), from: file) else {
        self = .unknown(reason: "the header is not complete")
        return
      }
      let dataByteCount = Self.dataByteCount(header)
      let sum = dataByteCount.map { (8 + header.count).addingReportingOverflow($0) }
      if let sum, !sum.overflow {
        self = .complete(byteCount: sum.partialValue)
      } else {
        self = .unknown(reason: "its header is not that of a safetensors file")
      }
    } catch {
      self = .unknown(reason: "\(error)")
    }
  }

  /// - Returns: Nil if the file ends before.
  private static func read(_ count: Int, from file: InputFile) throws(FileError) -> [UInt8]? {
    var bytes: [UInt8] = []
    // The header's length is a claim until the bytes are there.
    while bytes.count < count {
      var buffer = [UInt8](repeating: 0, count: min(count - bytes.count, 1 << 20))
      let found = try file.read(into: &buffer)
      if found == 0 { return nil }
      bytes += buffer[..<found]
    }
    return bytes
  }

  /// The largest end among the `data_offsets` of a header.
  /// - Returns: Nil if the text is not one JSON object, or an offset not a number.
  static func dataByteCount(_ header: [UInt8]) -> Int? {
    var scanner = OffsetScanner(bytes: header)
    return scanner.largestEnd()
  }
}

/// Finds offsets in a header without building anything from it: its memory is the text.
private struct OffsetScanner {
  let bytes: [UInt8]
  var position = 0

  init(bytes: [UInt8]) { self.bytes = bytes }

  private static let key = Array("data_offsets".utf8)

  mutating func largestEnd() -> Int? {
    var depth = 0
    var largest = 0
    skipSpace()
    guard next == UInt8(ascii: "{") else { return nil }
    while let byte = next {
      position += 1
      switch byte {
      case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
      case UInt8(ascii: "}"), UInt8(ascii: "]"):
        depth -= 1
        if depth == 0 {
          skipSpace()
          return position == bytes.count ? largest : nil
        }
      case UInt8(ascii: "\""):
        guard let text = restOfString() else { return nil }
        if depth == 2, bytes[text].elementsEqual(Self.key), take(UInt8(ascii: ":")) {
          guard let end = endOfPair() else { return nil }
          largest = max(largest, end)
        }
      default: break
      }
    }
    return nil
  }

  /// Goes behind a string whose opening quote is taken.
  private mutating func restOfString() -> Range<Int>? {
    let start = position
    while let byte = next {
      if byte == UInt8(ascii: "\"") {
        position += 1
        return start..<position - 1
      }
      position += byte == UInt8(ascii: "\\") ? 2 : 1
    }
    return nil
  }

  /// The second number of `[begin, end]`.
  private mutating func endOfPair() -> Int? {
    guard take(UInt8(ascii: "[")), number() != nil, take(UInt8(ascii: ",")), let end = number(),
      take(UInt8(ascii: "]"))
    else { return nil }
    return end
  }

  private mutating func number() -> Int? {
    skipSpace()
    let start = position
    while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
    return Int(String(decoding: bytes[start..<position], as: UTF8.self))
  }

  private mutating func take(_ byte: UInt8) -> Bool {
    skipSpace()
    guard next == byte else { return false }
    position += 1
    return true
  }

  private mutating func skipSpace() {
    while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { position += 1 }
  }

  private var next: UInt8? { position < bytes.count ? bytes[position] : nil }
}
