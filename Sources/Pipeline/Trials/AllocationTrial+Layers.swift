import Calibration
import Compute
import Decoder
import Quantization
import Solvers
import Tensors

// What quantized linears of a layer do to the states behind it.
extension AllocationTrial {
  /// Takes the model's own states through a layer, and quantizes one linear of it after the other.
  /// - Returns: the states behind a layer that has all of them quantized; nil if there is nothing to choose
  func disturb(
    _ layer: DecoderLayer, _ reference: inout TrialStates, _ gathered: inout TrialStates
  ) throws -> Disturbed? {
    var starts: [TrialStates] = []
    for stage in layer.stages {
      starts.append(reference.copy)
      reference.advance(through: stage, of: layer)
    }
    let sum = backend.copy(of: reference.residual)
    // Of every token on its own: a few tokens' states may be thousands of times as large as all others'.
    let energies = backend.rowDots(sum, sum)
    var parts: [Disturbed.Part] = []
    for (number, stage) in layer.stages.enumerated() {
      advanced()
      let isChosen = stage.linears.contains { unitOfModule[layer.moduleName(of: $0)] != nil }
      let gram =
        isChosen && stage.experts.isEmpty
        ? GramMatrix(inFeatures: stage.inFeatures, operands: run.operands, backend: backend) : nil
      gathered.advance(through: stage, of: layer, summing: gram)
      guard isChosen else { continue }
      for disturbance in try gram.map({ try solved(stage, layer, $0) }) ?? rounded(stage, layer) {
        advanced()
        try disturbance.apply()
        var states = starts[number].copy
        for later in layer.stages[number...] { states.advance(through: later, of: layer) }
        backend.subtract(reference.residual, from: states.residual)
        let change = zip(backend.rowDots(states.residual, states.residual), energies).reduce(0) {
          sum, token in
          sum + (token.1 > 0 ? token.0 / token.1 : 0)
        }
        backend.add(states.residual, into: sum)
        parts.append(
          Disturbed.Part(unit: disturbance.unit, change: change, errors: disturbance.errors))
        layer.unload(disturbance.linears)
        try layer.load(stage)
      }
    }
    guard !parts.isEmpty else { return nil }
    return Disturbed(residual: sum, parts: parts)
  }

  /// Linears that are quantized together, and how.
  private struct Disturbance {
    let unit: Int
    let linears: [LayerLinear]
    /// By candidate of the unit.
    let errors: [Double]
    /// Has the layer run with what they are quantized to.
    let apply: () throws -> Void
  }

  /// The linears of a stage, each solved for what the stage reads.
  private func solved(_ stage: Stage, _ layer: DecoderLayer, _ gram: GramMatrix) throws -> [Disturbance] {
    let problem = try backend.problem(gram.values, of: stage.title, layer: layer.index)
    var begun: [(linear: QuantizationRun.BegunLinear, unit: Int, trials: GridComparison)] = []
    for linear in stage.linears {
      let name = layer.moduleName(of: linear)
      guard let unit = unitOfModule[name], let treatment = run.treatments[name] else { continue }
      let weights = try layer.storedWeights(of: linear)
      let trials = try GridComparison(
        rows(of: weights, Self.comparedRows), units[unit].candidates.map(\.grid), treatment, problem, backend)
      begun.append(
        (
          try run.begin(
            name, linear, LinearRows(weights, backend: backend), standard(treatment, unit), problem),
          unit, trials
        ))
    }
    return try begun.map { linear, unit, trials in
      let quantized = try run.finish(linear, layer: layer.index).linear
      return Disturbance(unit: unit, linears: [linear.description], errors: try trials.errors()) {
        [backend] in
        layer.replaceWeights(of: linear.description, by: quantized, backend: backend)
      }
    }
  }

  /// The linears of a mixture's experts, all first halves of a unit together, and all second ones, rounded to nearest.
  private func rounded(_ stage: Stage, _ layer: DecoderLayer) throws -> [Disturbance] {
    let every = max(1, stage.experts.count / Self.comparedExperts)
    let halves = stage.experts.enumerated().flatMap { number, expert in
      expert.halves.enumerated().flatMap { half, stage in
        stage.linears.map {
          (half: half, linear: $0, isCompared: number.isMultiple(of: every) || expert.number == nil)
        }
      }
    }
    let groups = Dictionary(grouping: halves) { half, linear, _ in
      [unitOfModule[layer.moduleName(of: linear)] ?? -1, half]
    }
    return try groups.sorted { $0.key.lexicographicallyPrecedes($1.key) }.compactMap { key, members in
      let unit = key[0]
      guard unit >= 0 else { return nil }
      let candidates = units[unit].candidates
      let linears = members.map(\.linear)
      var errors = [Double](repeating: 0, count: candidates.count)
      for linear in members.filter(\.isCompared).map(\.linear) {
        let sample = rows(of: try layer.storedWeights(of: linear), Self.comparedRows)
        errors = zip(errors, roundingErrors(of: sample, unit)).map { $0 + $1 }
      }
      return Disturbance(unit: unit, linears: linears, errors: errors) {
        for linear in linears {
          let weights = try layer.storedWeights(of: linear)
          layer.replaceWeights(of: linear, byOwnRows: true) { store in
            store(roundedToNearest(weights, candidates[units[unit].standard].grid))
          }
        }
      }
    }
  }
}

/// The same rows on several grids, by the solver that a linear has.
struct GridComparison {
  private let rows: LinearRows
  private let drafts: [LinearDraft]
  private let quantizer: any LinearQuantizer
  private let problem: LayerProblem
  private let backend: any ComputeBackend

  /// Drafts all, which takes a factor of Σ.
  init(
    _ rows: Matrix, _ grids: [GridFormat], _ treatment: Treatment, _ stageProblem: LayerProblem,
    _ backend: any ComputeBackend
  ) throws {
    let quantizer = treatment.quantizer
    // One factor serves all, by the ridge of the grid that the linear has now.
    let problem = treatment.damped(stageProblem)
    let rows = LinearRows(rows, backend: backend)
    drafts = try grids.map {
      try quantizer.draft(
        rows, problem: problem, format: $0, backend: backend, panelRows: rows.outFeatures)
    }
    (self.rows, self.quantizer, self.problem, self.backend) = (rows, quantizer, problem, backend)
  }

  /// Brings all to their ends.
  /// - Returns: the relative error of each
  func errors() throws -> [Double] {
    try drafts.map {
      try quantizer.finish(
        $0, name: "", weights: rows, problem: problem, backend: backend, panelRows: rows.outFeatures
      ).relativeError
    }
  }
}
