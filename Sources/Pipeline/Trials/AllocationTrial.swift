import Calibration
import Compute
import Decoder
import Export
import Quantization
import Solvers
import Tensors

/// Finds out which linears of a model need more bits than others, and gives every one a grid so that all take so many bits
/// a weight.
///
/// What is measured, in one pass over the model's layers:
/// - for every layer, how far predictions are from the model's, on sequences that nothing was solved for, when this layer
///   alone is quantized, all its linears by the grids of the recipe: one stream of states more from that layer on;
/// - which part of it is which linear's: by how much it alone changes the residual stream behind the layer, token by token;
/// - how a linear's error, as the solver leaves it on a few of its rows, changes with the grid.
///
/// Divergences of single linears add up as long as they are small, and are in proportion to their errors; so a grid's share
/// of the divergence is known for every linear without trying them together.
///
/// Experts are rounded to nearest here, as tokens are too few to solve each for its own, and go by the errors of their weights.
struct AllocationTrial {
  let run: QuantizationRun
  let backend: any ComputeBackend
  private let progress: (ProgressEvent) -> Void
  let units: [AllocationUnit]
  let unitOfModule: [String: Int]
  let calibration: CalibrationSet
  let sizes: Sizes

  /// Tokens of a sequence, at most; of all that layers are solved for, and of all that are looked at.
  static let (longest, solvedTokens, heldOutTokens) = (512, 4_096, 1_024)
  /// Rows of a linear, and of the head, that grids are compared on.
  static let (comparedRows, comparedHeadRows) = (32, 256)
  /// Experts whose weights are compared.
  static let comparedExperts = 8

  /// What one linear, or what is quantized together with it, does to the model's predictions.
  struct Contribution {
    /// With the standard candidate of the unit.
    let divergence: Double
    /// By candidate, in any unit.
    let errors: [Double]

    func divergence(with candidate: Int, standard: Int) -> Double {
      errors[standard] > 0 ? divergence * errors[candidate] / errors[standard] : 0
    }
  }

  /// States behind a layer of which something was quantized, and what that was, with what each part of it changes: the sum over
  /// all tokens of ‖Δx‖² / ‖x‖².
  struct Disturbed {
    struct Part {
      let unit: Int
      let change: Double
      /// By candidate of the unit.
      let errors: [Double]
    }

    /// `[tokens, hiddenSize]`
    let residual: Matrix
    let parts: [Part]
  }

