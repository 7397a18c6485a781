import Checkpoint
import ComputeOpenBLAS
import Foundation
import SystemIO
import TestSupport
import Testing

/// What a job comes to is the job's, and not the machine's.
struct SameBytesTests {
  private let directory: TemporaryDirectory
  private let tokens: String

  init() throws {
    directory = try TemporaryDirectory()
    tokens = try directory.write(randomTokens: 40, of: 61, vocabulary: 64, seed: 4)
    try OutOfCoreTests.makeModel(layers: 2, at: directory.file("model"))
  }

  private func quantize(
    _ output: String, _ options: [String], kernels: String, _ body: (Process) throws -> Void = { _ in }
  ) throws -> Quantease {
    try Quantease(
      [
        "quantize", directory.file("model"), "--output", directory.file(output), "--calibration", tokens,
        "--samples", "40", "--sequence-length", "61", "--threads", "2",
      ] + options, environment: ["OPENBLAS_CORETYPE": kernels], body)
  }

  private func weights(_ output: String) throws -> [UInt8] {
    try FileSystem.contents(of: directory.file("\(output)/model.safetensors"), limit: 1 << 30)
  }

  /// Every set of kernels that the library has for this processor.
  private static let kernels = ["Prescott", "Sandybridge", "Haswell", "SkylakeX"].filter {
    KernelSet($0).runsHere
  }

  @Test(arguments: kernels, ["auto", "exact"])
  func `bytes do not follow from memory`(_ kernels: String, _ precision: String) throws {
    let options = ["--precision", precision]
    let free = try quantize("free", options, kernels: kernels)
    try #require(free.status == 0, "\(free.errors)")
    let report = try JSONValue(contentsOf: directory.file("free/quantease_report.json"))
    #expect(report["settings"]?["kernels"]?.string?.hasPrefix("OpenBLAS \(kernels)") == true)
    // The least that it can do with is what it says where there is nothing.
    let refused = try quantize("refused", options + ["--memory", "0.001"], kernels: kernels)
    let least = try #require(refused.errors.firstMatch(of: /needs ([0-9]+) MB/)).1
    let tight = try quantize(
      "tight", options + ["--memory", "\(try #require(Double(least)) / 1_000 + 0.001)"], kernels: kernels)
    try #require(tight.status == 0, "\(tight.errors)")
    #expect(try weights("tight") == weights("free"))
  }

  @Test(.enabled(if: kernels.count > 1, "needs a processor with AVX"))
  func `a job goes on by the kernels that it was begun with`() throws {
    let (other, usual) = (Self.kernels[Self.kernels.count - 2], Self.kernels[Self.kernels.count - 1])
    // With the ridge that is the default rounding decides of no code here.
    let options = ["--damping", "0.001", "--bits", "8"]
    try #require(try quantize("expected", options, kernels: other).status == 0)
    try #require(try quantize("usual", options, kernels: usual).status == 0)
    #expect(try weights("expected") != weights("usual"))
    let job = options + ["--resume", directory.file("job")]
    let journal = directory.file("job/journal")
    let killed = try quantize("output", job, kernels: other) {
      $0.end(by: SIGKILL, whenMoreThan: 5, in: journal)
    }
    try #require(killed.status == SIGKILL)
    let run = try quantize("output", job, kernels: usual)
    #expect(run.status == 0 && run.errors.contains("linears are done"), "\(run.errors)")
    #expect(!run.errors.contains("going on by"), "\(run.errors)")
    #expect(try weights("output") == weights("expected"))
  }
}
