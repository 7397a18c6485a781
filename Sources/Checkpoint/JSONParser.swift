/// Why a text is not JSON, and at which byte.
public struct JSONError: Error, Equatable, Sendable, CustomStringConvertible {
  public enum Reason: Equatable, Sendable {
    case unexpectedEnd
    case unexpectedByte(UInt8)
    case nestedTooDeeply(limit: Int)
    case duplicateKey(String)
    case tooManyValues(limit: Int)
    case invalidString
    case invalidNumber
  }

  public let reason: Reason
  public let byte: Int

  public var description: String {
    let fact =
      switch reason {
      case .unexpectedEnd: "the JSON text ends too early"
      case .unexpectedByte(let value): "unexpected \(Self.shown(value)) in the JSON text"
      case .nestedTooDeeply(let limit): "the JSON text is nested more than \(limit) levels deep"
      case .tooManyValues(let limit): "the JSON text holds more than \(limit) values"
      case .duplicateKey(let key): "the JSON key '\(key)' stands twice in one object"
      case .invalidString: "a JSON string with an invalid escape or invalid UTF-8"
      case .invalidNumber: "a malformed number, or one out of range, in the JSON text"
      }
    return "\(fact), at byte \(byte)"
  }

  private static func shown(_ value: UInt8) -> String {
    (0x21...0x7E).contains(value)
      ? "'\(Character(UnicodeScalar(value)))'" : "byte 0x" + String(value, radix: 16)
  }
}

extension JSONValue {
  /// Reads one document, as RFC 8259 has it, with white space around it.
  ///
  /// Stricter than most readers in one point: a key that stands twice in an object is an error, as the
  /// second tensor of a name would silently hide the first. More lenient in two, for what Python writes and reads: a
  /// byte order mark may stand before it, and `NaN`, `Infinity` and `-Infinity` are numbers.
  /// - Parameter maximumValues: a text of a few bytes a value becomes a tree of some fifty, which is for whoever reads
  ///   what strangers wrote to bound
  public init(parsing bytes: [UInt8], maximumDepth: Int = 64, maximumValues: Int = .max) throws(JSONError) {
    var parser = JSONParser(bytes: bytes, maximumDepth: maximumDepth, maximumValues: maximumValues)
    self = try parser.document()
  }
}

/// A recursive-descent parser; recursion is as deep as the text, so depth has a limit.
private struct JSONParser {
  let bytes: [UInt8]
  let maximumDepth: Int
  let maximumValues: Int
  var position = 0
  var valueCount = 0

  init(bytes: [UInt8], maximumDepth: Int, maximumValues: Int) {
    self.bytes = bytes
    self.maximumDepth = maximumDepth
    self.maximumValues = maximumValues
  }

  private static let byteOrderMark: [UInt8] = [0xEF, 0xBB, 0xBF]

  mutating func document() throws(JSONError) -> JSONValue {
    if bytes.starts(with: Self.byteOrderMark) { position = Self.byteOrderMark.count }
    let value = try value(depth: 0)
    skipWhiteSpace()
    if position < bytes.count { throw unexpected() }
    return value
  }

  private mutating func value(depth: Int) throws(JSONError) -> JSONValue {
    guard depth <= maximumDepth else { throw error(.nestedTooDeeply(limit: maximumDepth)) }
    valueCount += 1
    guard valueCount <= maximumValues else { throw error(.tooManyValues(limit: maximumValues)) }
    skipWhiteSpace()
    guard let byte = current else { throw unexpected() }
    switch byte {
    case UInt8(ascii: "{"): return .object(try object(depth: depth))
    case UInt8(ascii: "["): return .array(try array(depth: depth))
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try literal("true", .bool(true))
    case UInt8(ascii: "f"): return try literal("false", .bool(false))
    case UInt8(ascii: "n"): return try literal("null", .null)
    case UInt8(ascii: "N"): return try literal("NaN", .number(.nan))
    case UInt8(ascii: "I"): return try literal("Infinity", .number(.infinity))
    case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
    default: throw unexpected()
    }
  }

  private mutating func object(depth: Int) throws(JSONError) -> [String: JSONValue] {
    position += 1
    var members: [String: JSONValue] = [:]
    if try take("}", orExpect: nil) { return members }
    repeat {
      skipWhiteSpace()
      let keyPosition = position
      guard current == UInt8(ascii: "\"") else { throw unexpected() }
      let key = try string()
      _ = try take(":", orExpect: ":")
      let member = try value(depth: depth + 1)
      if members.updateValue(member, forKey: key) != nil {
        throw JSONError(reason: .duplicateKey(key), byte: keyPosition)
      }
    } while try take(",", orExpect: "}")
    return members
  }

