import Calibration
import Checkpoint
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
  private let run: QuantizationRun
  private let backend: any ComputeBackend
  private let advanced: () -> Void
  private let units: [AllocationUnit]
  private let unitOfModule: [String: Int]
  private let calibration: CalibrationSet
  /// Sequences that layers are solved for, and those that are looked at.
  private let samples: (solved: Range<Int>, heldOut: Range<Int>)

  /// Tokens of a sequence, at most; of all that layers are solved for, and of all that are looked at.
  private static let (longest, solvedTokens, heldOutTokens) = (512, 4_096, 1_024)
  /// Rows of a linear, and of the head, that grids are compared on.
  private static let (comparedRows, comparedHeadRows) = (32, 256)
  /// Experts whose weights are compared.
  private static let comparedExperts = 8

  /// What one linear, or what is quantized together with it, does to the model's predictions.
  private struct Contribution {
    let unit: Int
    /// With the standard candidate of the unit.
    var divergence: Double
    /// By candidate, in any unit.
    let errors: [Double]

    func divergence(with candidate: Int, standard: Int) -> Double {
      errors[standard] > 0 ? divergence * errors[candidate] / errors[standard] : 0
    }
  }

  /// States behind a layer of which something was quantized, and what that was, with what each part of it changes: the sum over
  /// all tokens of ‖Δx‖² / ‖x‖².
  private struct Disturbed {
    var states: TrialStates
    var parts: [(unit: Int, change: Double, errors: [Double])]
  }

  // MARK: The decision

  /// - Throws: ``SettingsError`` if no grids take so many bits; ``PipelineError/notEnoughMemory(needed:available:phase:mend:)``;
  ///   what a run throws that begins with these settings
  static func decision(
    _ request: QuantizationRequest, averageBits: Double, _ backend: any ComputeBackend,
    _ progress: (ProgressEvent) -> Void
  ) throws -> Report.Allocation {
    let start = ContinuousClock.now
    var plain = request
    (plain.averageBits, plain.resume, plain.importanceMatrix) = (nil, nil, nil)
    let run = try QuantizationRun(plain, backend: backend)
    let quantized = (run.exportedLinears + run.outside).filter { $0.gridFormat != nil }
    let units = try run.allocationUnits(widths: request.bitChoices)
    let weights = quantized.reduce(0) { $0 + $1.outFeatures * $1.inFeatures }
    let free = Set(units.flatMap(\.modules))
    let fixedBits = quantized.reduce(0) { sum, linear in
      sum + (free.contains(linear.name) ? 0 : linear.gridFormat.map(linear.storedBits) ?? 0)
    }
    let limit = Int(averageBits * Double(weights)) - fixedBits
    try require(averageBits, limit, units, fixedBits, weights)
    if request.calibration.samples < 2 {
      throw SettingsError(
        key: "samples", value: "\(request.calibration.samples)",
        mend: "bits are chosen on sequences that nothing is solved for: give 2 at least")
    }
    progress(.step("measuring how many bits each linear needs"))
    let contributions = try withoutActuallyEscaping(progress) { progress in
      let trial = try AllocationTrial(run, units, backend) { progress(.advanced) }
      do { return try trial.measure() } catch {
        // What a device that failed leaves shows as all kinds of faults.
        try backend.checkDevice()
        throw error
      }
    }
    func divergence(_ unit: Int, _ candidate: Int) -> Double {
      contributions[unit].reduce(0) {
        $0 + $1.divergence(with: candidate, standard: units[unit].standard)
      }
    }
    let options = units.indices.map { unit in
      units[unit].candidates.indices.map {
        BitAllocation.Option(bits: units[unit].candidates[$0].storedBits, cost: divergence(unit, $0))
      }
    }
    guard let chosen = BitAllocation.choose(options, limit: limit) else {
      preconditionFailure("the limit was checked")
    }
    func bits(_ choice: (Int) -> Int) -> Double {
      let free = units.indices.reduce(0) { $0 + options[$1][choice($1)].bits }
      return Double(fixedBits + free) / Double(weights)
    }
    func total(_ choice: (Int) -> Int) -> Double {
      units.indices.reduce(0) { $0 + options[$1][choice($1)].cost }
    }
    return Report.Allocation(
      averageBits: averageBits, reachedBits: bits { chosen[$0] }, divergence: total { chosen[$0] },
      standardBits: bits { units[$0].standard }, standardDivergence: total { units[$0].standard },
      choices: units.indices.map {
        units[$0].candidates[chosen[$0]].choice(of: units[$0].modules[0])
      }, seconds: (ContinuousClock.now - start).seconds)
  }

  private static func require(
    _ averageBits: Double, _ limit: Int, _ units: [AllocationUnit], _ fixedBits: Int, _ weights: Int
  ) throws(SettingsError) {
    func bits(_ bound: (AllocationUnit) -> Int) -> Double {
      Double(fixedBits + units.reduce(0) { $0 + bound($1) }) / Double(max(weights, 1))
    }
    let least = bits { $0.candidates.first?.storedBits ?? 0 }
    let most = bits { $0.candidates.last?.storedBits ?? 0 }
    guard averageBits < least || averageBits > most else { return }
    throw SettingsError(
      key: "average-bits", value: "\(averageBits)",
      mend: "with scales and all, the grids that this model's linears may have take "
        + "\(rounded(least, up: true)) to \(rounded(most, up: false)) bits a weight")
  }

  /// To hundredths, such that the number itself is possible.
  private static func rounded(_ bits: Double, up: Bool) -> Double {
    (bits * 100).rounded(up ? .up : .down) / 100
  }

  // MARK: The measurement

  private init(
    _ run: QuantizationRun, _ units: [AllocationUnit], _ backend: any ComputeBackend,
    advanced: @escaping () -> Void
  ) throws {
    (self.run, self.units, self.backend, self.advanced) = (run, units, backend, advanced)
    unitOfModule = Dictionary(
      uniqueKeysWithValues: units.enumerated().flatMap { unit, value in value.modules.map { ($0, unit) } })
    let all = run.request.calibration
    let length = min(all.sequenceLength, Self.longest)
    let heldOut = max(1, min(all.samples / 4, Self.heldOutTokens / length))
    let solved = max(1, min(all.samples - heldOut, Self.solvedTokens / length))
    samples = (0..<solved, solved..<solved + heldOut)
    let drawn = Array(0..<solved) + Array(all.samples - heldOut..<all.samples)
    calibration = CalibrationSet(
      sequenceLength: length, tokens: drawn.flatMap { all.tokens(of: $0..<$0 + 1).prefix(length) })
    let budget = backend.deviceMemory?.limitBytes ?? run.request.memoryBudgetBytes
    let needed = bytes
    if needed > budget {
      throw PipelineError.notEnoughMemory(
        needed: needed, available: budget, phase: .gathering,
        mend: "without --average-bits, by --bits or rules, it would take less")
    }
  }

  /// What it takes at its peak: a whole layer beside a stage's problem, or the head twice, and the states behind every layer.
  private var bytes: Int {
    let model = run.description
    let tokens = samples.heldOut.count * calibration.sequenceLength
    let streams = (model.layerCount + 2) * tokens * model.hiddenSize * 4
    // Before every stage of the layer at work.
    let states = (4 * tokens + samples.solved.count * calibration.sequenceLength) * model.widestStates * 4
    let layer =
      (0..<model.layerCount).map { index in
        model.linears(ofLayer: index).reduce(0) { $0 + $1.outFeatures * $1.inFeatures }
      }.max() ?? 0
    let head = model.vocabularySize * (2 * model.head.width + 3 * DecoderHead.trialTokens) * 4
    return streams + states
      + max(
        layer * (run.operands == .bfloat16 ? 2 : 4) + (run.plan.devicePeakBytes ?? run.plan.peakBytes), head)
  }

  /// - Returns: what every unit contributes, in one part or several
  private func measure() throws -> [[Contribution]] {
    let model = try DecoderModel(
      run.description, source: run.checkpoint, backend: backend, sequenceLength: calibration.sequenceLength,
      operands: run.operands)
    var gathered = try TrialStates(model, calibration.tokens(of: samples.solved), backend: backend)
    var reference = try TrialStates(model, calibration.tokens(of: samples.heldOut), backend: backend)
    var disturbed = try embeddings().map { [$0] } ?? []
    for index in 0..<run.description.layerCount {
      let layer = try model.unloadedLayer(index)
      for stage in layer.stages { try layer.load(stage) }
      for place in disturbed.indices {
        advanced()
        for stage in layer.stages { disturbed[place].states.advance(through: stage, of: layer) }
      }
      if let behind = try disturb(layer, &reference, &gathered) { disturbed.append(behind) }
      for stage in layer.stages { layer.leave(stage) }
      layer.forget()
      try backend.checkDevice()
    }
    return try contributions(model, reference, gathered, disturbed)
  }

  /// Takes the model's own states through a layer, and quantizes one linear of it after the other.
  /// - Returns: the states behind a layer that has all of them quantized; nil if there is nothing to choose
  private func disturb(
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
    var parts: [(unit: Int, change: Double, errors: [Double])] = []
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
        parts.append((disturbance.unit, change, disturbance.errors))
        layer.unload(stage)
        try layer.load(stage)
      }
    }
    guard !parts.isEmpty else { return nil }
    return Disturbed(
      states: TrialStates(sum, sequenceLength: calibration.sequenceLength, backend: backend), parts: parts)
  }

  /// Linears that are quantized together, and how.
  private struct Disturbance {
    let unit: Int
    /// By candidate of the unit.
    let errors: [Double]
    /// Has the layer run with what they are quantized to.
    let apply: () throws -> Void
  }

  /// The linears of a stage, each solved for what the stage reads.
  private func solved(_ stage: Stage, _ layer: DecoderLayer, _ gram: GramMatrix) throws -> [Disturbance] {
    let problem = LayerProblem(gram: gram.values, backend: backend)
    var begun: [(linear: QuantizationRun.BegunLinear, unit: Int, trials: GridComparison)] = []
    for linear in stage.linears {
      let name = layer.moduleName(of: linear)
      guard let unit = unitOfModule[name], let treatment = run.treatments[name] else { continue }
      let weights = try layer.storedWeights(of: linear)
      let trials = try GridComparison(
        rows(of: weights, Self.comparedRows), units[unit].candidates.map(\.grid), treatment, problem, backend)
      begun.append(
        (try run.begin(name, linear, weights, standard(treatment, unit), problem), unit, trials))
    }
    return try begun.map { linear, unit, trials in
      let solution = try run.finish(linear, layer: layer.index).solution
      return Disturbance(unit: unit, errors: try trials.errors()) { [backend] in
        layer.replaceWeights(of: linear.description, by: solution.linear, backend: backend)
      }
    }
  }

  /// The linears of a mixture's experts, all first halves of a unit together, and all second ones, rounded to nearest.
  private func rounded(_ stage: Stage, _ layer: DecoderLayer) throws -> [Disturbance] {
    let halves = stage.experts.flatMap { expert in
      expert.halves.enumerated().flatMap { half, stage in stage.linears.map { (half: half, linear: $0) } }
    }
    let groups = Dictionary(grouping: halves) { half, linear in
      [unitOfModule[layer.moduleName(of: linear)] ?? -1, half]
    }
    return try groups.sorted { $0.key.lexicographicallyPrecedes($1.key) }.compactMap { key, members in
      let unit = key[0]
      guard unit >= 0 else { return nil }
      let candidates = units[unit].candidates
      let linears = members.map(\.linear)
      var errors = [Double](repeating: 0, count: candidates.count)
      let every = max(1, linears.count / Self.comparedExperts)
      for linear in stride(from: 0, to: linears.count, by: every).map({ linears[$0] }) {
        let sample = rows(of: try layer.storedWeights(of: linear), Self.comparedRows)
        for (index, candidate) in candidates.enumerated() {
          let rounded = roundedToNearest(sample, candidate.grid)
          backend.subtract(sample, from: rounded)
          errors[index] += backend.rowDots(rounded, rounded).reduce(0, +)
        }
      }
      return Disturbance(unit: unit, errors: errors) {
        for linear in linears {
          let weights = try layer.storedWeights(of: linear)
          layer.replaceWeights(of: linear, byOwnRows: true) { store in
            store(roundedToNearest(weights, candidates[units[unit].standard].grid))
          }
        }
      }
    }
  }

  private func standard(_ treatment: Treatment, _ unit: Int) -> Treatment {
    var treatment = treatment
    treatment.gridFormat = units[unit].candidates[units[unit].standard].grid
    return treatment
  }

  /// Ŵ of some rows.
  private func roundedToNearest(_ weights: Matrix, _ grid: GridFormat) -> Matrix {
    let (codes, grids) = RoundToNearest(searchesGrid: true).round(weights, format: grid, backend: backend)
    backend.dequantize(codes, grid: grids, into: codes)
    return codes
  }

  /// Rows of a matrix, evenly spaced.
  private func rows(of weights: Matrix, _ count: Int) -> Matrix {
    let count = min(count, weights.rows)
    let sample = backend.makeMatrix(rows: count, columns: weights.columns)
    for index in 0..<count {
      let row = index * weights.rows / count
      backend.copy(weights.rows(row..<row + 1), into: sample.rows(index..<index + 1))
    }
    return sample
  }

  // MARK: Outside of layers

  /// The states behind embeddings that are rounded; nil if those are not to be chosen.
  private func embeddings() throws -> Disturbed? {
    let tokens = run.description.embedding.tokens
    guard let unit = unitOfModule[String(tokens.dropLast(".weight".count))] else { return nil }
    let candidates = units[unit].candidates
    let standard = candidates[units[unit].standard].grid
    let model = try DecoderModel(
      run.description, source: run.checkpoint, backend: backend, sequenceLength: calibration.sequenceLength,
      operands: run.operands
    ) { rows in backend.copy(roundedToNearest(rows, standard), into: rows) }
    let sample = try tokenRows(of: tokens)
    let errors = candidates.map { candidate in
      let rounded = roundedToNearest(sample, candidate.grid)
      backend.subtract(sample, from: rounded)
      return backend.rowDots(rounded, rounded).reduce(0, +)
    }
    return Disturbed(
      states: try TrialStates(model, calibration.tokens(of: samples.heldOut), backend: backend),
      parts: [(unit, 1, errors)])
  }

  /// Rows of a matrix with one for every token, evenly spaced.
  private func tokenRows(of tensor: String) throws -> Matrix {
    guard let shape = run.checkpoint.shape(of: tensor) else { throw PipelineError.missingTensor(tensor) }
    let (count, width) = (shape[0], shape[1])
    let wanted = min(Self.comparedHeadRows, count)
    let rows = Matrix(rows: wanted, columns: width)
    for index in 0..<wanted {
      let row = index * count / wanted
      try run.checkpoint.read(tensor, rows: row..<row + 1, into: rows.rows(index..<index + 1))
    }
    return backend.upload(rows)
  }

  /// The head with another matrix, and how its error changes with the grid; nil if that is not to be chosen.
  private func disturbedHead(
    _ model: DecoderModel, _ head: DecoderHead, _ gathered: TrialStates
  ) throws -> (unit: Int, head: DecoderHead, errors: [Double])? {
    let tensor = run.description.head.weights
    let name = String(tensor.dropLast(".weight".count))
    guard let unit = unitOfModule[name],
      let linear = run.outside.first(where: { $0.name == name })
    else { return nil }
    let treatment = standard(
      run.head?.treatment
        ?? Treatment(gridFormat: units[unit].candidates[0].grid, solver: RoundToNearest(searchesGrid: true)),
      unit)
    let gram = GramMatrix(
      inFeatures: run.description.head.width, operands: run.operands, backend: backend)
    gram.accumulate(try model.headInput()(gathered.residual))
    let problem = LayerProblem(gram: gram.values, backend: backend)
    let trials = try GridComparison(
      try tokenRows(of: tensor), units[unit].candidates.map(\.grid), treatment,
      problem, backend)
    let errors = try trials.errors()
    let weights = backend.makeMatrix(rows: linear.outFeatures, columns: linear.inFeatures)
    _ = try run.solve(Recipe.Head(linear: linear, treatment: treatment), problem) { rows, firstRow in
      backend.copy(
        backend.upload(rows.dequantized()), into: weights.rows(firstRow..<firstRow + rows.outFeatures))
    }
    return (unit, head.replacingWeights(by: weights), errors)
  }

  private func contributions(
    _ model: DecoderModel, _ reference: TrialStates, _ gathered: TrialStates, _ disturbed: [Disturbed]
  ) throws -> [[Contribution]] {
    advanced()
    let head = try model.head()
    let ownHead = try disturbedHead(model, head, gathered)
    advanced()
    let divergences = head.meanDivergences(
      of: disturbed.map { (head, $0.states.residual) }
        + (ownHead.map { [($0.head, reference.residual)] } ?? []),
      from: reference.residual, backend)
    try backend.checkDevice()
    var result = [[Contribution]](repeating: [], count: units.count)
    for (layer, divergence) in zip(disturbed, divergences) {
      let change = layer.parts.reduce(0) { $0 + $1.change }
      for part in layer.parts {
        result[part.unit].append(
          Contribution(
            unit: part.unit, divergence: change > 0 ? divergence * part.change / change : 0,
            errors: part.errors))
      }
    }
    if let ownHead, let divergence = divergences.last {
      result[ownHead.unit].append(
        Contribution(unit: ownHead.unit, divergence: divergence, errors: ownHead.errors))
    }
    return result
  }
}

/// The same rows on several grids, by the solver that a linear has.
private struct GridComparison {
  private let rows: Matrix
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
    let problem = stageProblem.damped(by: quantizer.damping)
    drafts = try grids.map {
      try quantizer.draft(
        backend.copy(of: rows), problem: problem, format: $0, backend: backend, panelRows: rows.rows)
    }
    (self.rows, self.quantizer, self.problem, self.backend) = (rows, quantizer, problem, backend)
  }

  /// Brings all to their ends.
  /// - Returns: the relative error of each
  func errors() throws -> [Double] {
    try drafts.map {
      try quantizer.finish(
        $0, name: "", weights: backend.copy(of: rows), problem: problem, backend: backend,
        panelRows: rows.rows
      ).relativeError
    }
  }
}
