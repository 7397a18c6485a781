import Checkpoint
import Testing

@Suite struct JSONTests {
  private func parse(_ text: String) throws(JSONError) -> JSONValue {
    try JSONValue(parsing: Array(text.utf8))
  }

  @Test func `a document is read with all its kinds of values`() throws {
    let json = try parse(
      #" {"a": [1, -2.5, 1e3, true, false, null], "b\n\u00e9\ud83d\ude00": "é\"\/", "c": {}, "d": []} "#)
    #expect(json["a"]?.array == [1, -2.5, 1000.0, true, false, nil])
    #expect(json["b\né😀"]?.string == "é\"/")
    #expect(json["c"]?.object == [:])
    #expect(json["d"]?.array == [])
    #expect(json["e"] == nil)
  }

  @Test func `whole numbers are integers however they are written`() throws {
    let json = try parse(#"{"i": 4096, "f": 10000.0, "x": 1e-05, "huge": 1000000000000000000000}"#)
    #expect(json["i"] == .integer(4096))
    #expect(json["i"]?.double == 4096)
    #expect(json["f"]?.int == 10_000)
    #expect(json["x"]?.int == nil)
    #expect(json["x"]?.double == 1e-5)
    #expect(json["huge"]?.double == 1e21)
  }

  @Test(arguments: [
    ("", JSONError.Reason.unexpectedEnd, 0),
    ("[1, 2", .unexpectedEnd, 5),
    ("[1 2]", .unexpectedByte(0x32), 3),
    ("{\"a\":1}x", .unexpectedByte(0x78), 7),
    ("[1,]", .unexpectedByte(0x5D), 3),
    ("{a:1}", .unexpectedByte(0x61), 1),
    ("nul", .unexpectedEnd, 3),
    ("01", .invalidNumber, 0),
    ("-", .invalidNumber, 0),
    ("1.", .invalidNumber, 0),
    ("1e400", .invalidNumber, 0),
    ("\"\\x\"", .invalidString, 3),
    ("\"\\ud800\"", .invalidString, 7),
    ("\"a\u{1}\"", .unexpectedByte(1), 2),
    ("{\"a\":1, \"a\":2}", .duplicateKey("a"), 8),
  ])
  func `a text that is not JSON is refused with the byte`(
    text: String, reason: JSONError.Reason, byte: Int
  ) {
    let error = #expect(throws: JSONError.self) { try parse(text) }
    #expect(error?.reason == reason)
    #expect(error?.byte == byte)
  }

  @Test func `what Python writes and reads beyond JSON is read`() throws {
    let json = try parse("\u{FEFF}{\"a\": [NaN, Infinity, -Infinity]}")
    let numbers = json["a"]?.array?.compactMap(\.double)
    #expect(numbers?.count == 3)
    #expect(numbers?[0].isNaN == true && numbers?[1] == .infinity && numbers?[2] == -.infinity)
  }

  @Test func `a text of more values than are allowed is refused`() throws {
    let text = Array("[[0],[0],[0]]".utf8)
    #expect(try JSONValue(parsing: text, maximumValues: 7).array?.count == 3)
    let error = #expect(throws: JSONError.self) { try JSONValue(parsing: text, maximumValues: 6) }
    #expect(error?.reason == .tooManyValues(limit: 6))
  }

  @Test func `invalid UTF-8 is refused`() {
    let error = #expect(throws: JSONError.self) {
      try JSONValue(parsing: [0x22, 0xC3, 0x28, 0x22])
    }
    #expect(error?.reason == .invalidString)
  }

  @Test func `a million opening brackets are refused, not followed`() {
    let error = #expect(throws: JSONError.self) {
      try JSONValue(parsing: [UInt8](repeating: UInt8(ascii: "["), count: 1_000_000))
    }
    #expect(error?.reason == .nestedTooDeeply(limit: 64))
  }

  @Test func `text is sorted, indented and reads back as the same value`() throws {
    let json: JSONValue = [
      "b": [1, 2.5, nil], "a": ["x": "q\"\\\n\u{1}é"], "empty": [:], "none": [], "flag": true,
    ]
    #expect(
      json.prettyText == """
        {
          "a": {
            "x": "q\\"\\\\\\n\\u0001é"
          },
          "b": [
            1,
            2.5,
            null
          ],
          "empty": {},
          "flag": true,
          "none": []
        }

        """)
    #expect(try parse(json.prettyText) == json)
    #expect(try parse(json.compactText) == json)
    #expect(
      JSONValue.array([.number(.nan), .number(.infinity), .number(-.infinity)]).compactText
        == "[NaN,Infinity,-Infinity]")
    #expect(JSONValue.number(10_000).compactText == "10000.0")
  }
}
