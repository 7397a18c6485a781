import Checkpoint

/// Finds single facts in a JSON text of a stranger's without building anything from it: its memory is the text.
///
/// It goes over strings and numbers that nobody asks for without a look. Whether the text keeps all the rules is for
/// the job to find out, in a process of its own.
struct JSONScanner {
  private let bytes: [UInt8]
  private var position = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  /// Goes over one object from end to end.
  /// - Parameter visit: called behind every string, with the number of braces and brackets around it; what it takes is
  ///   not gone over again. It returns false to give up.
  /// - Returns: whether the text is one object, and nobody gave up
  mutating func forEachString(_ visit: (inout JSONScanner, _ depth: Int, _ text: Range<Int>) -> Bool) -> Bool
  {
    var depth = 0
    skipSpace()
    guard next == UInt8(ascii: "{") else { return false }
    while let byte = next {
      position += 1
      switch byte {
      case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
      case UInt8(ascii: "}"), UInt8(ascii: "]"):
        depth -= 1
        if depth == 0 {
          skipSpace()
          return position == bytes.count
        }
      case UInt8(ascii: "\""):
        guard let text = restOfString(), visit(&self, depth, text) else { return false }
      default: break
      }
    }
    return false
  }

  func isEqual(_ text: Range<Int>, _ other: [UInt8]) -> Bool { bytes[text].elementsEqual(other) }

  /// A string's value; nil if it is none.
  func string(_ text: Range<Int>) -> String? {
    try? JSONValue(parsing: Array(bytes[(text.lowerBound - 1)..<(text.upperBound + 1)])).string
  }

  /// Takes a string that comes next, and gives what is between its quotes.
  mutating func takeString() -> Range<Int>? {
    take(UInt8(ascii: "\"")) ? restOfString() : nil
  }

  mutating func takeNumber() -> Int? {
    skipSpace()
    let start = position
    while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
    return Int(String(decoding: bytes[start..<position], as: UTF8.self))
  }

  /// Takes a byte if it comes next.
  mutating func take(_ byte: UInt8) -> Bool {
    skipSpace()
    guard next == byte else { return false }
    position += 1
    return true
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

  private mutating func skipSpace() {
    while let byte = next, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { position += 1 }
  }

  private var next: UInt8? { position < bytes.count ? bytes[position] : nil }
}

// MARK: A shard's header

extension JSONScanner {
  private static let offsetsKey = Array("data_offsets".utf8)

  /// The largest end among the `data_offsets` of a safetensors header.
  /// - Returns: Nil if the text is not one JSON object, or an offset not a number.
  mutating func largestEnd() -> Int? {
    var largest = 0
    let isWhole = forEachString { scanner, depth, text in
      guard depth == 2, scanner.isEqual(text, Self.offsetsKey), scanner.take(UInt8(ascii: ":")) else {
        return true
      }
      guard let end = scanner.takeEndOfPair() else { return false }
      largest = max(largest, end)
      return true
    }
    return isWhole ? largest : nil
  }

  /// The second number of `[begin, end]`.
  private mutating func takeEndOfPair() -> Int? {
    guard take(UInt8(ascii: "[")), takeNumber() != nil, take(UInt8(ascii: ",")), let end = takeNumber(),
      take(UInt8(ascii: "]"))
    else { return nil }
    return end
  }
}

// MARK: An index

extension JSONScanner {
  private static let mapKey = Array("weight_map".utf8)
  /// The largest models have a few hundred.
  private static let shardLimit = 100_000

  /// The files that the `weight_map` of an index names.
  /// - Returns: Nil if the text is not one JSON object with such a map, or if it names more files than any model has.
  mutating func shardNames() -> Set<String>? {
    var shards: Set<String>?
    let isWhole = forEachString { scanner, depth, text in
      guard depth == 1, scanner.isEqual(text, Self.mapKey), scanner.take(UInt8(ascii: ":")) else {
        return true
      }
      shards = scanner.takeValues()
      return shards != nil
    }
    return isWhole ? shards : nil
  }

  /// The values of an object of strings.
  private mutating func takeValues() -> Set<String>? {
    guard take(UInt8(ascii: "{")) else { return nil }
    var values: Set<String> = []
    // Nearly every tensor is in the file of the one before.
    var last: Range<Int>?
    if take(UInt8(ascii: "}")) { return values }
    repeat {
      guard takeString() != nil, take(UInt8(ascii: ":")), let text = takeString() else { return nil }
      if let last, bytes[last] == bytes[text] { continue }
      guard let value = string(text) else { return nil }
      values.insert(value)
      last = text
      guard values.count <= Self.shardLimit else { return nil }
    } while take(UInt8(ascii: ","))
    return take(UInt8(ascii: "}")) ? values : nil
  }
}
