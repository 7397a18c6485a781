import Checkpoint
import Collective
import Compute
import Decoder
import Export
import Quantization
import Solvers
import Tensors

// One linear of a run, in the two steps that its solver takes.
extension QuantizationRun {
  /// The relative error from which on a linear is worth a warning.
  private static let largestError = 0.5

  /// A linear that has its draft.
  struct BegunLinear {
    let name: String
    let description: LayerLinear
    let weights: LinearRows
    let treatment: Treatment
    let problem: LayerProblem
    var work: Work
    let warnings: [String]
    var seconds: Double
  }

  /// What this rank does of a linear.
  enum Work {
    /// All of it.
    case whole(LinearDraft)
    /// Its own panels of rows, and who has which; with the number that the first has among the stage's.
    case panels([Range<Int>], owners: [Int], first: Int, LinearDraft)
    /// Another rank's.
    case none(owner: Int)
    /// This rank's, and done.
    case done(QuantizedLinear, Report.Linear)
  }

  /// A linear's weights as solvers take them. A device has them whole: it converts them sooner than the host would send the
  /// same ones twice.
  func rows(of linear: LayerLinear, in layer: DecoderLayer) throws -> LinearRows {
    if backend.deviceMemory != nil {
      return LinearRows(try layer.storedWeights(of: linear), backend: backend)
    }
    return LinearRows(outFeatures: linear.outFeatures, inFeatures: linear.inFeatures) {
      try layer.storedWeights(of: linear, rows: $0)
    }
  }

  /// Begins a linear that is this rank's alone.
  func begin(
    _ name: String, _ description: LayerLinear, _ weights: LinearRows, _ treatment: Treatment,
    _ stageProblem: LayerProblem
  ) throws -> BegunLinear {
    var dealer = PanelDealer(ranks: 1)
    return try begin(name, description, weights, treatment, stageProblem, dealer: &dealer, by: .alone)
  }

  /// - Parameters:
  ///   - dealer: of the stage's panels
  ///   - factorized: called when there is the factor that the drafts of a stage share
  func begin(
    _ name: String, _ description: LayerLinear, _ weights: LinearRows, _ treatment: Treatment,
    _ stageProblem: LayerProblem, dealer: inout PanelDealer, by ranks: Ranks,
    factorized: () -> Void = {}
  ) throws -> BegunLinear {
    let start = ContinuousClock.now
    let problem = treatment.damped(stageProblem)
    let zeroRows = ZeroRows(of: weights, backend: backend)
    let work = try work(
      zeroRows.watched, treatment, problem, dealer: &dealer, by: ranks, factorized: factorized)
    var warnings: [String] = []
    if let rows = try zeroRows.first(panelRows: plan.panelRows(of: weights.outFeatures)) {
      if request.isStrict { throw PipelineError.zeroWeights(tensor: "\(name).weight", rows: rows) }
      warnings.append(PipelineError.zeroNote("\(name).weight", rows))
    }
    return BegunLinear(
      name: name, description: description, weights: weights, treatment: treatment, problem: problem,
      work: work, warnings: warnings, seconds: (ContinuousClock.now - start).seconds)
  }

  private func work(
    _ weights: LinearRows, _ treatment: Treatment, _ problem: LayerProblem, dealer: inout PanelDealer,
    by ranks: Ranks, factorized: () -> Void
  ) throws -> Work {
    func factorize() throws {
      try treatment.quantizer.factorize(problem)
      factorized()
    }
    guard !ranks.isAlone, let solver = treatment.quantizer as? any LayerSolver else {
      let owner = dealer.owner(ofRows: weights.outFeatures)
      if owner != ranks.rank { return .none(owner: owner) }
      try factorize()
      return .whole(
        try treatment.quantizer.draft(
          weights, problem: problem, format: treatment.gridFormat, backend: backend,
          panelRows: plan.panelRows(of: weights.outFeatures)))
    }
    let panels = weights.panels(of: plan.panelRows(of: weights.outFeatures))
    let first = dealer.count
    let owners = dealer.owners(of: panels)
    let own = panels.indices.filter { owners[$0] == ranks.rank }
    if !own.isEmpty { try factorize() }
    return .panels(
      panels, owners: owners, first: first,
      try solver.draft(
        weights, problem: problem, format: treatment.gridFormat, backend: backend,
        panels: own.map { panels[$0] }))
  }

