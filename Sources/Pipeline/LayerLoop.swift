import ActivationCache
import Calibration
import Compute
import Decoder
import Solvers
import Tensors

/// What the quantized layers are to come close to.
public enum Target: String, Sendable, CaseIterable, Codable {
  /// The layer's own output on the inputs that the quantized model produces.
  case layer
  /// The original model's output on its own inputs, so that a layer also makes up for those before it.
  case original
}

/// Walks through a model stage by stage: one decoder layer resident, the calibration set's states in the
/// activation cache.
///
/// One pass over the batches serves two stages: it runs the linears of one, which are quantized by then, and
/// adds up the Gram matrix of the next. Every linear runs once; with ``Target/original`` the original linears
/// run beside them, on hidden states of their own.
final class LayerLoop {
  private let quantized: Stream
  private let original: Stream?
  private let calibration: CalibrationSet
  private let backend: any ComputeBackend
  private let damping: Float
  private let batches: [Range<Int>]
  private let layerCount: Int
  private(set) var times = PhaseTimes()

  /// One model's way through the layers: its hidden states, and the layer it is in.
  private final class Stream {
    let model: DecoderModel
    let states: StagedStates

    init(model: DecoderModel, store: HiddenStatesStore, number: Int) {
      self.model = model
      states = StagedStates(store: store, stream: number, description: model.description)
    }
  }

  /// The stage of a layer that every stream has reached.
  private struct Position {
    let stage: Stage
    let quantized: DecoderLayer
    let original: DecoderLayer?
  }

  /// What a stage's problem is made of.
  private struct Statistics {
    let gram: GramMatrix
    /// (X° − X) Xᵀ; nil where both streams still have the same inputs.
    let drift: Matrix?
  }

  /// - Parameters:
  ///   - original: a second instance of the model, whose weights stay as they are; nil for ``Target/layer``
  ///   - damping: the ridge of the stages' problems
  ///   - batchSamples: sequences that are computed at a time
  init(
    model: DecoderModel, original: DecoderModel?, calibration: CalibrationSet,
    store: HiddenStatesStore, backend: any ComputeBackend, damping: Float, batchSamples: Int
  ) {
    quantized = Stream(model: model, store: store, number: 0)
    self.original = original.map { Stream(model: $0, store: store, number: 1) }
    self.calibration = calibration
    self.backend = backend
    self.damping = damping
    batches = calibration.batches(of: batchSamples)
    layerCount = model.description.layerCount
  }

  /// Runs the loop.
  /// - Parameter quantize: replaces the weights of a stage's linears in the layer, given their problem
  func run(_ quantize: (_ layer: DecoderLayer, _ stage: Stage, _ problem: LayerProblem) throws -> Void) throws
  {
    var layers = try load(0)
    var statistics = try embed(into: position(layers, 0))
    for index in 0..<layerCount {
      let stages = layers.quantized.stages
      for number in stages.indices {
        let here = position(layers, number)
        let problem = try times.measure(.solver) { try makeProblem(here, statistics) }
        try times.measure(.solver) { try quantize(here.quantized, here.stage, problem) }
        if number + 1 < stages.count {
          statistics = try advance(here, to: position(layers, number + 1))
        } else if index + 1 < layerCount {
          let next = try load(index + 1)
          statistics = try advance(here, to: position(next, 0))
          layers = next
        }
      }
    }
  }

  private typealias Layers = (quantized: DecoderLayer, original: DecoderLayer?)

  private func load(_ index: Int) throws -> Layers {
    try times.measure(.loading) {
      (try quantized.model.layer(index), try original?.model.layer(index))
    }
  }

  private func position(_ layers: Layers, _ stage: Int) -> Position {
    Position(
      stage: layers.quantized.stages[stage], quantized: layers.quantized, original: layers.original)
  }

