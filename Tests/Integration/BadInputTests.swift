import Checkpoint
import Foundation
import SystemIO
import TestSupport
import Testing

/// Input that must not be taken: each ends with its exit status and a message that says what is wrong and
/// what to do, and leaves nothing behind.
struct BadInputTests {
  @Test(arguments: BadInput.checkpoints + BadInput.tokens + BadInput.requests)
  func `bad input is refused and leaves nothing behind`(_ input: BadInput) throws {
    let bench = try Workbench(input.fixture)
    try input.prepare(bench)
    let before = bench.files
    let run = try bench.quantize()
    #expect(run.status == input.status, "\(run.errors)")
    for mention in input.mentions {
      #expect(run.errors.contains(mention), "\(mention) is not in: \(run.errors)")
    }
    #expect(bench.files == before)
  }

  @Test(.enabled(if: geteuid() == 0, "needs root to mount a file system"))
  func `a full cache directory ends the run and leaves nothing behind`() throws {
    let bench = try Workbench()
    let cache = bench.directory.file("small-disk")
    try FileSystem.createDirectories(cache)
    guard try Self.command("mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", cache) == 0 else { return }
    defer { _ = try? Self.command("umount", cache) }
    bench.calibration = try bench.directory.write(
      randomTokens: 64, of: 128, vocabulary: 64, seed: 3, to: "many.safetensors")
    let run = try bench.quantize([
      "--samples", "64", "--sequence-length", "128", "--cache-dir", cache, "--states", "cache",
    ])
    #expect(run.status == 75, "\(run.errors)")
    #expect(run.errors.contains(cache))
    #expect(run.errors.contains("full"))
    #expect(try bench.results == [])
    #expect(try FileManager.default.contentsOfDirectory(atPath: cache) == [])
  }

  @Test func `what stands at the output path already stays as it is`() throws {
    let bench = try Workbench()
    try FileSystem.createDirectories(bench.output)
    try "mine".write(toFile: bench.output + "/notes.txt", atomically: true, encoding: .utf8)
    let run = try bench.quantize()
    #expect(run.status == 73, "\(run.errors)")
    #expect(run.errors.contains(bench.output))
    #expect(try bench.results == ["output"])
    #expect(try FileManager.default.contentsOfDirectory(atPath: bench.output) == ["notes.txt"])
  }

  /// - Parameter delay: microseconds from the first file of the run to the signal
  @Test(arguments: [0, 200_000] as [UInt32])
  func `an interrupted run leaves nothing behind`(_ delay: UInt32) throws {
    let bench = try Workbench()
    bench.calibration = try bench.directory.write(
      randomTokens: 3_000, of: 128, vocabulary: 64, seed: 7, to: "many.safetensors")
    let run = try bench.quantize(["--samples", "3000", "--sequence-length", "128"]) { process in
      while try bench.results.isEmpty && process.isRunning { usleep(1_000) }
      usleep(delay)
      process.terminate()
    }
    #expect(run.status == 128 + SIGTERM, "\(run.errors)")
    let results = try bench.results
    #expect(results == [])
  }

  @Test func `a quantized checkpoint is not quantized again`() throws {
    let bench = try Workbench()
    let quantized = bench.directory.file("quantized")
    try bench.report("--format", "gptq", output: quantized)
    let run = try Quantease([
      "quantize", quantized, "--output", bench.output, "--calibration", bench.calibration, "--samples", "8",
      "--sequence-length", "32",
    ])
    #expect(run.status == 65, "\(run.errors)")
    #expect(run.errors.contains("already quantized (gptq)"))
    #expect(try bench.results == [])
  }

  @Test(arguments: [
    ("missing.safetensors", 66, "missing.safetensors"),
    ("outside.safetensors", 65, "token id 64"),
    ("long.safetensors", 65, "128"),
  ])
  func `eval refuses bad windows and leaves no cache`(
    _ file: String, _ status: Int32, _ mention: String
  ) throws {
    let bench = try Workbench()
    _ = try bench.directory.write(tokens: [[1, 2, 64, 3]], to: "outside.safetensors")
    _ = try bench.directory.write(randomTokens: 1, of: 129, vocabulary: 64, seed: 1, to: "long.safetensors")
    let cache = bench.directory.file("cache")
    try FileSystem.createDirectories(cache)
    let run = try Quantease([
      "eval", bench.model, "--tokens", bench.directory.file(file), "--cache-dir", cache,
    ])
    #expect(run.status == status, "\(run.errors)")
    #expect(run.errors.contains(mention), "\(run.errors)")
    #expect(try FileManager.default.contentsOfDirectory(atPath: cache) == [])
  }

  private static func command(_ arguments: String...) throws -> Int32 {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = arguments
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    return process.terminationStatus
  }
}

/// One kind of bad input.
struct BadInput: Sendable, CustomTestStringConvertible {
  let testDescription: String
  let fixture: String
  let status: Int32
  /// What the message has to say: the file, tensor or value, and the way out.
  let mentions: [String]
  let prepare: @Sendable (Workbench) throws -> Void

  init(
    _ description: String, of fixture: String = "llama", status: Int32, _ mentions: String...,
    prepare: @escaping @Sendable (Workbench) throws -> Void
  ) {
    testDescription = description
    self.fixture = fixture
    self.status = status
    self.mentions = mentions
    self.prepare = prepare
  }
}

extension Workbench {
  /// Every file and directory around the run, hidden ones included.
  var files: Set<String> {
    Set(FileManager.default.enumerator(atPath: directory.path)?.compactMap { $0 as? String } ?? [])
  }

  /// Changes the checkpoint's one safetensors file, or the named shard.
  func damage(_ file: String = "model.safetensors", _ change: (inout TensorFile) throws -> Void) throws {
    var tensors = try TensorFile("\(model)/\(file)")
    try change(&tensors)
    try tensors.write()
  }

  func editConfiguration(_ changes: [String: JSONValue?]) throws {
    try edit(model + "/config.json", changes)
  }
}
