import Compute
import Decoder
import Solvers
import Tensors

/// Sums up how far a stage of the quantized model is from giving what the original model has in its place, over the
/// batches that both run.
struct DriftSum {
  /// What a batch of a stream brings to a stage.
  struct Reached {
    /// What the stage's linears read, `[tokens, inFeatures]`.
    let input: Matrix
    /// `[tokens, hiddenSize]`
    let residual: Matrix
  }

  private let stage: Stage
  private let sum: Matrix
  private let backend: any ComputeBackend

  init(_ stage: Stage, backend: any ComputeBackend) {
    self.stage = stage
    self.backend = backend
    sum = Matrix(rows: stage.residualLinear?.outFeatures ?? stage.inFeatures, columns: stage.inFeatures)
  }

  /// Adds a batch.
  /// - Parameters:
  ///   - original: overwritten
  ///   - layer: the original model's, for its weights
  func add(_ quantized: Reached, original: Reached, layer: DecoderLayer) {
    backend.subtract(quantized.input, from: original.input)
    guard let linear = stage.residualLinear else {
      return backend.accumulateCrossProduct(original.input, quantized.input, into: sum)
    }
    backend.subtract(quantized.residual, from: original.residual)
    backend.multiply(
      original.input, layer.weights(of: linear), transposingB: true, scale: 1, into: original.residual,
      keeping: 1)
    backend.accumulateCrossProduct(original.residual, quantized.input, into: sum)
  }

  /// - Parameter gram: Σ of the batches that were added, its lower triangle not yet filled; overwritten
  func finish(gram: Matrix) -> TargetDrift {
    backend.symmetrize(gram)
    return TargetDrift(stage.residualLinear == nil ? .inputs(sum) : .outputs(sum), gram: gram)
  }
}

extension Stage {
  /// The linear whose output is added to the residual stream, if that is what the stage is.
  var residualLinear: LayerLinear? {
    switch parts {
    case [.attentionOutput], [.contraction]: linears[0]
    default: nil
    }
  }
}
