import ActivationCache
import Decoder

// One batch of a stream on its way through a stage.
extension LayerLoop {
  /// Takes one batch of a stream through a stage and returns what the next one reads of it.
  func run(
    _ stream: Stream, _ stage: Stage, _ layer: DecoderLayer, _ next: Stage,
    _ step: StagedStates.Transition, _ batch: Int, _ samples: Range<Int>
  ) throws -> LayerState {
    if isTakingOver, try step.isWritten(batch: batch) {
      let tokens = samples.count * calibration.sequenceLength
      return try times.measure(.cache) {
        try step.readWritten(next.reads.union([next.inputSlot]), batch: batch, tokens: tokens)
      }
    }
    let state = try run(
      stream, stage, layer, reading: stage.reads.union([next.inputSlot]), batch, samples)
    try store(state, by: step, batch, layer: layer.index, after: stage.title)
    return state
  }

  /// Takes one batch of a stream through a stage.
  /// - Parameter slots: what is read of it
  func run(
    _ stream: Stream, _ stage: Stage, _ layer: DecoderLayer, reading slots: Set<StagedStates.Slot>,
    _ batch: Int, _ samples: Range<Int>
  ) throws -> LayerState {
    var state = try times.measure(.cache) {
      try stream.states.read(slots, batch: batch, tokens: samples.count * calibration.sequenceLength)
    }
    if batch + ranks.count < stream.batches.count {
      stream.states.prefetch(slots, batch: batch + ranks.count)
    }
    times.measure(.forward) {
      if stage.isRunAgain { return }
      guard stage.experts.isEmpty else { return addMixture(of: stream, samples, layer, to: state) }
      let input = layer.input(of: stage, state)
      layer.run(stage, input: input, sequenceLength: calibration.sequenceLength, state: &state)
    }
    return state
  }

  /// Adds what a mixture has made of a batch.
  private func addMixture(
    of stream: Stream, _ samples: Range<Int>, _ layer: DecoderLayer, to state: LayerState
  ) {
    let length = calibration.sequenceLength
    guard let output = stream.mixtureOutput else { preconditionFailure("the mixture has not been run") }
    layer.addMixture(
      backend.upload(output.sums.rows(samples.lowerBound * length..<samples.upperBound * length)), to: state)
  }

  /// Stores what a stage has left of a batch; a value that is not finite is reported by its place in the model.
  func store(
    _ state: LayerState, by step: StagedStates.Transition, _ batch: Int, layer: Int, after place: String
  ) throws {
    do {
      try times.measure(.cache) { try step.write(state, batch: batch) }
      try backend.checkDevice()
    } catch let error as CacheError {
      switch error {
      case .notFinite(_, let row, let column, let value):
        throw PipelineError.badActivations(
          layer: layer, after: place, value: value, token: row, feature: column)
      case .overflow(_, let row, let column, let value, _):
        throw PipelineError.badActivations(
          layer: layer, after: place, value: "\(value)", token: row, feature: column)
      default: throw error
      }
    }
  }
}
