import ActivationCache
import Calibration
import Compute
import Decoder
import Solvers
import Tensors

/// Walks through a model stage by stage: one decoder layer resident, the calibration set's states in the
/// activation cache.
///
/// One pass over the batches serves two stages: it runs the linears of one, which are quantized by then, and
/// adds up the Gram matrix of the next. Every linear runs once.
final class LayerLoop {
  private let model: DecoderModel
  private let calibration: CalibrationSet
  private let backend: any ComputeBackend
  private let batches: [Range<Int>]
  private let states: StagedStates
  private(set) var times = PhaseTimes()

  /// - Parameter batchSamples: sequences that are computed at a time
  init(
    model: DecoderModel, calibration: CalibrationSet, store: HiddenStatesStore,
    backend: any ComputeBackend, batchSamples: Int
  ) {
    self.model = model
    self.calibration = calibration
    self.backend = backend
    batches = calibration.batches(of: batchSamples)
    states = StagedStates(store: store, stream: 0)
  }

  /// Runs the loop.
  /// - Parameter quantize: replaces the weights of a stage's linears in the layer, given their Gram matrix
  func run(_ quantize: (_ layer: DecoderLayer, _ stage: Stage, _ problem: LayerProblem) throws -> Void) throws {
    var layer = try times.measure(.loading) { try model.layer(0) }
    var gram = try embed(into: layer)
    for index in 0..<model.description.layerCount {
      for (position, stage) in layer.stages.enumerated() {
        times.measure(.gram) { gram.finish(backend: backend) }
        let problem = LayerProblem(gram: gram.values)
        try times.measure(.solver) { try quantize(layer, stage, problem) }
        if position + 1 < layer.stages.count {
          gram = try advance(layer, stage, to: layer, layer.stages[position + 1])
        } else if index + 1 < model.description.layerCount {
          let next = try times.measure(.loading) { try model.layer(index + 1) }
          gram = try advance(layer, stage, to: next, next.stages[0])
          layer = next
        }
      }
    }
  }

  /// Embeds the calibration set and adds up the first stage's Gram matrix.
  private func embed(into layer: DecoderLayer) throws -> GramMatrix {
    let gram = GramMatrix(inFeatures: layer.stages[0].inFeatures)
    let transition = states.transition(writing: [.residual], consuming: [])
    for (batch, samples) in batches.enumerated() {
      let state = LayerState(
        residual: try times.measure(.embedding) {
          try model.embed(calibration.tokens(of: samples))
        })
      try times.measure(.cache) { try transition.write(state, batch: batch) }
      accumulate(layer, layer.stages[0], state, gram)
    }
    transition.finish()
    return gram
  }

  /// Runs a stage on every batch and adds up the next one's Gram matrix.
  private func advance(
    _ layer: DecoderLayer, _ stage: Stage, to nextLayer: DecoderLayer, _ next: Stage
  ) throws -> GramMatrix {
    let gram = GramMatrix(inFeatures: next.inFeatures)
    let slots = stage.reads.union([next.inputSlot])
    let transition = states.transition(writing: stage.writes, consuming: stage.consumes)
    for (batch, samples) in batches.enumerated() {
      let tokens = samples.count * calibration.sequenceLength
      var state = try times.measure(.cache) {
        try states.read(slots, batch: batch, tokens: tokens, columns: columns)
      }
      if batch + 1 < batches.count { states.prefetch(slots, batch: batch + 1) }
      times.measure(.forward) {
        let input = layer.input(of: stage, state)
        layer.run(stage, input: input, sequenceLength: calibration.sequenceLength, state: &state)
      }
      try times.measure(.cache) { try transition.write(state, batch: batch) }
      accumulate(nextLayer, next, state, gram)
    }
    transition.finish()
    return gram
  }

  private func accumulate(_ layer: DecoderLayer, _ stage: Stage, _ state: LayerState, _ gram: GramMatrix) {
    let input = times.measure(.forward) { layer.input(of: stage, state) }
    times.measure(.gram) { gram.accumulate(input, backend: backend) }
  }

  private func columns(_ slot: StagedStates.Slot) -> Int {
    switch slot {
    case .residual: model.description.hiddenSize
    case .context: model.description.contextFeatures
    case .intermediate: model.description.intermediateSize
    }
  }
}

extension Stage {
  var inFeatures: Int { linears[0].inFeatures }
}