  // MARK: The decision

  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)``, ``PipelineError/unmeasurableDivergence``,
  ///   ``SettingsError`` of a text that has no two sequences, and what a run throws that begins with these settings
  static func decision(
    _ request: QuantizationRequest, _ problem: AllocationProblem, _ backend: any ComputeBackend,
    _ progress: (ProgressEvent) -> Void
  ) throws -> Report.Allocation {
    let start = ContinuousClock.now
    // On text that linears are solved for, all widths are closer to the model than elsewhere, and each by another factor.
    guard request.calibration.distinct > 1 else {
      throw SettingsError(
        key: "average-bits", value: "\(problem.averageBits)",
        mend: "bits are chosen on sequences that nothing is solved for, and the calibration text has no two "
          + "that do not overlap: give more text, or a shorter sequence-length")
    }
    var plain = request
    (plain.averageBits, plain.resume, plain.importanceMatrix) = (nil, nil, nil)
    let run = try QuantizationRun(plain, backend: backend)
    let units = problem.units
    progress(.step("measuring how many bits each linear needs"))
    let contributions = try withoutActuallyEscaping(progress) { progress in
      let trial = try AllocationTrial(run, units, backend, progress)
      return try backend.tellingDeviceFaults(trial.measure)
    }
    // Weights that lie on the standard grid tell nothing of smaller ones: those keep it, or get more.
    let first = zip(units, contributions).map { unit, contributions in
      contributions.allSatisfy { $0.divergence == 0 } ? unit.standard : 0
    }
    let options = units.indices.map { index in
      let (unit, contributions) = (units[index], contributions[index])
      return unit.candidates.indices.dropFirst(first[index]).map { candidate in
        BitAllocation.Option(
          bits: unit.candidates[candidate].storedBits,
          cost: contributions.reduce(0) {
            $0 + $1.divergence(with: candidate, standard: unit.standard)
          })
      }
    }
    guard options.joined().allSatisfy(\.cost.isFinite),
      let chosen = BitAllocation.choose(options, limit: problem.limit)
    else { throw PipelineError.unmeasurableDivergence }
    func total(_ choice: [Int]) -> (bits: Double, divergence: Double) {
      let chosen = zip(options, choice).map { $0[$1] }
      return (problem.average(chosen.reduce(0) { $0 + $1.bits }), chosen.reduce(0) { $0 + $1.cost })
    }
    let (found, standard) = (total(chosen), total(zip(units, first).map { $0.standard - $1 }))
    return Report.Allocation(
      averageBits: problem.averageBits, reachedBits: found.bits, divergence: found.divergence,
      standardBits: standard.bits, standardDivergence: standard.divergence,
      choices: units.indices.map {
        units[$0].candidates[first[$0] + chosen[$0]].choice(of: units[$0].modules[0])
      },
      seconds: (ContinuousClock.now - start).seconds)
  }

  // MARK: The measurement

  /// How often it is told how far the work is.
  private static let parts = 10

  func advanced() { progress(.advanced) }

  /// Tokens that nothing was solved for.
  var heldOut: [Int32] { calibration.tokens(of: sizes.solved..<calibration.samples) }

  private init(
    _ run: QuantizationRun, _ units: [AllocationUnit], _ backend: any ComputeBackend,
    _ progress: @escaping (ProgressEvent) -> Void
  ) throws {
    (self.run, self.units, self.backend, self.progress) = (run, units, backend, progress)
    unitOfModule = Dictionary(
      uniqueKeysWithValues: units.enumerated().flatMap { unit, value in value.modules.map { ($0, unit) } })
    let all = run.request.calibration
    let sizes = Sizes(samples: all.distinct, sequenceLength: all.sequenceLength)
    self.sizes = sizes
    let drawn = Array(0..<sizes.solved) + Array(all.distinct - sizes.heldOut..<all.distinct)
    calibration = CalibrationSet(
      sequenceLength: sizes.length,
      tokens: drawn.flatMap { all.tokens(of: $0..<$0 + 1).prefix(sizes.length) })
    let needed = sizes.bytes(
      run.work, panelRows: run.plan.panelRows, isOnDevice: backend.deviceMemory != nil)
    try Self.require(needed, of: backend.deviceMemory?.limitBytes ?? run.request.memoryBudgetBytes)
  }

  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)``
  static func require(_ needed: Int, of available: Int) throws(PipelineError) {
    guard needed > available else { return }
    throw .notEnoughMemory(
      needed: needed, available: available, phase: .gathering,
      mend: "it is for average-bits, and without, by bits or rules, it would be less")
  }

  /// What a trial looks at.
  struct Sizes {
    /// Tokens of a sequence.
    let length: Int
    /// Sequences that layers are solved for, the first ones, and those that predictions are compared on, the last ones.
    let solved: Int
    let heldOut: Int

    /// - Parameter samples: the run's sequences that do not overlap, at least 2, of `sequenceLength` tokens each
    init(samples: Int, sequenceLength: Int) {
      length = min(sequenceLength, AllocationTrial.longest)
      heldOut = max(1, min(samples / 4, AllocationTrial.heldOutTokens / length))
      solved = max(1, min(samples - heldOut, AllocationTrial.solvedTokens / length))
    }

    /// What it takes at its peak, of the memory that matrices are in: a whole layer, or the head twice, beside a stage's
    /// problem, and the states behind every layer.
    func bytes(_ work: MemoryPlan.Work, panelRows: Int, isOnDevice: Bool) -> Int {
      let model = work.model
      let stages = (0..<model.layerCount).map { model.stages(ofLayer: $0) }
      let streams = (model.layerCount + 2) * heldOut * length * model.hiddenSize * 4
      // Before every stage of the layer at work.
      let copies = (stages.map(\.count).max() ?? 0) * heldOut
      let states = (copies + solved) * length * model.widestStates * 4
      let layer = stages.map { $0.flatMap(\.linears).weightCount }.max() ?? 0
      let head = model.vocabularySize * (2 * model.head.width + 3 * DecoderHead.trialTokens) * 4
      var own = work
      (own.samples, own.sequenceLength, own.originalSamples) = (solved, length, 0)
      let plan = MemoryPlan(own, batchSamples: solved, panelRows: panelRows, isOnDevice: isOnDevice)
      return streams + states + max(layer * (work.operands == .bfloat16 ? 2 : 4), head)
        + (plan.devicePeakBytes ?? plan.peakBytes)
    }
  }

  /// - Returns: what every unit contributes, in one part or several
  private func measure() throws -> [[Contribution]] {
    let model = try run.model(sequenceLength: calibration.sequenceLength)
    var gathered = try TrialStates(model, calibration.tokens(of: 0..<sizes.solved), of: run)
    var reference = try TrialStates(model, heldOut, of: run)
    var disturbed = try embeddings().map { [$0] } ?? []
    let count = run.description.layerCount
    for index in 0..<count {
      let layer = try model.layer(index)
      for stream in disturbed {
        advanced()
        layer.run(stream.residual, sequenceLength: calibration.sequenceLength)
      }
      if let behind = try disturb(layer, &reference, &gathered) { disturbed.append(behind) }
      try backend.checkDevice()
      if (index + 1) * Self.parts / count > index * Self.parts / count {
        progress(.step("measured layer \(index + 1) of \(count)"))
      }
    }
    return try contributions(model, reference, gathered, disturbed)
  }

  /// Shares the divergences of streams, and of the head, out among units.
  private func contributions(
    _ model: DecoderModel, _ reference: TrialStates, _ gathered: TrialStates, _ disturbed: [Disturbed]
  ) throws -> [[Contribution]] {
    advanced()
    let head = try model.head()
    let ownHead = try disturbedHead(model, head, gathered)
    advanced()
    let divergences = head.meanDivergences(
      of: disturbed.map { (head, $0.residual) }
        + (ownHead.map { [($0.head, reference.residual)] } ?? []),
      from: reference.residual, backend)
    try backend.checkDevice()
    guard divergences.allSatisfy(\.isFinite) else { throw PipelineError.unmeasurableDivergence }
    var result = [[Contribution]](repeating: [], count: units.count)
    for (layer, divergence) in zip(disturbed, divergences) {
      let change = layer.parts.reduce(0) { $0 + $1.change }
      for part in layer.parts {
        result[part.unit].append(
          Contribution(
            divergence: change == 0 ? 0 : divergence * part.change / change, errors: part.errors))
      }
    }
    if let ownHead, let divergence = divergences.last {
      result[ownHead.unit].append(
        Contribution(divergence: divergence, errors: ownHead.errors))
    }
    return result
  }

  func standard(_ treatment: Treatment, _ unit: Int) -> Treatment {
    var treatment = treatment
    treatment.gridFormat = units[unit].candidates[units[unit].standard].grid
    return treatment
  }

  /// Ŵ of some rows.
  func roundedToNearest(_ weights: Matrix, _ grid: GridFormat) -> Matrix {
    let (codes, grids) = RoundToNearest(searchesGrid: true).round(weights, format: grid, backend: backend)
    backend.dequantize(codes, grid: grids, into: codes)
    return codes
  }

  /// What rounding to nearest leaves of some rows, by candidate of a unit.
  func roundingErrors(of rows: Matrix, _ unit: Int) -> [Double] {
    units[unit].candidates.map { candidate in
      let errors = roundedToNearest(rows, candidate.grid)
      backend.subtract(rows, from: errors)
      return backend.rowDots(errors, errors).reduce(0, +)
    }
  }

  /// Rows of a matrix, evenly spaced.
  func rows(of weights: Matrix, _ count: Int) -> Matrix {
    let count = min(count, weights.rows)
    let sample = backend.makeMatrix(rows: count, columns: weights.columns)
    for index in 0..<count {
      let row = index * weights.rows / count
      backend.copy(weights.rows(row..<row + 1), into: sample.rows(index..<index + 1))
    }
    return sample
  }
}