  /// What the result will have in the place of tokens' embeddings, which the layers are solved for; nil where it has the
  /// source's, and where the embeddings are the head as well, whose codes are not known before the layers are done.
  var roundTokens: ((_ rows: Matrix) -> Void)? {
    guard
      let format = rounded.first(where: { "\($0.name).weight" == description.embedding.tokens })?.gridFormat
    else { return nil }
    return { [backend] rows in
      let draft = RoundToNearest(searchesGrid: true).round(rows, format: format, backend: backend)
      backend.dequantize(draft.codes, grid: draft.grid, into: rows)
    }
  }

  /// Rounds a matrix that no inputs are known of, and hands it on, some rows at a time.
  func round(_ linear: LinearDescription, _ body: (_ rows: QuantizedLinear, _ firstRow: Int) throws -> Void)
    throws
  {
    guard let format = linear.gridFormat else { preconditionFailure("it is not to be quantized") }
    let rounding = RoundToNearest(searchesGrid: true)
    try checkpoint.forEachPanel(
      of: "\(linear.name).weight", shape: [linear.outFeatures, linear.inFeatures]
    ) { rows, panel in
      let draft = rounding.round(backend.upload(panel), format: format, backend: backend)
      var codes = [UInt8](repeating: 0, count: panel.count)
      backend.downloadCodes(draft.codes, to: &codes, firstRow: 0)
      try backend.checkDevice()
      try body(
        QuantizedLinear(name: linear.name, codes: codes, grid: backend.download(draft.grid)), rows.lowerBound)
    }
  }

  /// W + W C for some rows W of the head, `[rows, width]`.
  func corrected(_ rows: Matrix, by correction: Matrix?) -> Matrix {
    guard let correction else { return rows }
    let result = backend.copy(of: rows)
    backend.multiply(rows, correction, transposingB: false, scale: 1, into: result, keeping: 1)
    return result
  }

  /// Quantizes the head, and hands it on, some rows at a time: it may be larger than any linear of a layer.
  /// - Parameter correction: what it is corrected by before; nil if it is to come close to what it is
  func solve(
    _ head: Recipe.Head, _ stageProblem: LayerProblem, correction: Matrix? = nil,
    _ body: (_ rows: QuantizedLinear, _ firstRow: Int) throws -> Void
  ) throws -> Report.Linear {
    let start = ContinuousClock.now
    let (linear, quantizer) = (head.linear, head.treatment.quantizer)
    let problem = head.treatment.damped(stageProblem)
    let count = MemoryPlan.headRows(description, panelRows: plan.panelRows)
    var (objective, scale, bits) = (0.0, 0.0, 0.0)
    var rounding: Double?
    for first in stride(from: 0, to: linear.outFeatures, by: count) {
      let range = first..<min(first + count, linear.outFeatures)
      let rows = Matrix(rows: range.count, columns: linear.inFeatures)
      try checkpoint.read("\(linear.name).weight", rows: range, into: rows)
      let weights = LinearRows(corrected(backend.upload(rows), by: correction), backend: backend)
      let draft = try quantizer.draft(
        weights, problem: problem, format: head.treatment.gridFormat, backend: backend,
        panelRows: plan.panelRows)
      let solution = try quantizer.finish(
        draft, name: linear.name, weights: weights, problem: problem, backend: backend,
        panelRows: plan.panelRows)
      try backend.checkDevice()
      objective += solution.objective
      scale += solution.scale
      rounding = solution.roundingObjective.map { (rounding ?? 0) + $0 }
      bits = solution.linear.bitsPerWeight
      try body(solution.linear, first)
    }
    var row = row(
      of: linear.name, shape: [linear.outFeatures, linear.inFeatures], bitsPerWeight: bits, head.treatment,
      relativeError: scale > 0 ? objective / scale : 0, layer: description.layerCount,
      seconds: (ContinuousClock.now - start).seconds)
    let warnings =
      (scale > 0
        ? [] : ["\(linear.name) makes nothing but zeros of what the last layer leaves; check the source"])
      + Self.warnings(
        linear.name, row.relativeError, isWorseThanRounding: rounding.map { objective > $0 } ?? false)
    row.warnings = warnings.isEmpty ? nil : warnings
    return row
  }

  private static func warnings(_ name: String, _ error: Double, isWorseThanRounding: Bool) -> [String] {
    var warnings: [String] = []
    if error > largestError {
      let percent = Int((error * 100).rounded())
      warnings.append(
        "\(name): an error of \(percent) % leaves little of it; take more bits, or skip it by a rule")
    }
    if isWorseThanRounding {
      warnings.append(
        "\(name): worse than rounding to nearest; calibrate with more text, or take the solver quantease with its "
          + "standard preset")
    }
    return warnings
  }

