import Checkpoint
import Collective
import Decoder
import Export
import Quantization
import Solvers
import Tensors

/// What a run does at each stage that the layer loop comes to.
final class RunStages {
  /// What has become of the head; nil if it is not quantized, or not by this rank.
  private(set) var head: Report.Linear?
  /// What corrects the head, before it is quantized or as it is written; nil if it stays as it is.
  private(set) var headCorrection: Matrix?
  /// The inputs' energies, where they are asked for.
  private(set) var importance: ImportanceMatrix?

  private let run: QuantizationRun
  private let finished: FinishedLinears
  private let memory: RunMemory
  private let progress: (ProgressEvent) -> Void

  init(
    of run: QuantizationRun, finished: FinishedLinears, memory: RunMemory,
    progress: @escaping (ProgressEvent) -> Void
  ) {
    (self.run, self.finished, self.memory, self.progress) = (run, finished, memory, progress)
    importance = run.request.importanceMatrix.map { _ in
      ImportanceMatrix(
        dataset: run.request.calibrationSources.names, samples: run.request.calibration.samples,
        sequenceLength: run.request.calibration.sequenceLength)
    }
  }

  /// Drafts all linears of a stage, which share a factor of Σ, and then brings one after the other to its end. Ranks share
  /// the rows of a stage's linears; an expert's are one rank's.
  func quantize(
    _ layer: DecoderLayer, _ stage: Stage, _ problem: LayerProblem, _ expert: LayerLoop.ExpertShare?
  ) throws -> LayerLoop.Replacements {
    memory.lap(.gathering)
    defer { memory.lap(.descending) }
    addImportance(layer, stage, problem, expert)
    let isOwn = !layer.stages.contains { $0.experts.isEmpty && $0.linears.names == stage.linears.names }
    let ranks = isOwn ? Ranks.alone : run.ranks
    var dealer = PanelDealer(ranks: ranks.count)
    var isFactorized = false
    var begun = try stage.linears.compactMap { linear -> QuantizationRun.BegunLinear? in
      let name = layer.moduleName(of: linear)
      guard let treatment = run.treatments[name], !finished.names.contains(name) else { return nil }
      let weights = try finished.times.measure(.loading) { try run.rows(of: linear, in: layer) }
      return try run.begin(name, linear, weights, treatment, problem, dealer: &dealer, by: ranks) {
        // Later linears find it there.
        if !isFactorized { memory.lap(.factoring) }
        isFactorized = true
      }
    }
    memory.lap(.drafting)
    if !ranks.isAlone {
      for place in begun.indices {
        try run.solveOwn(&begun[place], layer: layer.index, by: ranks)
        progress(.advanced)
      }
    }
    var solved: LayerLoop.Replacements = []
    while !begun.isEmpty {
      // What it had beside its codes goes before the next one is at work.
      let description = begun[0].description
      var (linear, row) = try run.finish(begun.removeFirst(), layer: layer.index, by: ranks)
      try run.backend.checkDevice()
      (row.expert, row.tokens) = (expert?.number, expert?.tokens)
      solved.append((description, linear))
      if isOwn, !run.ranks.isChief {
        run.ranks.post(
          try ResumeJournal.payload(of: linear, row: row).bytes,
          MessageLabel(.linear, layer: layer.index), to: 0)
      } else {
        // Linears of experts are small: nothing is gained by writing them beside the next.
        try finished.keep(linear, row, layer: layer.index, mayBeBeside: expert == nil)
      }
    }
    return solved
  }

  /// Takes in what another rank has made of an expert's linears.
  func collect(_ layer: DecoderLayer, _ half: Stage, _ rank: Int) throws {
    let ranks = run.ranks
    let label = MessageLabel(.linear, layer: layer.index)
    for name in half.linears.map(layer.moduleName(of:)) where run.treatments[name] != nil {
      defer { finished.names.insert(name) }
      guard rank != 0, ranks.isChief, !finished.names.contains(name) else { continue }
      guard let done = ResumeJournal.linear(ofPayload: try ranks.receive(label, from: rank)) else {
        throw ranks.unlike(label, from: rank)
      }
      try finished.keep(done.linear, done.row, layer: layer.index)
    }
  }

  /// Takes in what the head is to be corrected by.
  func correctHead(by correction: Matrix) {
    memory.lap(.gathering)
    headCorrection = correction
  }

  /// Quantizes the head, whose rows are the first rank's, as few runs have them.
  func quantize(_ head: Recipe.Head, _ problem: LayerProblem) throws {
    memory.lap(.gathering)
    defer { memory.lap(.descending) }
    progress(.step("solving \(head.linear.name)"))
    if !run.description.hasTiedHead, let tensor = run.checkpoint.tensors["\(head.linear.name).weight"] {
      importance?.add(tensor.storedName, energies: problem.inputEnergies)
    }
    guard run.ranks.isChief else { return }
    self.head = try run.solve(head, problem, correction: headCorrection) { rows, firstRow in
      progress(.advanced)
      try finished.write(rows, firstRow: firstRow)
    }
    for warning in self.head?.warnings ?? [] { progress(.warning(warning)) }
  }

  private func addImportance(
    _ layer: DecoderLayer, _ stage: Stage, _ problem: LayerProblem, _ expert: LayerLoop.ExpertShare?
  ) {
    if importance == nil { return }
    for linear in stage.linears {
      guard let tensor = run.checkpoint.tensors["\(layer.moduleName(of: linear)).weight"] else { continue }
      if let expert, let stack = tensor.part, stack.shape.count == 3 {
        // What is known of all tokens stands for an expert that none reaches.
        importance?.add(
          stack.whole, energies: problem.inputEnergies, tokens: max(expert.tokens, 1),
          expert: expert.number, of: stack.shape[0])
      } else {
        importance?.add(tensor.storedName, energies: problem.inputEnergies)
      }
    }
  }
}
