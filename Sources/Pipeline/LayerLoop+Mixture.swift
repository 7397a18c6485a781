import Calibration
import Compute
import Decoder
import Glibc
import Solvers
import Tensors

// A layer's mixture: the tokens are routed once, and then every expert is quantized and run on its own tokens, so that
// the memory of one expert is enough. Their order is fixed, and so are the sums, to the bit.
extension LayerLoop {
  /// Quantizes and runs a mixture; what it makes of every token is added to the residual stream when the batches are taken
  /// to the next stage.
  /// - Parameters:
  ///   - shared: the Gram matrix of what all experts read; nil if nothing is to be quantized
  ///   - quantize: see ``run(knowing:_:collecting:correctingHead:head:)``
  ///   - collect: likewise
  func runMixture(
    _ position: Position, shared: GramMatrix?, knowing known: (any KnownLinears)?,
    _ quantize: Quantize, _ collect: Collect
  ) throws {
    let (stage, layer) = (position.stage, position.quantized)
    let output = try route(position, layer, quantized)
    let originalOutput = try position.original.flatMap { original in
      try self.original.map { try route(position, original, $0) }
    }
    let grams = shared.map {
      ExpertGrams(
        layer: layer, tokens: output.tokens, shared: $0, settings: experts,
        operands: quantized.model.operands, backend: backend)
    }
    /// Quantizes an expert, and leaves all of it loaded.
    func solve(_ expert: Stage.Expert, _ index: Int) throws {
      let share = expert.number.map {
        ExpertShare(number: $0, tokens: output.tokens.routing.shares[index].tokens.count)
      }
      if let grams, known?.isKnown(expert.expansion, inLayer: layer.index) != true {
        let gram = times.measure(.gram) { grams.expansion(of: expert, index) }
        replaceWeights(of: layer, by: try self.solve(expert.expansion, in: layer, gram, share, quantize))
      }
      try load(expert.expansion, in: layer)
      if let grams, known?.isKnown(expert.contraction, inLayer: layer.index) != true {
        let gram = times.measure(.gram) { grams.contraction(of: expert, index) }
        replaceWeights(of: layer, by: try self.solve(expert.contraction, in: layer, gram, share, quantize))
      }
      try load(expert.contraction, in: layer)
    }
    // A round has an expert for each rank.
    for round in stage.experts.indices.parts(of: ranks.count) {
      for index in round {
        for half in stage.experts[index].halves {
          try known?.restore(half, in: layer, on: ranks.owner(of: index))
        }
      }
      var own: (quantized: ExpertRows?, original: ExpertRows?)
      if let index = round.first(where: ranks.owns) {
        advanced()
        let expert = stage.experts[index]
        try solve(expert, index)
        own.quantized = make(expert, index, position, layer, output, quantized)
        unload(expert, layer)
        if let layer = position.original, let originalOutput, let original {
          for half in expert.halves { try load(half, in: layer) }
          own.original = make(expert, index, position, layer, originalOutput, original)
          unload(expert, layer)
        }
      }
      for index in round {
        let expert = stage.experts[index]
        for half in expert.halves where shared != nil && known?.isKnown(half, inLayer: layer.index) != true {
          try collect(layer, half, ranks.owner(of: index))
        }
        try add(own.quantized, of: expert, index, position, layer, quantized, to: output)
        if let layer = position.original, let originalOutput, let original {
          try add(own.original, of: expert, index, position, layer, original, to: originalOutput)
        }
      }
    }
    quantized.mixtureOutput = output
    self.original?.mixtureOutput = originalOutput
  }

  /// Gives the memory of an expert's weights back.
  private func unload(_ expert: Stage.Expert, _ layer: DecoderLayer) {
    for half in expert.halves {
      layer.unload(half)
      layer.forget(half)
    }
  }

