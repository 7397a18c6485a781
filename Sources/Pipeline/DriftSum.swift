import Compute
import Decoder
import Solvers
import Tensors

/// Sums up what a linear's output lacks for the residual stream to be the original model's, over the batches that both
/// models run.
struct DriftSum {
  /// What a batch of a stream brings to a stage.
  struct Reached {
    /// What the stage's linears read, `[tokens, inFeatures]`.
    let input: Matrix
    /// `[tokens, hiddenSize]`
    let residual: Matrix
  }

  private let linear: LayerLinear
  private let sum: Matrix
  private let backend: any ComputeBackend

  /// - Parameter linear: adds its output to the residual stream
  init(_ linear: LayerLinear, backend: any ComputeBackend) {
    self.linear = linear
    self.backend = backend
    sum = Matrix(rows: linear.outFeatures, columns: linear.inFeatures)
  }

  /// Adds a batch.
  /// - Parameters:
  ///   - original: overwritten
  ///   - layer: with the linear's weights as they were
  func add(_ quantized: Reached, original: Reached, layer: DecoderLayer) {
    backend.subtract(quantized.input, from: original.input)
    backend.subtract(quantized.residual, from: original.residual)
    backend.multiply(
      original.input, layer.weights(of: linear), transposingB: true, scale: 1, into: original.residual,
      keeping: 1)
    backend.accumulateCrossProduct(original.residual, quantized.input, into: sum)
  }

  /// What the linear's target is moved by; nothing can be added any more.
  /// - Parameter gram: Σ of the batches that were added, in the lower triangle, which stays as it is
  /// - Throws: ``SolverError``
  func correction(gram: Matrix) throws -> Matrix? {
    try TargetDrift.correction(sum: sum, gram: gram, backend: backend)
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
