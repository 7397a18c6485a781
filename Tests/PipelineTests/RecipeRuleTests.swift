import Checkpoint
import Decoder
import Solvers
import TestSupport
import Testing

@testable import Pipeline

/// What rules make of a recipe of the published algorithms.
struct RecipeRuleTests {
  private func treatments(
    _ rules: [String], _ change: (inout QuantizationSettings) -> Void
  ) throws -> [String: Treatment] {
    let checkpoint = try CheckpointReader(directory: TestFiles.model("llama"))
    let model = try ModelDescription(checking: checkpoint, source: checkpoint)
    var settings = QuantizationSettings()
    (settings.preset, settings.rules) = (.paper, rules)
    change(&settings)
    return try settings.recipe().resolve(for: model).linears
  }

  /// What carries the treatment of the first layer's queries out.
  private func quantizer(
    _ rules: [String], _ change: (inout QuantizationSettings) -> Void = { _ in }
  ) throws -> OutlierAwareQuantEase {
    let treatment = try treatments(rules, change)["model.layers.0.self_attn.q_proj"]
    return try #require(treatment?.quantizer as? OutlierAwareQuantEase)
  }

  @Test func `passes are the rounds of the published algorithm with outliers`() throws {
    for (module, treatment) in try treatments(
      ["q_proj=passes:60"], { ($0.passes, $0.outliers, $0.structuredOutliers) = (3, 0.05, true) })
    {
      let quantizer = try #require(treatment.quantizer as? OutlierAwareQuantEase)
      let rounds = module.hasSuffix("q_proj") ? 60 : 3
      #expect(
        quantizer.settings == OutlierSettings(share: 0.05, isStructured: true, method: .paper(rounds: rounds))
      )
      #expect(quantizer.base.settings == .paper(passes: rounds))
    }
  }

  @Test func `outliers of a rule are found as the recipe's solver finds them`() throws {
    let published = try quantizer(["q_proj=outliers:0.01"]) { $0.passes = 7 }
    #expect(published.settings == OutlierSettings(share: 0.01, method: .paper(rounds: 7)))
    let standard = try quantizer(["q_proj=outliers:0.01,passes:7"]) { $0.preset = .standard }
    #expect(standard.settings == OutlierSettings(share: 0.01))
    #expect(standard.base.settings.passes == 7)
    // A descent from the weights alone is not yet the published one.
    let begun = try quantizer(["q_proj=outliers:0.01"]) { ($0.preset, $0.start) = (.standard, .weights) }
    #expect(begun.settings == OutlierSettings(share: 0.01))
    let others = try treatments(["q_proj=outliers:0.01"]) { _ in }
    #expect(
      others.allSatisfy { module, treatment in module.hasSuffix("q_proj") || treatment.outliers == nil })
  }

  @Test(arguments: [
    ["q_proj=outliers:0.02,passes:60"], ["q_proj=passes:60,outliers:0.02"],
    ["q_proj=outliers:0.02", "q_proj=passes:60"], ["q_proj=passes:60", "q_proj=outliers:0.02"],
  ])
  func `the order of passes and outliers makes no difference`(_ rules: [String]) throws {
    for share in [0, 0.05] {
      let found = try quantizer(rules) { $0.outliers = share }
      #expect(found.settings == OutlierSettings(share: 0.02, method: .paper(rounds: 60)))
      #expect(found.base.settings.passes == 60)
    }
  }

  @Test func `a rule's solver brings its own way to find outliers`() throws {
    let found = try quantizer(["q_proj=solver:quantease,outliers:0.01"]) { $0.solver = .gptq }
    #expect(found.settings == OutlierSettings(share: 0.01, method: .paper(rounds: 25)))
  }
}
