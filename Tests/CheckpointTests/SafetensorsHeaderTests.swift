import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Checkpoint

@Suite struct SafetensorsHeaderTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func header(_ bytes: [UInt8]) throws -> SafetensorsHeader {
    try SafetensorsHeader(of: MappedFile(path: directory.write(bytes, to: "x.safetensors")))
  }

  private func violation(_ bytes: [UInt8]) throws -> SafetensorsError.Violation? {
    let error = #expect(throws: SafetensorsError.self) { try header(bytes) }
    #expect(error?.file == directory.file("x.safetensors"))
    #expect(error?.exitCode == 65)
    #expect(error?.description.contains("; ") == true)
    return error?.violation
  }

  @Test func `a valid header gives tensors in the order of their bytes`() throws {
    let text =
      "{\(entry("b", "BF16", shape: [2, 3], offsets: (4, 16))),"
      + #""__metadata__":{"format":"pt"},"#
      + "\(entry("a", "F32", shape: [], offsets: (0, 4))),"
      + "\(entry("none", "I64", shape: [0, 5], offsets: (16, 16)))}   "
    let header = try header(safetensors(text, data: [UInt8](repeating: 0, count: 16)))
    #expect(header.metadata == ["format": "pt"])
    #expect(header.tensors.map(\.name) == ["a", "b", "none"])
    let b = header.tensors[1]
    #expect(b.dtype == .bfloat16)
    #expect(b.shape == [2, 3])
    #expect(b.byteRange == 8 + text.utf8.count + 4..<8 + text.utf8.count + 16)
    #expect(b.matrixDimensions == (2, 3))
    #expect(header.tensors[0].matrixDimensions == (1, 1))
  }

  @Test func `a file without tensors is valid`() throws {
    #expect(try header(safetensors("{}")).tensors.isEmpty)
  }

  @Test func `a git-lfs pointer is told from a damaged file`() throws {
    let text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    #expect(try violation(Array(text.utf8)) == .pointer)
  }

  @Test func `a file too short for a header length is refused`() throws {
    #expect(try violation([1, 2, 3]) == .noHeaderLength(fileByteCount: 3))
  }

  @Test(arguments: [100_000_001, UInt64.max])
  func `a header over 100 MB is refused unread`(length: UInt64) throws {
    #expect(
      try violation(safetensors("{}", headerLength: length)) == .headerTooLong(byteCount: length))
  }

  @Test func `a file cut inside the header names the missing bytes`() throws {
    let found = try violation(safetensors("{}", headerLength: 50))
    #expect(found == .headerTruncated(byteCount: 50, available: 2))
    #expect(
      SafetensorsError(file: "f", violation: .headerTruncated(byteCount: 50, available: 2))
        .description.contains("48 of them are missing"))
  }

  @Test func `a file cut inside the data names the tensor and the missing bytes`() throws {
    let text = "{\(entry("a", shape: [2], offsets: (0, 8))),\(entry("b", shape: [2], offsets: (8, 16)))}"
    let found = try violation(safetensors(text, data: [UInt8](repeating: 0, count: 13)))
    #expect(found == .outOfRange(end: 16, available: 13, tensor: "b"))
  }

  @Test func `what is missing is counted up to the last tensor's end`() throws {
    let text = (0..<40).map { entry("t\($0)", shape: [2], offsets: ($0 * 8, $0 * 8 + 8)) }.joined(
      separator: ",")
    let found = try violation(safetensors("{\(text)}", data: [UInt8](repeating: 0, count: 20)))
    #expect(found == .outOfRange(end: 320, available: 20, tensor: "t39"))
  }

  @Test(arguments: [
    ("not JSON", SafetensorsError.Violation.headerNotJSON(JSONError(reason: .unexpectedByte(0x6F), byte: 1))),
    ("[]", .headerNotObject),
    (#"{"__metadata__":{"a":1}}"#, .metadataNotStrings),
    (#"{"t":{"shape":[],"data_offsets":[0,4]}}"#, .invalidField("dtype", tensor: "t")),
    (#"{"t":{"dtype":"F32","data_offsets":[0,4]}}"#, .invalidField("shape", tensor: "t")),
    (#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, .invalidField("shape", tensor: "t")),
    (#"{"t":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#, .invalidField("shape", tensor: "t")),
    (#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, .invalidField("data_offsets", tensor: "t")),
    (
      #"{"t":{"dtype":"F4","shape":[3,2],"data_offsets":[0,4]}}"#,
      .wrongByteCount(4, expected: 3, tensor: "t")
    ),
    (
      #"{"t":{"dtype":"F99","shape":[1],"data_offsets":[0,8]}}"#,
      .outOfRange(end: 8, available: 4, tensor: "t")
    ),
    (
      #"{"t":{"dtype":"F99","shape":[1],"data_offsets":[4,0]}}"#,
      .offsetsReversed(begin: 4, end: 0, tensor: "t")
    ),
    (
      "{\(entry("t", shape: [1 << 31, 1 << 31], offsets: (0, 4)))}",
      .shapeOverflows([1 << 31, 1 << 31], tensor: "t")
    ),
    ("{\(entry("t", shape: [1], offsets: (4, 0)))}", .offsetsReversed(begin: 4, end: 0, tensor: "t")),
    ("{\(entry("t", shape: [3], offsets: (0, 4)))}", .wrongByteCount(4, expected: 12, tensor: "t")),
    ("{\(entry("t", shape: [2], offsets: (0, 8)))}", .outOfRange(end: 8, available: 4, tensor: "t")),
    (
      "{\(entry("t", shape: [1], offsets: (.max - 4, .max)))}",
      .outOfRange(end: .max, available: 4, tensor: "t")
    ),
  ])
  func `a broken rule has an error of its own`(
    text: String, expected: SafetensorsError.Violation
  ) throws {
    #expect(try violation(safetensors(text, data: [0, 0, 0, 0])) == expected)
  }

  /// Whoever multiplies them would trap before the zero, or with no bytes to compare them with.
  @Test(
    arguments: ["F32", "F4", "F99"], [[1 << 40, 1 << 40, 0], [0, 1 << 40, 1 << 40], [1 << 40, 1 << 40]])
  func `extents whose product cannot be counted are refused, beside a zero and of any type`(
    _ type: String, _ shape: [Int]
  ) throws {
    let text = "{\(entry("t", type, shape: shape, offsets: (0, 0)))}"
    #expect(try violation(safetensors(text)) == .shapeOverflows(shape, tensor: "t"))
  }

  @Test func `what passes can be multiplied`() throws {
    let text = "{\(entry("t", shape: [1 << 29, 1 << 28, 0], offsets: (0, 0)))}"
    let tensor = try header(safetensors(text)).tensors[0]
    #expect(tensor.byteCount == 0)
    #expect(tensor.matrixDimensions == (1 << 29, 0))
  }

  @Test func `an element of a type that is not known takes a bit at least`() throws {
    func text(_ count: Int) -> String { "{\(entry("t", "F99", shape: [count], offsets: (0, 4)))}" }
    let data: [UInt8] = [1, 2, 3, 4]
    #expect(try violation(safetensors(text(33), data: data)) == .wrongByteCount(4, expected: 5, tensor: "t"))
    try FileSystem.removeTree(directory.file("x.safetensors"))
    #expect(try header(safetensors(text(32), data: data)).tensors[0].shape == [32])
  }

  @Test func `a type that is not known is one all the same`() throws {
    let text = #"{"t":{"dtype":"F99","shape":[7],"data_offsets":[0,4]}}"#
    let tensor = try header(safetensors(text, data: [1, 2, 3, 4])).tensors[0]
    #expect(tensor.dtype.rawValue == "F99" && tensor.shape == [7] && tensor.byteRange.count == 4)
  }

  @Test func `a tensor named twice is found although JSON would hide the first`() throws {
    let text = "{\(entry("t", shape: [1], offsets: (0, 4))),\(entry("t", shape: [1], offsets: (4, 8)))}"
    let second = text.utf8.count - entry("t", shape: [1], offsets: (4, 8)).utf8.count - 1
    #expect(
      try violation(safetensors(text, data: [UInt8](repeating: 0, count: 8)))
        == .duplicateTensor("t", byte: 8 + second))
  }

  @Test func `overlaps, holes and trailing bytes are refused`() throws {
    func header(_ first: (Int, Int), _ second: (Int, Int)) -> String {
      "{\(entry("a", shape: [2], offsets: first)),\(entry("b", shape: [2], offsets: second))}"
    }
    func found(_ first: (Int, Int), _ second: (Int, Int), data: Int) throws -> SafetensorsError.Violation? {
      let text = header(first, second)
      defer { try? FileSystem.removeTree(directory.file("x.safetensors")) }
      return try violation(safetensors(text, data: [UInt8](repeating: 0, count: data)))
    }
    /// Where the data begin: the offsets' digits are part of the header.
    func start(_ first: (Int, Int), _ second: (Int, Int)) -> Int {
      8 + header(first, second).utf8.count
    }
    #expect(
      try found((0, 8), (4, 12), data: 12) == .overlap("b", "a", byte: start((0, 8), (4, 12)) + 4))
    #expect(try found((0, 8), (0, 8), data: 8) == .overlap("b", "a", byte: start((0, 8), (0, 8))))
    let afterHole = start((0, 8), (12, 20))
    #expect(
      try found((0, 8), (12, 20), data: 20) == .hole(afterHole + 8..<afterHole + 12, before: "b"))
    let whole = start((0, 8), (8, 16))
    #expect(try found((0, 8), (8, 16), data: 19) == .trailingBytes(whole + 16..<whole + 19))
  }
}
