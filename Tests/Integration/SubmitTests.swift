import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

/// `quantease submit`: what the daemon would refuse is not copied, and a job can be waited for.
@Suite(.serialized) struct SubmitTests {
  private let bench: DaemonBench
  private let model: String

  init() throws {
    bench = try DaemonBench()
    model = bench.directory.file("model")
    try FileManager.default.copyItem(atPath: TestFiles.model("llama"), toPath: model)
    try FileManager.default.removeItem(atPath: model + "/expected.safetensors")
    try bench.spool.create()
  }

  private func submit(_ arguments: String...) throws -> Quantease {
    try Quantease(["submit"] + arguments + ["--config", bench.configuration])
  }

  private func write(_ text: String, to path: String) throws {
    try text.write(toFile: path, atomically: true, encoding: .utf8)
  }

  /// A change that makes a checkpoint one that nobody would take, the exit code, and what is to be read.
  struct Refusal: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let status: Int32
    let says: [String]
    let change: @Sendable (_ model: String) throws -> Void

    init(
      _ name: String, _ status: Int32, _ says: String..., change: @escaping @Sendable (String) throws -> Void
    ) {
      (testDescription, self.status, self.says, self.change) = (name, status, says, change)
    }
  }

  static let pointer = """
    version https://git-lfs.github.com/spec/v1
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
    size 12345

    """

  static let refusals = [
    Refusal("an empty folder", 66, "model.safetensors") { model in
      for name in try FileSystem.names(in: model) { try FileSystem.removeTree("\(model)/\(name)") }
    },
    Refusal("a git-lfs pointer", 65, "git-lfs pointer", "git lfs pull") { model in
      try pointer.write(toFile: model + "/model.safetensors", atomically: true, encoding: .utf8)
    },
    Refusal("what is no pickle of torch", 65, "pytorch_model.bin", "torch.save") { model in
      try FileSystem.move(model + "/model.safetensors", to: model + "/pytorch_model.bin")
    },
    Refusal("a checkpoint one level too deep", 66, "one folder further down; give ", "/model/inner") {
      model in
      try FileSystem.move(model, to: model + "-inner")
      try FileSystem.createDirectories(model)
      try FileSystem.move(model + "-inner", to: model + "/inner")
    },
    Refusal("a cut shard", 65, "model.safetensors", "bytes are missing") { model in
      let handle = try #require(FileHandle(forWritingAtPath: model + "/model.safetensors"))
      try handle.truncate(atOffset: 20_000)
    },
    Refusal("an unknown architecture", 65, "alien") { model in
      try #"{"model_type": "alien"}"#.write(
        toFile: model + "/config.json", atomically: true, encoding: .utf8)
    },
    Refusal("a recipe of its own with a misspelt key", 65, "quantease.yaml:1:1", "did you mean bits?") {
      model in
      try "bitz: 3\n".write(toFile: model + "/quantease.yaml", atomically: true, encoding: .utf8)
    },
    Refusal("a calibration text that is not there", 78, "absent.txt", "calibration") { model in
      try "calibration: absent.txt\n".write(
        toFile: model + "/quantease.yaml", atomically: true, encoding: .utf8)
    },
  ]

  @Test(arguments: refusals, [[String](), ["--dry-run"], ["--move"]])
  func `what the daemon would refuse is not copied`(_ refusal: Refusal, _ options: [String]) throws {
    try refusal.change(model)
    let before = try FileSystem.names(in: model)
    let run = try Quantease(["submit", model] + options + ["--config", bench.configuration])
    #expect(run.status == refusal.status, "\(run.errors)")
    for text in refusal.says { #expect(run.errors.contains(text), "\(run.errors)") }
    #expect(try FileSystem.names(in: bench.spool.incoming) == [])
    #expect(try FileSystem.names(in: model) == before)
  }

  @Test func `a recipe is looked at as the job's, whatever it is called`() throws {
    let recipe = bench.directory.file("w4.yaml")
    try write("group-sice: 64\n", to: recipe)
    let run = try submit(model, "--recipe", recipe)
    #expect(
      run.status == 65 && run.errors.contains("w4.yaml:1:1: group-sice: unknown setting"), "\(run.errors)")
    #expect(run.errors.contains("did you mean group-size?"))
    let missing = try submit(model, "--recipe", recipe + "-absent")
    #expect(missing.status == 65 && missing.errors.contains("w4.yaml-absent"), "\(missing.errors)")
    #expect(try FileSystem.names(in: bench.spool.incoming) == [])
  }

  @Test func `a path that leads nowhere is told from a file`() throws {
    let absent = try submit(model + "-absent")
    #expect(absent.status == 66 && absent.errors.contains("No such file or directory"), "\(absent.errors)")
    let file = try submit(model + "/config.json")
    #expect(file.status != 0 && file.errors.contains("Not a directory"), "\(file.errors)")
  }

  @Test func `a dry run says what the job would need, and copies nothing`() throws {
    let run = try submit(model, "--dry-run")
    #expect(run.status == 0, "\(run.errors)")
    for text in [
      "llama: 14 linears to 4 bits", "result   about ", "cache    at most ", "memory   ",
      "nothing was copied",
    ] {
      #expect(run.output.contains(text), "\(run.output)")
    }
    #expect(try FileSystem.names(in: bench.spool.incoming) == [])
  }

  @Test func `who waits hears of the result, or of the failure`() throws {
    try bench.start()
    let good = try submit(model, "--name", "good", "--wait")
    #expect(
      good.status == 0 && good.output.contains("is published: \(bench.spool.output)/good"), "\(good.errors)")
    // A token beyond the vocabulary shows when the text is read.
    let tokens = model + "/tokens.safetensors"
    let outside = try bench.directory.write(
      tokens: [[Int64](repeating: 5_000, count: 300)], to: "outside.safetensors")
    try FileManager.default.copyItem(atPath: outside, toPath: tokens)
    try write("calibration: tokens.safetensors\nsamples: 2\n", to: model + "/quantease.yaml")
    let bad = try submit(model, "--name", "bad", "--wait")
    #expect(bad.status == 65 && bad.errors.contains("came to nothing"), "\(bad.output) \(bad.errors)")
    #expect(try bench.stop() == 0)
  }

  @Test func `who waits without a daemon is told so`() throws {
    let run = try submit(model, "--wait")
    #expect(run.status == 75 && run.errors.contains("quanteased is not running"), "\(run.errors)")
    #expect(try FileSystem.names(in: bench.spool.incoming) == ["model"])
  }

  @Test func `what a killed submit has left is removed, and nothing else`() throws {
    // A process that is over, and one that is at it: this one.
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/true")
    try process.run()
    process.waitUntilExit()
    let (gone, own) = (process.processIdentifier, ProcessInfo.processInfo.processIdentifier)
    let incoming = bench.spool.incoming
    func leave(_ name: String, age: TimeInterval) throws {
      let path = FileSystem.join(incoming, name)
      try FileSystem.createDirectories(path)
      try write("part", to: path + "/model.safetensors")
      for item in [path + "/model.safetensors", path] {
        try FileManager.default.setAttributes(
          [.modificationDate: Date(timeIntervalSinceNow: -age)], ofItemAtPath: item)
      }
    }
    try leave(".old.partial-\(gone)", age: 4_000)
    try leave(".new.partial-\(gone)", age: 60)
    try leave(".mine.partial-\(own)", age: 4_000)
    try leave(".hidden", age: 4_000)
    try bench.start()
    try bench.wait("the removal") { try !FileSystem.exists(incoming + "/.old.partial-\(gone)") }
    #expect(bench.log.contains("removed what an interrupted 'quantease submit' had left"))
    #expect(
      try FileSystem.names(in: incoming).sorted()
        == [".hidden", ".mine.partial-\(own)", ".new.partial-\(gone)"].sorted())
    #expect(try bench.stop() == 0)
  }
}
