import Calibration
import Checkpoint
import Decoder
import Export
import TestSupport
import Testing

@testable import Pipeline

/// What a run publishes that chooses the bits of every linear.
struct AllocationRunTests {
  private func bench(
    _ fixture: String, _ change: (inout QuantizationSettings) -> Void = { _ in }
  ) throws -> ResumeBench {
    try ResumeBench(
      ResumeCase(fixture) { settings in
        change(&settings)
        if settings.averageBits != nil && settings.bitChoices.isEmpty {
          settings.bitChoices = [2, 3, 4, 5, 6, 8]
        }
      }, memoryBudgetBytes: 1 << 40)
  }

  @Test func `what was measured stands, and a run that goes on measures nothing`() throws {
    let chosen = try bench("llama") { ($0.averageBits, $0.targetShare) = (4.9, 0.25) }
    let run = try chosen.watchedRun()
    let isTold = { (steps: [String]) in steps.contains { $0.contains("how many bits each linear needs") } }
    #expect(isTold(run.steps))
    for moment in [run.moments.first, run.moments.last].compactMap(\.self) {
      let later = try chosen.goOn(from: moment)
      #expect(!isTold(later.steps) && later.result == run.result)
    }
    // It is the result of these bits, as if a person had given them by rules.
    let allocation = try #require(try chosen.report().settings.allocation)
    let rules = run.result.rows.map { "^\($0.name)$=bits:\($0.bits)" }
    let ruled = try bench("llama") { ($0.rules, $0.bits, $0.targetShare) = (rules, 5, 0.25) }
    var expected = try ruled.uninterrupted()
    expected.files["config.json"] = run.result.files["config.json"]
    #expect(expected == run.result)
    #expect(Set(run.result.rows.map(\.bits)).count > 1)
    #expect(allocation.divergence > 0 && allocation.standardDivergence > 0)
  }

  @Test(arguments: [3.9, 4.9, 6.5])
  func `linears take as many bits as was asked for, and fused ones are alike`(_ average: Double) throws {
    let report = try bench("llama") { $0.averageBits = average }.report()
    let allocation = try #require(report.settings.allocation)
    #expect(report.totals.bitsPerWeight <= average && report.totals.bitsPerWeight > average - 0.3)
    #expect(abs(allocation.reachedBits - report.totals.bitsPerWeight) < 1e-9)
    func bits(_ name: String) -> [Int] {
      report.linears.filter { $0.name.hasSuffix(name) }.map(\.bits)
    }
    #expect(bits("q_proj") == bits("k_proj") && bits("q_proj") == bits("v_proj"))
    #expect(bits("gate_proj") == bits("up_proj"))
    for choice in allocation.choices {
      #expect(report.linears.first { $0.name == choice.module }?.bits == choice.bits)
    }
  }

  @Test(arguments: [(true, [2, 3, 4, 8]), (false, [4, 8])])
  func `widths are those that runtimes load side by side, where nobody names any`(
    _ isSymmetric: Bool, _ expected: [Int]
  ) throws {
    let bench = try ResumeBench(
      ResumeCase("llama") { ($0.averageBits, $0.symmetric) = (5.5, isSymmetric) }, memoryBudgetBytes: 1 << 40)
    let report = try bench.report()
    #expect(Set(report.linears.map(\.bits)).isSubset(of: expected))
    #expect(Set(report.linears.map(\.bits)).count > 1)
    let loads = Dictionary(uniqueKeysWithValues: report.loadsIn.map { ($0.runtime, $0.loads) })
    // transformers has one asymmetric grid for all.
    #expect(loads == ["vLLM": true, "transformers": isSymmetric])
  }

  @Test func `what a rule says stays, and counts`() throws {
    let report = try bench("llama") {
      ($0.averageBits, $0.bitChoices) = (4.9, [3, 4])
      $0.rules = ["down_proj=bits:8", "layers.0.self_attn.o_proj=skip"]
    }.report()
    for linear in report.linears {
      #expect(linear.name.contains("down_proj") ? linear.bits == 8 : [3, 4].contains(linear.bits))
    }
    #expect(!report.linears.contains { $0.name.contains("layers.0.self_attn.o_proj") })
    #expect(report.totals.bitsPerWeight <= 4.9)
  }

  @Test func `a rule for the group size alone leaves the bits to be chosen, of those that there are`() throws
  {
    let report = try bench("llama") {
      ($0.averageBits, $0.bitChoices, $0.groupSize) = (6.4, [8, 4, 4], 16)
      $0.rules = ["down_proj=group-size:32"]
    }.report()
    #expect(Set(report.linears.map(\.bits)) == [4, 8])
    #expect(report.linears.allSatisfy { $0.groupSize == ($0.name.contains("down_proj") ? 32 : 16) })
  }

  @Test(arguments: [
    ("llama-tied", QuantizationSettings.Rotation.residual, 0.0), ("llama", .auto, 0.05),
    ("llama", .off, 0.05),
  ])
  func `it goes with a rotation, and with outliers, which count`(
    _ fixture: String, _ rotation: QuantizationSettings.Rotation, _ outliers: Double
  ) throws {
    let average = 5 + 80 * outliers
    let report = try bench(fixture) {
      ($0.averageBits, $0.rotate, $0.outliers) = (average, rotation, outliers)
    }.report()
    let allocation = try #require(report.settings.allocation)
    #expect(abs(allocation.reachedBits - report.totals.bitsPerWeight) < 0.02)
    #expect(report.totals.bitsPerWeight <= average + 1e-9 && report.totals.bitsPerWeight > average - 0.5)
  }

