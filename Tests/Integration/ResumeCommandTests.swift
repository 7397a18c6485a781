import Checkpoint
import Foundation
import SystemIO
import TestSupport
import Testing

/// `quantize --resume`: a command that is started again goes on, and one that has been to its end leaves what is there.
struct ResumeCommandTests {
  private let directory: TemporaryDirectory
  private let tokens: String

  init() throws {
    directory = try TemporaryDirectory()
    tokens = try directory.write(randomTokens: 16, of: 64, vocabulary: 64, seed: 4)
    try OutOfCoreTests.makeModel(layers: 6, at: directory.file("model"))
  }

  private func arguments(_ model: String = "model", output: String = "output") -> [String] {
    [
      "quantize", directory.file(model), "--output", directory.file(output), "--calibration", tokens,
      "--samples", "16", "--sequence-length", "64", "--threads", "2",
    ]
  }

  private var resume: [String] { ["--resume", directory.file("job")] }

  private func weights(_ output: String) throws -> [UInt8] {
    try FileSystem.contents(of: directory.file("\(output)/model.safetensors"), limit: 1 << 30)
  }

  /// Runs the command and ends it by a signal when so many linears are in the journal.
  private func interrupt(after linears: Int, by signal: Int32) throws -> Quantease {
    let journal = directory.file("job/journal")
    // One more record is the journal's head.
    return try Quantease(arguments() + resume) { $0.end(by: signal, whenMoreThan: linears + 1, in: journal) }
  }

  @Test func `a command that was killed goes on, to the bytes of one that was not`() throws {
    try #require(try Quantease(arguments(output: "expected")).status == 0)
    let killed = try interrupt(after: 9, by: SIGKILL)
    #expect(killed.status == SIGKILL)
    let stopped = try interrupt(after: 20, by: SIGTERM)
    #expect(stopped.status == 128 + SIGTERM && stopped.errors.contains("the same command goes on"))
    #expect(stopped.errors.contains("linears are done, by an earlier command"), "\(stopped.errors)")
    #expect(try !FileSystem.exists(directory.file("output")))

    let last = try Quantease(arguments() + resume)
    #expect(last.status == 0, "\(last.errors)")
    #expect(last.errors.contains("linears are done, by an earlier command"))
    #expect(try weights("output") == weights("expected"))
    let names = try FileSystem.names(in: directory.file("job"))
    #expect(
      names.map { $0.prefix { $0 != "." } } == [
        "calibration", "contents", "finished", "identity", "lock", "order",
      ])
    #expect(try Quantease(["verify", directory.file("output")]).status == 0)
  }

  @Test func `what is finished is verified and left`() throws {
    try #require(try Quantease(arguments() + resume).status == 0)
    let before = try FileSystem.stamp(of: directory.file("output/model.safetensors"), symlinks: .refuse).stamp
    let again = try Quantease(arguments() + resume)
    #expect(again.status == 0 && again.errors.contains("done before"), "\(again.errors)")
    #expect(
      try FileSystem.stamp(of: directory.file("output/model.safetensors"), symlinks: .refuse).stamp == before)
    // Without the option, what stands there is in the way, as ever.
    #expect(try Quantease(arguments()).status == 73)

    var bytes = try weights("output")
    bytes[bytes.count / 2] ^= 1
    try AtomicFile.rewrite(bytes, to: directory.file("output/model.safetensors"))
    let damaged = try Quantease(arguments() + resume)
    #expect(damaged.status == 65 && damaged.errors.contains("is not what was written"), "\(damaged.errors)")
  }

  @Test func `another job's directory is not gone on with, and another's result is in the way`() throws {
    _ = try interrupt(after: 3, by: SIGKILL)
    let other = try Quantease(arguments() + resume + ["--bits", "3"])
    #expect(other.status == 64 && other.errors.contains("bits was 4"), "\(other.errors)")
    try FileSystem.createDirectories(directory.file("output"))
    let blocked = try Quantease(arguments() + resume)
    #expect(blocked.status == 73, "\(blocked.errors)")
  }

  @Test func `a model or a calibration of other bytes is another job, done or not`() throws {
    _ = try interrupt(after: 3, by: SIGKILL)
    func expectOther(_ file: String) throws {
      let path = directory.file(file)
      let bytes = try FileSystem.contents(of: path, limit: 1 << 30)
      var changed = bytes
      changed[changed.count - 3] ^= 1
      try AtomicFile.rewrite(changed, to: path)
      let run = try Quantease(arguments() + resume)
      #expect(run.status == 64 && run.errors.contains("has other bytes now"), "\(run.errors)")
      try AtomicFile.rewrite(bytes, to: path)
    }
    let token = String(tokens.split(separator: "/").last ?? "")
    for file in ["model/model.safetensors", token] { try expectOther(file) }
    let run = try Quantease(arguments() + resume)
    #expect(run.status == 0 && run.errors.contains("linears are done"), "\(run.errors)")
    for file in ["model/model.safetensors", token] { try expectOther(file) }
    #expect(try Quantease(arguments() + resume).errors.contains("done before"))
  }

  @Test func `a checkpoint of links goes through, and one that was copied anew is the same`() throws {
    // As a hub's cache has it.
    try FileSystem.createDirectories(directory.file("links"))
    for name in try FileSystem.names(in: directory.file("model")) {
      try FileManager.default.createSymbolicLink(
        atPath: directory.file("links/\(name)"), withDestinationPath: directory.file("model/\(name)"))
    }
    _ = try interrupt(after: 5, by: SIGKILL)
    let model = directory.file("model")
    try FileManager.default.moveItem(atPath: model, toPath: directory.file("moved"))
    try FileManager.default.copyItem(atPath: directory.file("moved"), toPath: model)
    let run = try Quantease(arguments() + resume)
    #expect(run.status == 0 && run.errors.contains("linears are done"), "\(run.errors)")
    try FileSystem.removeTree(directory.file("job"))
    let linked = try Quantease(arguments("links", output: "of-links") + resume)
    #expect(linked.status == 0, "\(linked.errors)")
    #expect(try weights("of-links") == weights("output"))
  }
}
