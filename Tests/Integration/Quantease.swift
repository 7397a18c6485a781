import Checkpoint
import Foundation
import SystemIO
import TestSupport
import Testing

/// One run of the command-line program, from start to end.
struct Quantease {
  let status: Int32
  let output: String
  let errors: String

  /// Runs the program that was built with these tests, or the one that `QUANTEASE_BINARY` names.
  /// - Parameters:
  ///   - missing: variables of the environment that it does not get
  ///   - program: another one, if not nil
  ///   - body: called while it runs
  init(
    _ arguments: [String], environment: [String: String] = [:], without missing: [String] = [],
    program: String? = nil,
    _ body: (Process) throws -> Void = { _ in }
  ) throws {
    let scratch = try TemporaryDirectory()
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try program ?? Self.binary)
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
      .filter { !missing.contains($0.key) }
    process.standardInput = FileHandle.nullDevice
    // Files and not pipes: neither stream can fill up while the other is being read.
    process.standardOutput = try Self.handle(of: scratch.write("", to: "output"))
    process.standardError = try Self.handle(of: scratch.write("", to: "errors"))
    try process.run()
    try body(process)
    process.waitUntilExit()
    status = process.terminationStatus
    output = try String(contentsOfFile: scratch.file("output"), encoding: .utf8)
    errors = try String(contentsOfFile: scratch.file("errors"), encoding: .utf8)
  }

  /// Runs a command that prints JSON, and expects it to succeed.
  static func json(_ arguments: String...) throws -> JSONValue { try json(arguments) }

  static func json(_ arguments: [String]) throws -> JSONValue {
    let run = try Quantease(arguments + ["--json"])
    try #require(run.status == 0, "\(run.errors)")
    return try JSONValue(parsing: Array(run.output.utf8))
  }

  static func handle(of path: String) throws -> FileHandle {
    try #require(FileHandle(forWritingAtPath: path))
  }

  /// Copies a program to where any user may run it.
  ///
  /// By a process of its own: a test that starts a program meanwhile would pass this one's open file on to it, and the
  /// kernel runs nothing that is open for writing.
  static func install(_ program: String, as path: String) throws {
    try #require(try Quantease([program, path], program: "/bin/cp").status == 0)
  }

  static var binary: String {
    get throws {
      if let path = TestEnvironment.variable("QUANTEASE_BINARY") { return path }
      // The test bundle stands beside the program.
      let bundle = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
      let path = URL(fileURLWithPath: bundle).deletingLastPathComponent().appending(path: "quantease").path
      try #require(
        FileManager.default.isExecutableFile(atPath: path), "\(path) is missing; set QUANTEASE_BINARY")
      return path
    }
  }
}

/// A model, calibration tokens, and a directory for the output, on their own.
final class Workbench {
  let directory: TemporaryDirectory
  /// A copy of a fixture, free to be damaged.
  let model: String
  var calibration: String
  /// Stands in a directory in which there is nothing else.
  let output: String
  var options: [String] = []
  var environment: [String: String] = [:]

  init(_ fixture: String = "llama") throws {
    directory = try TemporaryDirectory()
    model = directory.file("model")
    output = directory.file("results/output")
    try FileManager.default.copyItem(atPath: TestFiles.model(fixture), toPath: model)
    try FileManager.default.removeItem(atPath: model + "/expected.safetensors")
    try FileManager.default.createDirectory(
      atPath: directory.file("results"), withIntermediateDirectories: true)
    calibration = try directory.write(randomTokens: 12, of: 32, vocabulary: 64, seed: 1)
  }

  /// Runs `quantease quantize` with 8 samples of 32 tokens; options given later win.
  /// - Parameter other: quantized in the model's place
  func quantize(
    _ more: [String] = [], model other: String? = nil, output: String? = nil,
    _ body: (Process) throws -> Void = { _ in }
  ) throws -> Quantease {
    try Quantease(
      [
        "quantize", other ?? model, "--output", output ?? self.output, "--calibration", calibration,
        "--samples", "8",
        "--sequence-length", "32", "--threads", "2",
      ] + options + more, environment: environment, body)
  }

