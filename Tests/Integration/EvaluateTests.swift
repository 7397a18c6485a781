import Checkpoint
import Foundation
import SystemIO
import TestSupport
import Testing

/// `quantease eval`: perplexity, and how far a result is from its source.
struct EvaluateTests {
  @Test func `eval counts the windows and tokens that it has used`() throws {
    let bench = try Workbench()
    let result = try Quantease.json("eval", bench.model, "--tokens", bench.calibration, "--windows", "5")
    #expect(Set(try #require(result.object).keys) == ["perplexity", "tokens", "windows", "seconds"])
    #expect(result["windows"]?.int == 5)
    #expect(result["tokens"]?.int == 5 * 32)
    #expect(try #require(result["perplexity"]?.double) > 1)
    // A random model knows nothing of random tokens: its guess is as good as one among 64, or worse.
    #expect(try (40..<4_000).contains(#require(result["perplexity"]?.double)))
  }

  @Test func `eval tells how far a result is from its source, and adds it to the report`() throws {
    let bench = try Workbench()
    bench.options = ["--bits", "3"]
    try bench.report()
    let tokens = ["--tokens", bench.calibration]
    func perplexity(_ model: String) throws -> Double {
      try #require(Quantease.json(["eval", model] + tokens)["perplexity"]?.double)
    }
    let result = try Quantease.json(["eval", bench.output, "--against", bench.model, "--report"] + tokens)
    let against = try #require(result["against"])
    func figure(_ name: String) throws -> Double { try #require(against[name]?.double, "\(name)") }
    let (own, source) = (try perplexity(bench.output), try perplexity(bench.model))
    #expect(try result["perplexity"]?.double == own && figure("reference_perplexity") == source)
    #expect(try abs(figure("perplexity_ratio") - own / source) < 1e-6)
    #expect(try (0.0001..<0.1).contains(figure("perplexity_ratio_error")))
    let spread = try ["median", "mean", "percentile99", "maximum"].map(figure)
    #expect(spread == spread.sorted() && spread[0] > 0)
    #expect(try (0.1..<1).contains(figure("same_choice")))
    // States in the cache's file are no other than those in memory.
    let again = try Quantease.json(
      ["eval", bench.output, "--against", bench.model, "--states", "cache"] + tokens)
    #expect(again["against"] == result["against"])

    let report = try JSONValue(contentsOf: bench.output + "/quantease_report.json")
    let evaluations = try #require(report["evaluations"]?.array)
    #expect(evaluations.count == 1 && evaluations[0]["figures"]?["against"] == result["against"])
    #expect(evaluations[0]["reference"]?.string == "model")
    let page = try String(contentsOfFile: bench.output + "/quantease_report.html", encoding: .utf8)
    #expect(page.contains("On other text"))

    let itself = try Quantease.json(["eval", bench.model, "--against", bench.model] + tokens)["against"]
    #expect(itself?["maximum"]?.double == 0 && itself?["same_choice"]?.double == 1)
    try OutOfCoreTests.makeModel(layers: 1, at: bench.directory.file("stranger"))
    let other = try Quantease(
      ["eval", bench.output, "--against", bench.directory.file("stranger")] + tokens)
    #expect(other.status == 65 && other.errors.contains("the model that it was made of"), "\(other.errors)")
  }
}
