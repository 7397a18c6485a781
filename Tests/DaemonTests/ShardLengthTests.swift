import TestSupport
import Testing

@testable import Daemon

@Suite struct ShardLengthTests {
  @Test(arguments: [
    ("{}", 0),
    ("  {} \n", 0),
    (#"{"a":{"data_offsets":[0,4]},"b":{"data_offsets" : [ 4 , 12 ]}}"#, 12),
    (#"{"b":{"data_offsets":[4,12]},"a":{"data_offsets":[0,4]}}"#, 12),
    (#"{"__metadata__":{"data_offsets":"[0,99]"},"a":{"data_offsets":[0,4]}}"#, nil),
    (#"{"__metadata__":{"note":"\"data_offsets\":[0,99]}"},"a":{"data_offsets":[0,4]}}"#, 4),
    (#"{"data_offsets":{"data_offsets":[0,8]}}"#, 8),
    (#"{"a":{"shape":["data_offsets"],"data_offsets":[0,8]}}"#, 8),
    (#"{"a":{"data_offsets":[0,9223372036854775807]}}"#, Int.max),
    (#"{"a":{"data_offsets":[0,9223372036854775808]}}"#, nil),
    (#"{"a":{"data_offsets":[0,-4]}}"#, nil),
    (#"{"a":{"data_offsets":[0,4]}} x"#, nil),
    (#"{"a":{"data_offsets":[0,4]}"#, nil),
    (#"{"a\"#, nil),
    ("[]", nil),
    ("", nil),
  ])
  func `the last offset of a header is found, or that it is none`(_ header: String, _ expected: Int?) {
    #expect(ShardLength.dataByteCount(Array(header.utf8)) == expected)
  }

  @Test func `the length follows from the header alone`() throws {
    let directory = try TemporaryDirectory()
    let header = #"{"a":{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}}"#
    let path = try directory.write(tensorFile(header: header, data: [1, 2]), to: "shard")
    #expect(
      ShardLength(readingFrom: path, .safetensors) == .complete(byteCount: 8 + header.utf8.count + 1000))
  }

  @Test func `a header that claims more than memory is not believed`() throws {
    let directory = try TemporaryDirectory()
    for (name, length) in [("a", UInt64.max), ("b", 100_000_001), ("c", 100_000_000)] {
      let path = try directory.write(littleEndian([length]) + [123, 125], to: name)
      guard case .unknown = ShardLength(readingFrom: path, .safetensors) else {
        Issue.record("\(length) bytes are believed")
        continue
      }
    }
  }

  @Test func `a length that overflows is no length`() throws {
    let directory = try TemporaryDirectory()
    let header = #"{"a":{"data_offsets":[0,9223372036854775807]}}"#
    let path = try directory.write(tensorFile(header: header, data: []), to: "shard")
    #expect(
      ShardLength(readingFrom: path, .safetensors)
        == .unknown(reason: "its header is not that of a safetensors file"))
  }
}

@Suite struct ShardNamesTests {
  @Test(arguments: [
    (#"{"weight_map":{"a":"x","b":"y","c":"x"}}"#, ["x", "y"]),
    (#" { "metadata" : {"weight_map": {"a":"no"}}, "weight_map" : { "a" : "x" } } "#, ["x"]),
    (#"{"weight_map":{"a\"":"x","\u00e9":"\u0079"}}"#, ["x", "y"]),
    (#"{"weight_map":{}}"#, []),
    (#"{"metadata":{}}"#, nil),
    (#"{"weight_map":["x"]}"#, nil),
    (#"{"weight_map":{"a":1}}"#, nil),
    (#"{"weight_map":{"a":"x",}}"#, nil),
    (#"{"weight_map":{"a":"x"}"#, nil),
    (#"{"weight_map":{"a":"x"}} x"#, nil),
    (#"{"weight_map":{"a":"\ud800"}}"#, nil),
    (#"{"weight_map":{"a":"x"#, nil),
    ("[]", nil),
    ("", nil),
  ])
  func `the files of an index are found, or that it is none`(_ index: String, _ expected: [String]?) {
    var scanner = JSONScanner(Array(index.utf8))
    #expect(scanner.shardNames()?.sorted() == expected)
  }

  @Test func `an index of more files than any model has is refused`() {
    let entries = (0...100_000).map { "\"\($0)\":\"\($0)\"" }.joined(separator: ",")
    var scanner = JSONScanner(Array("{\"weight_map\":{\(entries)}}".utf8))
    #expect(scanner.shardNames() == nil)
  }
}