  /// Runs it, expects success, and gives the report.
  @discardableResult
  func report(_ more: String..., output: String? = nil) throws -> JSONValue {
    let run = try quantize(more, output: output)
    try #require(run.status == 0, "\(run.errors)")
    return try JSONValue(contentsOf: (output ?? self.output) + "/quantease_report.json")
  }

  /// Whatever has come to stand where the output was to be, hidden files included.
  var results: [String] {
    get throws { try FileManager.default.contentsOfDirectory(atPath: directory.file("results")) }
  }
}

/// The bytes of every tensor of a checkpoint.
func tensors(in directory: String) throws -> [String: [UInt8]] {
  let reader = try CheckpointReader(directory: directory)
  return try reader.tensors.mapValues { tensor in
    try reader.withBytes(of: tensor.name, 0..<tensor.byteRange.count) { bytes in
      unsafe bytes.withUnsafeBytes { unsafe Array($0) }
    }
  }
}

/// A safetensors file taken apart, to be put together otherwise.
struct TensorFile {
  let path: String
  var header: [String: JSONValue]
  var data: [UInt8]

  init(_ path: String) throws {
    self.path = path
    let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    let length = (0..<8).reduce(0) { $0 | Int(bytes[$1]) << (8 * $1) }
    header = try #require(JSONValue(parsing: Array(bytes[8..<8 + length])).object)
    data = Array(bytes[(8 + length)...])
  }

  func write() throws {
    let bytes = tensorFile(header: JSONValue.object(header).compactText, data: data)
    try Data(bytes).write(to: URL(fileURLWithPath: path))
  }

  /// The tensors in the order of their bytes.
  var names: [String] {
    header.keys.filter { $0 != "__metadata__" }.sorted {
      offsets(of: $0).lowerBound < offsets(of: $1).lowerBound
    }
  }

  func offsets(of tensor: String) -> Range<Int> {
    let offsets = header[tensor]?["data_offsets"]?.array?.compactMap(\.int) ?? []
    return offsets.count == 2 ? offsets[0]..<offsets[1] : 0..<0
  }

  mutating func place(_ tensor: String, at offsets: Range<Int>, shape: [Int]? = nil) {
    var entry = header[tensor]?.object ?? [:]
    entry["data_offsets"] = [.integer(offsets.lowerBound), .integer(offsets.upperBound)]
    if let shape { entry["shape"] = .array(shape.map { .integer($0) }) }
    header[tensor] = .object(entry)
  }

  /// Moves the tensors together, so that no byte is without one.
  mutating func closeGaps() {
    var data: [UInt8] = []
    for name in names {
      let bytes = self.data[offsets(of: name)]
      place(name, at: data.count..<data.count + bytes.count)
      data += bytes
    }
    self.data = data
  }

  /// Sets one element of an F32 tensor.
  mutating func set(_ tensor: String, at index: Int, to value: Float) {
    let start = offsets(of: tensor).lowerBound + 4 * index
    data.replaceSubrange(start..<start + 4, with: littleEndian([value.bitPattern]))
  }
}

/// Changes keys of a JSON file; a value of nil removes one.
func edit(_ path: String, _ changes: [String: JSONValue?]) throws {
  var members = try #require(JSONValue(contentsOf: path).object)
  for (key, value) in changes { members[key] = value }
  try JSONValue.object(members).prettyText.write(toFile: path, atomically: true, encoding: .utf8)
}

extension Process {
  /// Ends the process by a signal when more than so many records are in a journal.
  func end(by signal: Int32, whenMoreThan records: Int, in journal: String) {
    while isRunning {
      let bytes = (try? FileSystem.contents(of: journal, limit: 1 << 30)) ?? []
      if journalRecords(in: bytes).count > records { break }
      Thread.sleep(forTimeInterval: 0.002)
    }
    kill(processIdentifier, signal)
  }
}
