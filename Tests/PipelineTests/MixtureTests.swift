import Checkpoint
import Compute
import ComputeOpenBLAS
import Pipeline
import Solvers
import Tensors
import TestSupport
import Testing

@testable import Decoder

/// Mixtures of experts, one expert after the other, against what they are to come to.
struct MixtureTests {
  static let fixtures = [
    "mixtral", "qwen2-moe", "qwen3-moe", "qwen3-5-moe", "olmoe", "glm4-moe", "minimax-m2", "deepseek-v3",
    "ernie-moe", "hy-v3",
    "deepseek-v2-lite", "gemma4-moe", "gpt-oss", "gpt-oss-mxfp4", "llama4", "phimoe", "granite-moe",
  ]

  @Test func `many experts are reached by no token, and are quantized all the same`() throws {
    let run = try LoopRun("qwen3-moe", batchSamples: 2)
    var idle = 0
    try run.forEachMixture { layer, stage, input in
      for (expert, share) in zip(stage.experts, layer.route(input).shares) where share.tokens.isEmpty {
        idle += 1
        #expect(run.modules.contains(layer.moduleName(of: expert.expansion.linears[0])))
      }
    }
    #expect(idle > 0)
  }

  /// Σ of an expert's halves: of its own tokens, and as often as half their width, or as the settings say, of what all
  /// tokens are like; or of all tokens.
  @Test(
    arguments: fixtures,
    [ExpertSettings(prior: 0.5), ExpertSettings(prior: 2.25), ExpertSettings(isShared: true, prior: 0.5)])
  func `every expert is solved for its own tokens and a prior of all`(
    _ fixture: String, _ settings: ExpertSettings
  ) throws {
    let run = try LoopRun(fixture, batchSamples: 3, experts: settings)
    let share = Float(try #require(settings.prior))
    let backend = run.backend
    func gram(_ rows: Matrix) -> Matrix {
      let gram = Matrix(rows: rows.columns, columns: rows.columns)
      if rows.rows > 0 { backend.accumulateGram(rows, into: gram) }
      backend.symmetrize(gram)
      return gram
    }
    func expect(_ module: String, _ own: Matrix, _ prior: Matrix, times factor: Float) throws {
      let expected = own
      backend.scale(prior, by: factor)
      backend.add(prior, into: expected)
      let found = try #require(run.grams[module])
      let largest = expected.elements.map(abs).max() ?? 0
      let difference = zip(found.elements, expected.elements).map { abs($0 - $1) }.max() ?? .infinity
      #expect(difference <= 2e-4 * largest, "\(module): \(difference) of \(largest)")
    }
    try run.forEachMixture { layer, stage, input in
      for (expert, reached) in zip(stage.experts, layer.route(input).shares) {
        // What an expert reads of some tokens, or all.
        func read(_ tokens: [Int], _ factors: [Float]) -> Matrix {
          let rows = Matrix(rows: tokens.count, columns: input.columns)
          rows.gather(tokens[...], from: input)
          layer.prepare(rows, for: expert, factors: factors[...])
          return rows
        }
        let isScaled = layer.scalesInput(of: expert)
        let energy = reached.factors.reduce(0) { $0 + $1 * $1 }
        let mean = reached.factors.isEmpty ? 1 : energy / Float(reached.factors.count)
        let rows = read(reached.tokens, reached.factors)
        let all = read(Array(0..<input.rows), [Float](repeating: 1, count: input.rows))
        let width = Float(input.columns)
        for linear in expert.expansion.linears {
          let module = layer.moduleName(of: linear)
          let none = Matrix(rows: input.columns, columns: input.columns)
          if layer.hasOwnInput(expert) {
            try expect(module, gram(all), none, times: 1)
          } else if settings.isShared {
            try expect(module, none, gram(all), times: 1)
          } else {
            try expect(
              module, gram(rows), gram(all),
              times: (isScaled ? mean : 1) * share * width / Float(input.rows))
          }
        }
        // A quantized expert's own halves, as the layer has all of them quantized here.
        let inner = rows.rows > 0 ? layer.intermediate(of: expert, rows).copy() : nil
        let weighted = inner ?? Matrix(rows: 0, columns: expert.contraction.linears[0].inFeatures)
        if !isScaled { weighted.multiplyRows(by: reached.factors[...]) }
        let innerWidth = weighted.columns
        let count = min(input.rows, 2 * innerWidth)
        let others = read(
          (0..<count).map { $0 * input.rows / count }, [Float](repeating: mean.squareRoot(), count: count))
        let prior = gram(layer.intermediate(of: expert, others).copy())
        try expect(
          layer.moduleName(of: expert.contraction.linears[0]), gram(weighted), prior,
          times: (isScaled ? 1 : mean) * share * Float(innerWidth) / Float(count))
      }
    }
  }

  static let cases = [
    ResumeCase("qwen2-moe"), ResumeCase("qwen3-moe", "layer") { $0.target = .layer },
    ResumeCase("qwen3-5-moe", "all samples") { $0.targetShare = 1 },
    ResumeCase("gemma4-moe", "16 bits") { $0.targetShare = 1 },
    ResumeCase("gpt-oss-mxfp4", "dense") { $0.formats = [.dense] },
    ResumeCase("llama4"),
    ResumeCase("glm4-moe", "rules") { $0.rules = [#"\.1\.mlp\.experts=skip"#, "shared_experts=bits:8"] },
  ]

  @Test func `the experts of a layer go onto one grid, as runtimes have them in one matrix`() throws {
    let checkpoint = try CheckpointReader(directory: TestFiles.model("glm4-moe"))
    let model = try ModelDescription(checking: checkpoint, source: checkpoint)
    var settings = QuantizationSettings()
    settings.rules = [#"experts\.3\.=skip"#]
    let expected = RecipeError.fusedModulesDiffer(
      "model.layers.1.mlp.experts.0.gate_proj", "model.layers.1.mlp.experts.3.gate_proj")
    #expect(throws: expected) { try settings.recipe().resolve(for: model).linears }
    // Layers among themselves, and the shared expert, may differ.
    settings.rules = [#"\.1\.mlp\.experts=bits:8"#, "shared_experts=bits:3"]
    _ = try settings.recipe().resolve(for: model).linears
  }

  @Test func `experts may take fewer passes than the rest`() throws {
    let checkpoint = try CheckpointReader(directory: TestFiles.model("qwen3-moe"))
    let model = try ModelDescription(checking: checkpoint, source: checkpoint)
    var settings = QuantizationSettings()
    settings.rules = [#"[.]experts[.]=passes:3"#]
    for (module, treatment) in try settings.recipe().resolve(for: model).linears {
      let solver = try #require(treatment.solver as? QuantEase)
      #expect(solver.settings.passes == (module.contains(".experts.") ? 3 : settings.passes))
    }
    settings.rules = [#"experts=solver:gptq,passes:3"#]
    #expect(throws: RecipeError.self) { try settings.recipe().resolve(for: model).linears }
    #expect(throws: RecipeError.self) { try RecipeRule(parsing: "a=passes:0", solvers: [:]) }
  }

  @Test(arguments: cases)
  func `a process that ends anywhere leaves enough to go on to the same bytes`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    let run = try bench.watchedRun()
    #expect(run.result == expected)
    let moments = run.moments.filter(\.isAfterLinear)
    // Some within a layer's experts, and the last one.
    for index in stride(from: 1, to: moments.count, by: max(1, moments.count / 7)) {
      #expect(try bench.goOn(from: moments[index]).result == expected, "\(moments[index])")
      var moment = moments[index]
      moment.cache = nil
      #expect(try bench.goOn(from: moment).result == expected, "\(moments[index]), without its cache")
    }
    let last = try #require(moments.last)
    #expect(try bench.goOn(from: last).result == expected)
  }

  @Test(arguments: cases)
  func `the threads make no difference`(_ test: ResumeCase) throws {
    let results = try [1, 2].map { threads in
      try ResumeBench(test, backend: OpenBLASBackend(threads: threads)).uninterrupted()
    }
    #expect(results[0] == results[1])
  }
}
