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

  @Test func `rows of tokens are cut to the length that is asked for, and a question to none`() throws {
    let bench = try Workbench()
    let file = try bench.directory.write(
      randomTokens: 3, of: 40, vocabulary: 64, seed: 5, to: "rows.safetensors")
    func evaluation(_ options: String...) throws -> (windows: Double?, tokens: Double?) {
      let result = try Quantease.json(["eval", bench.model, "--tokens", file] + options)
      return (result["windows"]?.double, result["tokens"]?.double)
    }
    #expect(try evaluation() == (3, 120))
    // Of every row two, and what is left of it is none.
    #expect(try evaluation("--sequence-length", "16") == (6, 96))
    #expect(try evaluation("--sequence-length", "16", "--windows", "4") == (4, 64))
    let question = try Quantease([
      "eval", bench.model, "--task", bench.directory.file("task.jsonl"), "--sequence-length", "16",
    ])
    #expect(question.status == 64 && question.errors.contains("--sequence-length would be ignored"))
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

  // MARK: Questions

  /// A model whose tokens are the words w0 to w63.
  private func bench(_ lines: [String]) throws -> Workbench {
    let bench = try Workbench()
    let words = (0..<64).map { "\"w\($0)\":\($0)" }.joined(separator: ",")
    try bench.directory.write(
      """
      {"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
      "pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,
      "model":{"type":"WordLevel","vocab":{\(words)},"unk_token":"w63"}}
      """, to: "model/tokenizer.json")
    try bench.directory.write(lines.joined(separator: "\n"), to: "task.jsonl")
    return bench
  }

  /// The log-likelihoods of a row's tokens behind the first `given`, by perplexities.
  private func logLikelihood(_ bench: Workbench, _ row: [Int64], given: Int) throws -> Double {
    func total(_ row: [Int64]) throws -> Double {
      if row.count < 2 { return 0 }
      try FileSystem.removeTree(bench.directory.file("row.safetensors"))
      let file = try bench.directory.write(tokens: [row], to: "row.safetensors")
      let perplexity = try #require(
        Quantease.json("eval", bench.model, "--tokens", file)["perplexity"]?.double)
      return -log(perplexity) * Double(row.count - 1)
    }
    return try total(row) - total(Array(row.prefix(given)))
  }

  @Test(.enabled(if: Python.hasTokenizers, "needs a Python with tokenizers; set QUANTEASE_PYTHON"))
  func `answers are told by their likelihood, of all lengths`() throws {
    let questions: [(query: [Int64], choices: [[Int64]], gold: Int)] = [
      ([5, 9, 3], [[7], [12, 30, 2], [40, 41]], 1), ([11], [[60, 4], [8, 9]], 0),
      ([2, 3, 4, 5, 6, 7], [[1], [0]], 1),
    ]
    func text(_ ids: [Int64]) -> String { ids.map { "w\($0)" }.joined(separator: " ") }
    let bench = try bench(
      questions.map { question in
        let choices = question.choices.map { "\"\(text($0))\"" }.joined(separator: ", ")
        return
          "{\"query\": \"\(text(question.query))\", \"choices\": [\(choices)], \"gold\": \(question.gold)}"
      })
    var (right, normalized) = (0, 0)
    for question in questions {
      let values = try question.choices.map {
        try logLikelihood(bench, question.query + $0, given: question.query.count)
      }
      let perCharacter = zip(values, question.choices).map { $0 / Double(text($1).count) }
      if values.max() == values[question.gold] { right += 1 }
      if perCharacter.max() == perCharacter[question.gold] { normalized += 1 }
    }
    let result = try Quantease.json("eval", bench.model, "--task", bench.directory.file("task.jsonl"))
    #expect(result["questions"]?.int == 3 && result["reference"] == nil)
    #expect(try abs(#require(result["model"]?["accuracy"]?.double) - Double(right) / 3) < 1e-9)
    #expect(
      try abs(#require(result["model"]?["normalized_accuracy"]?.double) - Double(normalized) / 3) < 1e-9)
  }

  @Test(.enabled(if: Python.hasTokenizers, "needs a Python with tokenizers; set QUANTEASE_PYTHON"))
  func `last words are asked for, compared with the source's, and added to the report`() throws {
    let rows: [[Int64]] = [[5, 9, 3], [11, 60], [2, 3, 4, 5, 6, 7]]
    let bench = try bench(rows.map { "{\"text\": \"\($0.map { "w\($0)" }.joined(separator: " "))\"}" })
    bench.options = ["--bits", "3"]
    try bench.report()
    let mean = try rows.map { try logLikelihood(bench, $0, given: $0.count - 1) }.reduce(0, +) / 3
    let task = ["--task", bench.directory.file("task.jsonl")]
    let result = try Quantease.json(["eval", bench.output, "--against", bench.model, "--report"] + task)
    let perplexity = try #require(result["reference"]?["perplexity"]?.double)
    #expect(abs(perplexity / exp(-mean) - 1) < 1e-4)
    #expect(result["model"]?["perplexity"]?.double != perplexity)
    let report = try JSONValue(contentsOf: bench.output + "/quantease_report.json")
    #expect(report["tasks"]?.array?.count == 1 && report["tasks"]?.array?[0]["figures"] == result)
    let page = try String(contentsOfFile: bench.output + "/quantease_report.html", encoding: .utf8)
    #expect(page.contains("<h2>Questions</h2>") && page.contains("task.jsonl"))
    let said = try Quantease(["eval", bench.output, "--against", bench.model, "--windows", "2"] + task).output
    #expect(said.contains("of 2 last words") && said.contains("lost, which it had right"), "\(said)")
  }

  @Test(.enabled(if: Python.hasTokenizers, "needs a Python with tokenizers; set QUANTEASE_PYTHON"))
  func `a line that asks nothing is told with what it lacks`() throws {
    let bench = try bench([#"{"text": "w1 w2"}"#, #"{"query": "w1", "choices": ["w2"]}"#])
    let result = try Quantease(["eval", bench.model, "--task", bench.directory.file("task.jsonl")])
    #expect(
      result.status == 65 && result.errors.contains("task.jsonl, line 2: no question that is known"),
      "\(result.errors)")
  }
}
