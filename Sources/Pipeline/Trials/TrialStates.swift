import Calibration
import Compute
import Decoder
import Tensors

/// Hidden states of a few sequences, taken through a model in the backend's memory, a stage at a time.
struct TrialStates {
  private var state: LayerState
  private let firstTokens: FirstTokens
  private let backend: any ComputeBackend

  /// - Parameters:
  ///   - tokens: whole sequences of the model's length, one after the other
  ///   - run: whose backend it is, and whose problems the states sum up
  init(_ model: DecoderModel, _ tokens: [Int32], of run: QuantizationRun) throws {
    backend = run.backend
    state = LayerState(residual: backend.copy(of: try model.embed(tokens)))
    firstTokens = FirstTokens(
      weight: Float(run.request.firstTokenWeight), sequenceLength: model.sequenceLength)
  }

  /// The residual stream, `[tokens, hiddenSize]`.
  var residual: Matrix { state.residual }

  /// The same states, to go another way.
  var copy: TrialStates {
    var result = self
    for slot in StagedStates.Slot.allCases { result.state[slot] = state[slot].map { backend.copy(of: $0) } }
    return result
  }

  /// What the experts of a stage read of them, and who reads what.
  func mixtureTokens(of stage: Stage, in layer: DecoderLayer) -> MixtureTokens {
    let input = layer.mixtureInput(of: stage, state)
    return MixtureTokens(inputs: backend.download(input), routing: layer.route(input))
  }

  /// Runs a stage that is loaded. What it leaves in the layer's own memory is copied: other states go through it next.
  /// - Parameter gram: gets what the stage reads
  mutating func advance(through stage: Stage, of layer: DecoderLayer, summing gram: GramMatrix? = nil) {
    var next = state
    let input = layer.input(of: stage, next)
    if let gram { firstTokens.add(input, to: gram, of: stage, backend) }
    layer.run(stage, input: input, sequenceLength: firstTokens.sequenceLength, state: &next)
    for slot in StagedStates.Slot.allCases where slot != .residual {
      if stage.writes.contains(slot) {
        state[slot] = next[slot].map { backend.copy(of: $0) }
      } else if stage.consumes.contains(slot) {
        state[slot] = nil
      }
    }
  }
}

extension DecoderHead {
  /// Tokens whose logits are in memory at a time.
  static let trialTokens = 256

  /// How far predictions are from those of this head on `reference`, as the mean over all tokens of the Kullback-Leibler
  /// divergence, in nats.
  /// - Parameters:
  ///   - predictions: heads, and states `[tokens, hiddenSize]` that go through them
  ///   - reference: as many states
  func meanDivergences(
    of predictions: [(head: DecoderHead, states: Matrix)], from reference: Matrix,
    _ backend: any ComputeBackend
  ) -> [Double] {
    var sums = [Double](repeating: 0, count: predictions.count)
    for first in stride(from: 0, to: reference.rows, by: Self.trialTokens) {
      let rows = first..<min(first + Self.trialTokens, reference.rows)
      let expected = backend.copy(of: logits(reference.rows(rows)))
      for (index, prediction) in predictions.enumerated() {
        let found = backend.divergences(
          of: prediction.head.logits(prediction.states.rows(rows)), from: expected)
        sums[index] += found.reduce(0) { $0 + Double($1.divergence) }
      }
    }
    return sums.map { $0 / Double(max(reference.rows, 1)) }
  }
}

extension ComputeBackend {
  /// Does work whose faults may be those of a device: what one that failed leaves shows as all kinds of them.
  /// - Throws: the backend's ``failure``, if there is one, or what `body` throws
  func tellingDeviceFaults<Result>(_ body: () throws -> Result) throws -> Result {
    do { return try body() } catch {
      try checkDevice()
      throw error
    }
  }
}