  @Test func `the fewest bits that there are can be asked for, to the last digit`() throws {
    func least(_ symmetric: Bool) throws -> Double {
      let bench = try bench("llama") { ($0.bits, $0.symmetric) = (2, symmetric) }
      return try bench.report().totals.bitsPerWeight
    }
    for symmetric in [false, true] {
      let least = try least(symmetric)
      let report = try bench("llama") { ($0.averageBits, $0.symmetric) = (least, symmetric) }.report()
      #expect(report.linears.allSatisfy { $0.bits == 2 } && report.totals.bitsPerWeight == least)
    }
  }

  @Test(arguments: [
    "mixtral", "qwen2-moe", "deepseek-v3", "gpt-oss", "qwen3-next", "falcon-40b", "gemma4-moe",
  ])
  func `every family is measured, each expert like its fellows`(_ fixture: String) throws {
    let report = try bench(fixture) { ($0.averageBits, $0.formats) = (5.5, [.dense]) }.report()
    let allocation = try #require(report.settings.allocation)
    #expect(report.totals.bitsPerWeight <= 5.5 && report.totals.bitsPerWeight > 4.5)
    #expect(allocation.standardDivergence > 0 && allocation.divergence.isFinite)
    let experts = report.linears.filter { $0.expert != nil }
    for (_, ofLayer) in Dictionary(grouping: experts, by: \.layer) {
      #expect(Set(ofLayer.map(\.bits)).count == 1)
    }
  }

  @Test func `a decision that fits no grid is told, and no trap`() throws {
    let checkpoint = try CheckpointReader.open(TestFiles.model("llama"))
    let model = try ModelDescription(checking: checkpoint, source: checkpoint)
    let recipe = try QuantizationSettings().recipe()
    var resolved = try recipe.resolve(for: model, in: checkpoint)
    let problem = try recipe.allocationProblem(
      averageBits: 5, resolved, of: model, in: checkpoint, formats: [.dense], widths: [4, 8])
    var choices = problem.units.map { $0.candidates[1].choice(of: $0.modules[0]) }
    try resolved.choose(choices, of: problem.units)
    #expect(resolved.linears.values.allSatisfy { $0.gridFormat.bitWidth == .eight })
    choices[0].bits = 3
    #expect(throws: RecipeError.unknownChoice(choices[0].module)) {
      try resolved.choose(choices, of: problem.units)
    }
  }

  @Test(arguments: TestFiles.ggufs)
  func `the types of a GGUF file are chosen tensor by tensor, embeddings and head with them`(
    _ fixture: String
  ) throws {
    let bench = try bench("\(fixture).gguf") { ($0.averageBits, $0.formats) = (6.2, [.gguf]) }
    let report = try bench.report()
    let result = try CheckpointReader.open(bench.directory.file("expected"))
    let gguf = try #require(result.gguf)
    #expect(gguf.file.hasSuffix("-6.2bpw.gguf") && report.settings.gguf?.file == "6.2bpw")
    let quantized = gguf.tensors.filter { $0.type.plainType == nil }
    let bits = quantized.reduce(0) { $0 + 8 * $1.bytes.count }
    let weights = quantized.reduce(0) { $0 + $1.shape.reduce(1, *) }
    let allocation = try #require(report.settings.allocation)
    #expect(abs(Double(bits) / Double(weights) - allocation.reachedBits) < 1e-9)
    #expect(allocation.reachedBits <= 6.2 && allocation.reachedBits > 5)
    #expect(allocation.choices.allSatisfy { $0.type != nil })
    #expect(report.settings.gguf?.fallbacks == [])
  }

  @Test func `what cannot be chosen is refused before anything is measured`() throws {
    func steps(_ change: (inout QuantizationSettings) -> Void) throws -> [String] {
      try bench("llama", change).watchedRun().steps
    }
    #expect {
      _ = try steps { $0.averageBits = 2.01 }
    } throws: {
      ($0 as? SettingsError)?.key == "average-bits" && "\($0)".contains("take 2.46 to 8.6 bits")
    }
    #expect(throws: ExportError.self) {
      _ = try steps { ($0.averageBits, $0.formats) = (4.9, [.gptq]) }
    }
    // Of linears that rules have given their bits, and of none at all.
    for rule in ["proj=bits:4", "proj=skip"] {
      #expect {
        _ = try steps { ($0.averageBits, $0.rules) = (4.5, [rule]) }
      } throws: {
        "\($0)".contains("nothing to choose")
      }
    }
    #expect {
      _ = try bench("llama.gguf") {
        ($0.averageBits, $0.formats, $0.bitChoices) = (3, [.gguf], [2, 3])
      }.uninterrupted()
    } throws: {
      ($0 as? SettingsError)?.key == "bit-choices"
    }
    var settings = QuantizationSettings()
    settings.bitChoices = [4]
    #expect(throws: SettingsError.self) { try settings.validate() }
    (settings.averageBits, settings.bitChoices) = (4.9, [7])
    #expect(throws: SettingsError.self) { try settings.validate() }
    (settings.bitChoices, settings.ggufPure) = ([], true)
    #expect(throws: SettingsError.self) { try settings.validate() }
    (settings.ggufPure, settings.samples) = (false, 1)
    #expect(throws: SettingsError.self) { try settings.validate() }
    // A plan refuses what a run does.
    settings.samples = 8
    settings.formats = [.gptq]
    #expect(throws: ExportError.self) {
      try RunPlan(model: TestFiles.model("llama"), settings: settings, symlinks: .follow)
    }
    // A trial that there is no memory for is no silent choice.
    #expect {
      _ = try ResumeBench(ResumeCase("llama") { $0.averageBits = 4.9 }).uninterrupted()
    } throws: {
      ($0 as? PipelineError)?.isLackOfMemory == true
    }
  }
}
