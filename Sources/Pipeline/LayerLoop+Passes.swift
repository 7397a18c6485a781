import Calibration
import Compute
import Decoder
import Solvers
import Tensors

// One pass over the batches: from the embedding, or one stage, to the next one, whose problem is summed up on the way.
extension LayerLoop {
  /// The rows of a linear that this rank sums up the drift of, and solves.
  private func ownPanels(of linear: LayerLinear, in layer: DecoderLayer) -> [Range<Int>] {
    // A device has no use for parts.
    if backend.deviceMemory != nil { return [0..<linear.outFeatures] }
    let panels = MemoryPlan.panels(of: linear.outFeatures, most: panelRows)
    // Of the linears of its stage it is the first and the only one.
    if solvesWhole(layer.moduleName(of: linear)) { return ranks.owns(0) ? panels : [] }
    var dealer = PanelDealer(ranks: ranks.count)
    return zip(panels, dealer.owners(of: panels)).filter { $1 == ranks.rank }.map(\.0)
  }

  /// Takes every batch to a stage, from the one before it or from the embedding.
  /// - Returns: what the stage's problem is made of; nil unless `gathering`
  func enter(
    _ next: Position, from here: Position?, beginsLayer: Bool, gathering: Bool
  ) throws -> Statistics? {
    guard let here else { return try embed(into: next, gathering: gathering) }
    return try advance(here, to: next, beginsLayer: beginsLayer, gathering: gathering)
  }

  /// Embeds the calibration set and adds up the first stage's Gram matrix. Both streams share the embeddings, unless the
  /// quantized model has others.
  private func embed(into first: Position, gathering: Bool) throws -> Statistics? {
    let gram = gathering ? makeGramMatrix(inFeatures: first.stage.inFeatures, owning: ranks.owns) : nil
    let transitions = streams.map {
      ($0.batches.indices, $0.states.embeddingTransition())
    }
    try gather(into: gram, of: first) { batch in
      let samples = batches[batch]
      let state = LayerState(
        residual: try times.measure(.embedding) {
          try quantized.model.embed(calibration.tokens(of: samples))
        })
      for (stream, (indices, transition)) in zip(streams, transitions) where indices.contains(batch) {
        let isOwn = stream !== quantized && quantized.model.roundsTokens
        let own =
          try isOwn
          ? LayerState(
            residual: times.measure(.embedding) { try stream.model.embed(calibration.tokens(of: samples)) })
          : state
        try store(own, by: transition, batch, layer: 0, after: "the embedding")
      }
      return Contribution(state: state)
    }
    for (_, transition) in transitions { try transition.finish() }
    return gram.map { Statistics(gram: $0, correction: nil) }
  }

  /// Runs a stage on every batch and adds up what the next one's problem is made of.
  private func advance(
    _ here: Position, to next: Position, beginsLayer: Bool, gathering: Bool
  ) throws -> Statistics? {
    let gram = gathering ? makeGramMatrix(inFeatures: next.stage.inFeatures, owning: ranks.owns) : nil
    let sum =
      original == nil || gram == nil
      ? nil
      : next.stage.residualScale.map {
        DriftSum(
          next.stage.linears[0], scale: $0, operands: quantized.model.operands, backend: backend,
          panels: ownPanels(of: next.stage.linears[0], in: next.quantized))
      }
    var correction: Matrix?
    if let layer = here.original, here.stage.experts.isEmpty { try load(here.stage, in: layer) }
    // The drift is that of the stage's linear before it is quantized.
    if sum != nil { try load(next.stage, in: next.quantized) }
    let step = quantized.states.transition(through: here.stage, beginsLayer: beginsLayer)
    let originalStep = original?.states.transition(through: here.stage, beginsLayer: beginsLayer)
    try gather(into: gram, of: next, drifting: sum == nil ? 0 : original?.batches.count ?? 0) { batch in
      let samples = batches[batch]
      var contribution = Contribution(
        state: try run(quantized, here.stage, here.quantized, next.stage, step, batch, samples))
      guard let original, let layer = here.original, let nextLayer = next.original, let originalStep,
        original.batches.indices.contains(batch)
      else { return contribution }
      let originalState = try run(original, here.stage, layer, next.stage, originalStep, batch, samples)
      guard let sum else { return contribution }
      func reached(_ state: LayerState, _ layer: DecoderLayer) -> DriftSum.Reached {
        DriftSum.Reached(
          input: times.measure(.forward) { layer.input(of: next.stage, state) }, residual: state.residual)
      }
      let reached = (
        quantized: reached(contribution.state, next.quantized), original: reached(originalState, nextLayer)
      )
      contribution.input = reached.quantized.input
      contribution.drift = times.measure(.gram) {
        // What the state held is in the cache by now: its memory takes the difference.
        sum.drift(reached.quantized, original: reached.original, layer: next.quantized)
      }
      return contribution
    } added: { batch, input, drift in
      guard let sum, let gram, let original, let drift else { return }
      times.measure(.gram) { sum.add(drift, input) }
      if batch + 1 == original.batches.endIndex {
        try exchange(gram, of: next)
        correction = try times.measure(.gram) { try sum.correction(gram: gram.values) }
      }
    }
    try step.finish()
    try originalStep?.finish()
    return gram.map { Statistics(gram: $0, correction: correction) }
  }
}