  /// Does what this rank has to do of a linear, and sends it to the others. All linears of a stage come so far before one is
  /// brought to its end: nobody waits for a rank that has more of the first one.
  func solveOwn(_ linear: inout BegunLinear, layer: Int, by ranks: Ranks) throws {
    let start = ContinuousClock.now
    switch linear.work {
    case .none, .done: return
    case .whole(let draft):
      let done = try finishWhole(linear, draft, layer: layer)
      ranks.postToAll(
        try ResumeJournal.payload(of: done.linear, row: done.row).bytes, MessageLabel(.linear, layer: layer))
      linear.work = .done(done.linear, done.row)
    case .panels(let panels, let owners, let first, let draft):
      let own = panels.indices.filter { owners[$0] == ranks.rank }
      try solver(of: linear).finish(
        draft, weights: linear.weights, problem: linear.problem, backend: backend,
        panels: own.map { panels[$0] })
      for panel in own {
        ranks.postToAll(
          draft.bytes(ofPanel: panels[panel], backend: backend), rowsLabel(layer: layer, first + panel))
      }
    }
    linear.seconds += (ContinuousClock.now - start).seconds
  }

  /// Brings a linear to its end, on all ranks.
  func finish(
    _ linear: BegunLinear, layer: Int, by ranks: Ranks = .alone
  ) throws -> (linear: QuantizedLinear, row: Report.Linear) {
    switch linear.work {
    case .none(let owner):
      let label = MessageLabel(.linear, layer: layer)
      guard let done = ResumeJournal.linear(ofPayload: try ranks.receive(label, from: owner)) else {
        throw ranks.unlike(label, from: owner)
      }
      return done
    case .done(let solved, let row): return (solved, row)
    case .whole(let draft): return try finishWhole(linear, draft, layer: layer)
    case .panels(let panels, let owners, let first, let draft):
      let start = ContinuousClock.now
      for panel in panels.indices where owners[panel] != ranks.rank {
        let (label, source) = (rowsLabel(layer: layer, first + panel), owners[panel])
        guard
          draft.take(try ranks.receive(label, from: source), panel: panels[panel], backend: backend)
        else { throw ranks.unlike(label, from: source) }
      }
      let solution = try solver(of: linear).solution(
        of: draft, name: linear.name, panels: panels, backend: backend)
      return (solution.linear, row(of: linear, solution, layer: layer, since: start))
    }
  }

  private func finishWhole(
    _ linear: BegunLinear, _ draft: LinearDraft, layer: Int
  ) throws -> (linear: QuantizedLinear, row: Report.Linear) {
    let start = ContinuousClock.now
    let solution = try linear.treatment.quantizer.finish(
      draft, name: linear.name, weights: linear.weights, problem: linear.problem, backend: backend,
      panelRows: plan.panelRows(of: linear.weights.outFeatures))
    return (solution.linear, row(of: linear, solution, layer: layer, since: start))
  }

  private func solver(of linear: BegunLinear) -> any LayerSolver {
    guard let solver = linear.treatment.quantizer as? any LayerSolver else {
      preconditionFailure("panels are solved each on its own")
    }
    return solver
  }

  private func rowsLabel(layer: Int, _ panel: Int) -> MessageLabel {
    MessageLabel(.rows, layer: layer, number: panel)
  }

  private func row(
    of linear: BegunLinear, _ solution: LayerSolution, layer: Int, since start: ContinuousClock.Instant
  ) -> Report.Linear {
    let warnings =
      linear.warnings
      + Self.warnings(
        linear.name, solution.relativeError, isWorseThanRounding: solution.isWorseThanRounding)
    let result = solution.linear
    var row = row(
      of: result.name, shape: [result.outFeatures, result.inFeatures], bitsPerWeight: result.bitsPerWeight,
      linear.treatment, relativeError: solution.relativeError, layer: layer,
      seconds: linear.seconds + (ContinuousClock.now - start).seconds)
    row.warnings = warnings.isEmpty ? nil : warnings
    return row
  }

  private func row(
    of name: String, shape: [Int], bitsPerWeight: Double, _ treatment: Treatment, relativeError: Double,
    layer: Int, seconds: Double
  ) -> Report.Linear {
    let format = treatment.gridFormat
    var row = Report.Linear(
      name: name, shape: shape, bits: format.bitWidth.rawValue, groupSize: format.groupSize.notation,
      symmetric: format.isSymmetric, solver: treatment.quantizer.name, relativeError: relativeError,
      seconds: seconds, layer: layer, bitsPerWeight: bitsPerWeight)
    row.type = outline == nil ? nil : GGUFTensorType(format)?.name
    return row
  }
}
