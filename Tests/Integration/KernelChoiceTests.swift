import Checkpoint
import ComputeOpenBLAS
import Foundation
import TestSupport
import Testing

/// Which of OpenBLAS's kernels the programs compute with, and what they say of it.
@Suite(.enabled(if: KernelSet("Prescott").isOlderThanProcessor, "needs an x86-64 processor with AVX"))
struct KernelChoiceTests {
  private let bench: Workbench

  init() throws { bench = try Workbench() }

  private func inspect(
    environment: [String: String] = [:], without missing: [String] = []
  ) throws -> (kernels: String, errors: String) {
    let run = try Quantease(
      ["inspect", bench.model, "--json"], environment: environment, without: missing)
    try #require(run.status == 0, "\(run.errors)")
    let kernels = try #require(JSONValue(parsing: Array(run.output.utf8))["kernels"]?.string)
    return (String(kernels.dropFirst("OpenBLAS ".count)), run.errors)
  }

  @Test func `the best are taken by themselves`() throws {
    let found = try inspect(without: ["OPENBLAS_CORETYPE"])
    #expect(!KernelSet(found.kernels).isOlderThanProcessor && found.errors == "", "\(found)")
  }

  @Test func `what a person has chosen stands, with a warning`() throws {
    bench.environment = ["OPENBLAS_CORETYPE": "Prescott"]
    let run = try bench.quantize()
    #expect(
      run.status == 0 && run.errors.contains("warning: OpenBLAS computes with its Prescott kernels"),
      "\(run.errors)")
    #expect(run.errors.contains("computing by OpenBLAS Prescott\n"))
    let report = try JSONValue(contentsOf: bench.output + "/quantease_report.json")
    #expect(report["settings"]?["kernels"]?.string == "OpenBLAS Prescott")
  }

  @Test func `a daemon's worker says so in log and report`() throws {
    let daemon = try DaemonBench()
    try daemon.start(environment: ["OPENBLAS_CORETYPE": "Prescott"])
    try daemon.drop("tiny")
    try daemon.waitForOutput("tiny")
    let output = "\(daemon.spool.output)/tiny"
    let report = try JSONValue(contentsOf: output + "/quantease_report.json")
    #expect(report["settings"]?["kernels"]?.string == "OpenBLAS Prescott")
    let log = try String(contentsOfFile: output + "/quantease_job.log", encoding: .utf8)
    #expect(log.contains("computing by OpenBLAS Prescott"))
    #expect(log.contains("OpenBLAS computes with its Prescott kernels, which are older"))
    #expect(daemon.log.contains("OpenBLAS computes with its Prescott kernels, which are older"))
    #expect(try daemon.stop() == 0)
  }

  /// Names that the library has, of each level of x86-64; one that it does not have it passes over. Newer ones than these take
  /// more than a level says, and are taken by themselves where they belong.
  private static let names = [
    "Prescott", "Core2", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX",
  ].filter { KernelSet($0).runsHere }

  @Test(arguments: names) func `every set that there is computes right`(_ name: String) throws {
    let found = try inspect(environment: ["OPENBLAS_CORETYPE": name])
    if found.kernels.lowercased() != name.lowercased() { return }
    #expect(!found.errors.contains("wrong values"))
    #expect(found.errors.contains("older than this processor") == KernelSet(name).isOlderThanProcessor)
  }

  private static let compiler = ["/usr/bin/cc", "/usr/bin/clang", "/opt/swift/bin/clang"]
    .first(where: FileManager.default.isExecutableFile(atPath:))

  @Test(.enabled(if: compiler != nil, "needs a compiler of C"))
  func `a library that takes what it likes is asked once for each set, and told of`() throws {
    let compiler = try #require(Self.compiler)
    let source = try bench.directory.write(
      "const char *openblas_get_corename(void) { return \"Prescott\"; }\n", to: "stub.c")
    let stub = bench.directory.file("stub.so")
    try #require(try Quantease(["-shared", "-fPIC", "-o", stub, source], program: compiler).status == 0)
    let found = try inspect(environment: ["LD_PRELOAD": stub], without: ["OPENBLAS_CORETYPE"])
    #expect(found.kernels == "Prescott")
    #expect(
      found.errors.contains(
        "OpenBLAS computes with its Prescott kernels, which are older than this processor and slow on it; take a newer"
      ),
      "\(found.errors)")
  }
}