  private func makeProblem(_ here: Position, _ statistics: Statistics) throws -> LayerProblem {
    statistics.gram.finish(backend: backend)
    let gram = statistics.gram.values
    if let feature = (0..<gram.rows).first(where: { !gram[$0, $0].isFinite }) {
      throw PipelineError.overflowingInputs(
        layer: here.quantized.index, of: here.stage.linears.map(\.name).joined(separator: ", "),
        feature: feature)
    }
    guard let drift = statistics.drift else {
      return LayerProblem(gram: statistics.gram.values, damping: damping)
    }
    return try LayerProblem(
      gram: statistics.gram.values, damping: damping, drift: drift, backend: backend)
  }

  /// Embeds the calibration set and adds up the first stage's Gram matrix, which both streams share.
  private func embed(into first: Position) throws -> Statistics {
    let gram = GramMatrix(inFeatures: first.stage.inFeatures)
    let streams = [quantized] + (original.map { [$0] } ?? [])
    let transitions = streams.map { $0.states.transition(writing: [.residual], consuming: []) }
    for (batch, samples) in batches.enumerated() {
      let state = LayerState(
        residual: try times.measure(.embedding) {
          try quantized.model.embed(calibration.tokens(of: samples))
        })
      for transition in transitions {
        try store(state, by: transition, batch, layer: 0, after: "the embedding")
      }
      let input = times.measure(.forward) { first.quantized.input(of: first.stage, state) }
      times.measure(.gram) { gram.accumulate(input, backend: backend) }
    }
    transitions.forEach { $0.finish() }
    return Statistics(gram: gram, drift: nil)
  }

  /// Runs a stage on every batch and adds up what the next one's problem is made of.
  private func advance(_ here: Position, to next: Position) throws -> Statistics {
    let gram = GramMatrix(inFeatures: next.stage.inFeatures)
    let drift = original.map { _ in Matrix(rows: gram.values.rows, columns: gram.values.columns) }
    let step = quantized.states.transition(through: here.stage)
    let originalStep = original?.states.transition(through: here.stage)
    for (batch, samples) in batches.enumerated() {
      let input = try run(
        quantized, here.stage, here.quantized, next.stage, next.quantized, step, batch, samples)
      times.measure(.gram) { gram.accumulate(input, backend: backend) }
      guard let original, let layer = here.original, let nextLayer = next.original,
        let originalStep, let drift
      else { continue }
      let originalInput = try run(
        original, here.stage, layer, next.stage, nextLayer, originalStep, batch, samples)
      times.measure(.gram) {
        // What the state held is in the cache by now: its memory takes the difference.
        backend.subtract(input, from: originalInput)
        backend.accumulateCrossProduct(originalInput, input, into: drift)
      }
    }
    step.finish()
    originalStep?.finish()
    return Statistics(gram: gram, drift: drift)
  }

  /// Takes one batch of a stream through a stage and returns the input of the next one.
  private func run(
    _ stream: Stream, _ stage: Stage, _ layer: DecoderLayer, _ next: Stage, _ nextLayer: DecoderLayer,
    _ step: StagedStates.Transition, _ batch: Int, _ samples: Range<Int>
  ) throws -> Matrix {
    let slots = stage.reads.union([next.inputSlot])
    var state = try times.measure(.cache) {
      try stream.states.read(slots, batch: batch, tokens: samples.count * calibration.sequenceLength)
    }
    if batch + 1 < batches.count { stream.states.prefetch(slots, batch: batch + 1) }
    times.measure(.forward) {
      let input = layer.input(of: stage, state)
      layer.run(stage, input: input, sequenceLength: calibration.sequenceLength, state: &state)
    }
    try store(
      state, by: step, batch, layer: layer.index,
      after: stage.linears.map(\.name).joined(separator: ", "))
    return times.measure(.forward) { nextLayer.input(of: next, state) }
  }

  /// Stores what a stage has left of a batch; a value that is not finite is reported by its place in the model.
  private func store(
    _ state: LayerState, by step: StagedStates.Transition, _ batch: Int, layer: Int, after place: String
  ) throws {
    do {
      try times.measure(.cache) { try step.write(state, batch: batch) }
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

extension Stage {
  var inFeatures: Int { linears[0].inFeatures }
}