  private mutating func array(depth: Int) throws(JSONError) -> [JSONValue] {
    position += 1
    var elements: [JSONValue] = []
    if try take("]", orExpect: nil) { return elements }
    repeat {
      elements.append(try value(depth: depth + 1))
    } while try take(",", orExpect: "]")
    return elements
  }

  private mutating func string() throws(JSONError) -> String {
    let opening = position
    position += 1
    var text: [UInt8] = []
    while true {
      let start = position
      while let byte = current, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\"), byte >= 0x20 {
        position += 1
      }
      text += bytes[start..<position]
      switch current {
      case UInt8(ascii: "\""):
        position += 1
        guard let string = String(validating: text, as: UTF8.self) else {
          throw JSONError(reason: .invalidString, byte: opening)
        }
        return string
      case UInt8(ascii: "\\"): text += Array(String(try escape()).utf8)
      default: throw unexpected()
      }
    }
  }

  private mutating func escape() throws(JSONError) -> Character {
    position += 1
    guard let letter = current else { throw unexpected() }
    position += 1
    switch letter {
    case UInt8(ascii: "n"): return "\n"
    case UInt8(ascii: "t"): return "\t"
    case UInt8(ascii: "r"): return "\r"
    case UInt8(ascii: "b"): return "\u{8}"
    case UInt8(ascii: "f"): return "\u{C}"
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"):
      return Character(UnicodeScalar(letter))
    case UInt8(ascii: "u"):
      var units = [try hexadecimalUnit()]
      if UTF16.isLeadSurrogate(units[0]), current == UInt8(ascii: "\\") {
        position += 1
        guard current == UInt8(ascii: "u") else { throw error(.invalidString) }
        position += 1
        units.append(try hexadecimalUnit())
      }
      guard let text = String(validating: units, as: UTF16.self), let scalar = text.unicodeScalars.first
      else { throw error(.invalidString) }
      return Character(scalar)
    default: throw error(.invalidString)
    }
  }

  private mutating func hexadecimalUnit() throws(JSONError) -> UInt16 {
    var unit: UInt16 = 0
    for _ in 0..<4 {
      guard let byte = current, let digit = Character(UnicodeScalar(byte)).hexDigitValue else {
        throw error(.invalidString)
      }
      unit = unit << 4 | UInt16(digit)
      position += 1
    }
    return unit
  }

  private mutating func number() throws(JSONError) -> JSONValue {
    let start = position
    if current == UInt8(ascii: "-") {
      position += 1
      if current == UInt8(ascii: "I") { return try literal("Infinity", .number(-.infinity)) }
    }
    let hasLeadingZero = current == UInt8(ascii: "0")
    let wholeDigits = skipDigits()
    var isValid = wholeDigits == 1 || (wholeDigits > 1 && !hasLeadingZero)
    var isWhole = true
    if current == UInt8(ascii: ".") {
      isWhole = false
      position += 1
      isValid = skipDigits() > 0 && isValid
    }
    if current == UInt8(ascii: "e") || current == UInt8(ascii: "E") {
      isWhole = false
      position += 1
      if current == UInt8(ascii: "+") || current == UInt8(ascii: "-") { position += 1 }
      isValid = skipDigits() > 0 && isValid
    }
    let text = String(decoding: bytes[start..<position], as: UTF8.self)
    guard isValid else { throw JSONError(reason: .invalidNumber, byte: start) }
    if isWhole, let value = Int(text) { return .integer(value) }
    guard let value = Double(text), value.isFinite else {
      throw JSONError(reason: .invalidNumber, byte: start)
    }
    return .number(value)
  }

  private mutating func skipDigits() -> Int {
    let start = position
    while let byte = current, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
    return position - start
  }

  private mutating func literal(_ word: String, _ value: JSONValue) throws(JSONError) -> JSONValue {
    for byte in word.utf8 {
      guard current == byte else { throw unexpected() }
      position += 1
    }
    return value
  }

  /// Takes `wanted` if it is next; otherwise takes `alternative`, or leaves everything if that is nil.
  private mutating func take(
    _ wanted: UnicodeScalar, orExpect alternative: UnicodeScalar?
  ) throws(JSONError) -> Bool {
    skipWhiteSpace()
    if current == UInt8(ascii: wanted) {
      position += 1
      return true
    }
    guard let alternative else { return false }
    guard current == UInt8(ascii: alternative) else { throw unexpected() }
    position += 1
    return false
  }

  private mutating func skipWhiteSpace() {
    while let byte = current, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 {
      position += 1
    }
  }

  private var current: UInt8? { position < bytes.count ? bytes[position] : nil }

  private func unexpected() -> JSONError {
    error(current.map { .unexpectedByte($0) } ?? .unexpectedEnd)
  }

  private func error(_ reason: JSONError.Reason) -> JSONError {
    JSONError(reason: reason, byte: position)
  }
}
