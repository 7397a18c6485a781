import ActivationCache
import Export
import FoundationEssentials
import Tensors

/// The bytes of a record of a ``ResumeJournal``, put together.
struct JournalPayload {
  private var writer = ByteWriter()

  var bytes: [UInt8] { writer.bytes }

  init() {}

  init(header: some Encodable) throws {
    let encoder = JSONEncoder()
    // In the same order every time: but for seconds, the records of a job have the same bytes whoever writes them.
    encoder.outputFormatting = .sortedKeys
    let json = Array(try encoder.encode(header))
    append([UInt64(json.count)])
    append(json)
  }

  mutating func append<Value: BitwiseCopyable>(_ values: Span<Value>) { writer.append(values) }

  mutating func append<Value: BitwiseCopyable>(_ values: [Value]) { writer.append(values) }

  mutating func append(codes: [UInt8], bits: Int) {
    writer.reserve(wordCount(codes: codes.count, bits: bits) * MemoryLayout<UInt32>.stride)
    // A multiple of 32 codes fills whole words: parts then follow one another as if packed at once.
    for start in stride(from: 0, to: codes.count, by: 1 << 20) {
      let part = codes.span.extracting(start..<min(start + 1 << 20, codes.count))
      var words = [UInt32](repeating: 0, count: wordCount(codes: part.count, bits: bits))
      var span = words.mutableSpan
      pack(part, bits: bits, into: &span)
      append(words)
    }
  }
}

/// Takes the bytes of a record apart; nil where they end too early.
struct JournalPayloadReader {
  private var reader = ByteReader()

  mutating func header<Header: Decodable>(_ type: Header.Type, of bytes: RawSpan) -> Header? {
    guard let count = values(UInt64.self, count: 1, of: bytes).flatMap({ Int(exactly: $0[0]) }),
      let json = values(UInt8.self, count: count, of: bytes)
    else { return nil }
    return try? JSONDecoder().decode(type, from: Data(json))
  }

  mutating func values<Value: BitwiseCopyable>(
    _ type: Value.Type, count: Int, of bytes: RawSpan
  ) -> [Value]? {
    reader.values(type, count: count, of: bytes)
  }

  mutating func codes(count: Int, bits: Int, of bytes: RawSpan) -> [UInt8]? {
    guard let words = values(UInt32.self, count: wordCount(codes: count, bits: bits), of: bytes) else {
      return nil
    }
    var codes = [UInt8](repeating: 0, count: count)
    var span = codes.mutableSpan
    unpack(words.span, bits: bits, count: count, into: &span)
    return codes
  }
}

/// The checksum of an array's bytes, which are kept until it is known.
func arrayChecksum(_ bytes: [UInt8], seed: UInt64 = 0) -> UInt64 {
  unsafe bytes.withUnsafeBytes { unsafe checksum(of: RawSpan(_unsafeBytes: $0), seed: seed) }
}