  /// Runs a mixture, of which nothing is to be quantized, on some of a stream's batches.
  func runMixture(
    _ stage: Stage, _ layer: DecoderLayer, _ stream: Stream, _ batches: [Int],
    knowing known: (any KnownLinears)?
  ) throws {
    let output = try route(stage, layer, stream, batches)
    for (index, expert) in stage.experts.enumerated() {
      advanced()
      for half in expert.halves {
        try known?.restore(half, in: layer)
        try load(half, in: layer)
      }
      add(expert, index, layer, to: output)
      unload(expert, layer)
    }
    stream.mixtureOutput = output
  }

  /// Reads what the experts read of some batches, and decides who goes where.
  private func route(
    _ stage: Stage, _ layer: DecoderLayer, _ stream: Stream, _ chosen: [Int]
  ) throws -> MixtureOutput {
    let output = try makeOutput(stage, stream)
    for batch in chosen {
      advanced()
      route(try residual(batch, of: stream), batch, stage, layer, output)
    }
    return output
  }

  private func makeOutput(_ stage: Stage, _ stream: Stream) throws -> MixtureOutput {
    try MixtureOutput(
      tokens: (stream.batches.last?.upperBound ?? 0) * calibration.sequenceLength,
      hiddenSize: stage.hiddenSize, experts: stage.experts.count, directory: scratchDirectory)
  }

  private func residual(_ batch: Int, of stream: Stream) throws -> LayerState {
    try times.measure(.cache) {
      try stream.states.read(
        [.residual], batch: batch, tokens: batches[batch].count * calibration.sequenceLength)
    }
  }

  private func route(
    _ state: LayerState, _ batch: Int, _ stage: Stage, _ layer: DecoderLayer, _ output: MixtureOutput
  ) {
    times.measure(.forward) {
      let input = layer.mixtureInput(of: stage, state)
      let first = batches[batch].lowerBound * calibration.sequenceLength
      backend.withHostMatrix(input, for: .reading) {
        output.tokens.inputs.rows(first..<first + $0.rows).copy(from: $0)
      }
      output.tokens.routing.append(layer.route(input), offset: first)
    }
  }

  /// The same for every batch that is still to be taken further, on all ranks: an expert's tokens are whoever's.
  private func route(_ position: Position, _ layer: DecoderLayer, _ stream: Stream) throws -> MixtureOutput {
    let step = stream.states.peek(through: position.stage)
    let own = try stream.ownBatches.filter { try !step.isWritten(batch: $0) }
    let output = try makeOutput(position.stage, stream)
    let chosen = ranks.isAlone ? own : try gather(own, label(.holdings, of: position, -1)).joined().sorted()
    try shareEach(
      chosen, columns: position.stage.hiddenSize, as: quantized.states.elementType,
      { label(.input, of: position, $0) }
    ) { batch in
      try residual(batch, of: stream).residual
    } take: { batch, residual in
      route(LayerState(residual: residual), batch, position.stage, layer, output)
    }
    return output
  }

  /// Adds what an expert, all of which is loaded, makes of its tokens.
  func add(_ expert: Stage.Expert, _ index: Int, _ layer: DecoderLayer, to output: MixtureOutput) {
    times.measure(.forward) {
      let share = output.tokens.routing.shares[index]
      normalizeRouted(before: expert, layer, output)
      forEachOutput(of: expert, share, layer, output) { made, range in
        layer.add(made, of: expert, share, range, to: output.sums)
      }
    }
  }

  /// Normalizes what the experts before the shared one have made together.
  func normalizeRouted(before expert: Stage.Expert, _ layer: DecoderLayer, _ output: MixtureOutput) {
    for range in MixtureTokens.chunks(of: output.sums.rows) {
      layer.normalizeRouted(output.sums.rows(range), before: expert)
    }
  }

  /// Lends what an expert, all of which is loaded, makes of its tokens, some at a time.
  func forEachOutput(
    of expert: Stage.Expert, _ share: Routing.Share, _ layer: DecoderLayer, _ output: MixtureOutput,
    _ body: (_ made: Matrix, _ range: Range<Int>) -> Void
  ) {
    output.tokens.forEachChunk(of: share, expert, layer, backend) { rows, range in
      body(layer.output(of: expert, intermediate: layer.intermediate(of: expert, rows)), range)
    }
  }
}
