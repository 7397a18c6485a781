import Calibration
import Checkpoint
import SystemIO
import TestSupport
import Testing

struct TokenFileTests {
  private let directory: TemporaryDirectory

  init() throws {
    directory = try TemporaryDirectory()
  }

  @Test func `int64 ids are read row by row`() throws {
    let path = try directory.write(tokens: [[1, 2, 3], [4, 5, 2_147_483_647]])
    let rows = try TokenRows(tokenFile: path)
    #expect(rows.rows == [[1, 2, 3], [4, 5, 2_147_483_647]])
    #expect(rows.name == path)
  }

  @Test func `int32 ids are read row by row`() throws {
    let path = try write("I32", shape: [2, 2], littleEndian([7, 8, 9, -1] as [Int32]))
    #expect(try TokenRows(tokenFile: path).rows == [[7, 8], [9, -1]])
  }

  @Test func `ids of one dimension are one row`() throws {
    let path = try write("I64", shape: [3], littleEndian([7, 8, 9] as [Int64]))
    #expect(try TokenRows(tokenFile: path).rows == [[7, 8, 9]])
  }

  @Test(arguments: [[0, 4], [3, 0], [0]])
  func `an empty tensor holds no tokens`(_ shape: [Int]) throws {
    #expect(try TokenRows(tokenFile: write("I64", shape: shape, [])).tokenCount == 0)
  }

  @Test(arguments: [Int64(Int32.max) + 1, Int64(Int32.min) - 1, .max])
  func `an id beyond int32 is refused with its place`(_ id: Int64) throws {
    let path = try directory.write(tokens: [[1, 2], [3, id]])
    let error = try #require(throws: CalibrationError.self) { try TokenRows(tokenFile: path) }
    #expect("\(error)".contains("\(id) at index 3"))
    #expect("\(error)".contains(path))
    #expect(error.exitCode == 65)
  }

  @Test(arguments: [("F32", [2]), ("U8", [8]), ("I32", [2, 1, 1]), ("I64", [])])
  func `ids of another type or rank are refused`(_ dtype: String, _ shape: [Int]) throws {
    let path = try write(dtype, shape: shape, [UInt8](repeating: 0, count: 8))
    let error = try #require(throws: CalibrationError.self) { try TokenRows(tokenFile: path) }
    #expect("\(error)".contains(dtype))
    #expect("\(error)".contains("I32 or I64"))
  }

  @Test func `a file without input_ids is refused`() throws {
    let header = #"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#
    let path = try directory.write(
      tensorFile(header: header, data: [UInt8](repeating: 0, count: 8)), to: "ids.safetensors")
    #expect(throws: CalibrationError.badTokenFile(source: path, reason: "has no tensor input_ids")) {
      try TokenRows(tokenFile: path)
    }
  }

  @Test func `a truncated file is refused`() throws {
    let whole = tensorFile(
      header: #"{"input_ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#,
      data: [UInt8](repeating: 0, count: 16))
    let path = try directory.write(Array(whole.dropLast(3)), to: "cut.safetensors")
    let error = try #require(throws: SafetensorsError.self) { try TokenRows(tokenFile: path) }
    #expect("\(error)".contains("3 bytes are missing"))
  }

  @Test func `a file that is not there is named`() {
    #expect(throws: FileError.self) { try TokenRows(tokenFile: directory.file("nowhere.safetensors")) }
  }

  private func write(_ dtype: String, shape: [Int], _ data: [UInt8]) throws -> String {
    let header =
      #"{"input_ids":{"dtype":"\#(dtype)","shape":\#(shape),"data_offsets":[0,\#(data.count)]}}"#
    return try directory.write(tensorFile(header: header, data: data), to: "tokens.safetensors")
  }
}
