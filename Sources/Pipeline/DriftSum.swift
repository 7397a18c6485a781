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
  /// The factor with which its output is added.
  private let scale: Float
  private let sum: Matrix
  private let operands: OperandType
  private let backend: any ComputeBackend

  /// - Parameters:
  ///   - linear: adds its output to the residual stream
  ///   - scale: the factor with which
  ///   - operands: what differences and inputs are rounded to
  init(_ linear: LayerLinear, scale: Float, operands: OperandType, backend: any ComputeBackend) {
    self.linear = linear
    self.scale = scale
    self.operands = operands
    self.backend = backend
    sum = backend.makeMatrix(rows: linear.outFeatures, columns: linear.inFeatures)
  }

  /// Adds a batch.
  /// - Parameters:
  ///   - original: overwritten
  ///   - layer: with the linear's weights as they were
  ///   - weighing: multiplies rows by their tokens' weights
  func add(
    _ quantized: Reached, original: Reached, layer: DecoderLayer, weighing: (Matrix) -> Void
  ) {
    backend.subtract(quantized.input, from: original.input)
    backend.subtract(quantized.residual, from: original.residual)
    // In units of the linear's output.
    if scale != 1 { backend.scale(original.residual, by: 1 / scale) }
    layer.addProduct(of: original.input, with: linear, to: original.residual)
    weighing(original.residual)
    backend.accumulateCrossProduct(original.residual, quantized.input, operands: operands, into: sum)
  }

  /// What the linear's target is moved by; nothing can be added any more.
  /// - Parameter gram: Σ of the batches that were added, in the lower triangle, which stays as it is
  /// - Throws: ``SolverError``
  func correction(gram: Matrix) throws -> Matrix? {
    try TargetDrift.correction(sum: sum, gram: gram, backend: backend)
  }
}
