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
  /// The rows that are summed up here.
  private let panels: [Range<Int>]

  /// - Parameters:
  ///   - linear: adds its output to the residual stream
  ///   - scale: the factor with which
  ///   - operands: what differences and inputs are rounded to
  ///   - panels: the rows of the linear that are wanted
  init(
    _ linear: LayerLinear, scale: Float, operands: OperandType, backend: any ComputeBackend,
    panels: [Range<Int>]
  ) {
    self.linear = linear
    self.scale = scale
    self.operands = operands
    self.backend = backend
    self.panels = panels
    sum = backend.makeMatrix(rows: linear.outFeatures, columns: linear.inFeatures)
  }

  /// What the residual stream lacks of a batch, in units of the linear's output.
  /// - Parameters:
  ///   - original: overwritten; its residual has the result
  ///   - layer: with the linear's weights as they were
  func drift(_ quantized: Reached, original: Reached, layer: DecoderLayer) -> Matrix {
    backend.subtract(quantized.input, from: original.input)
    backend.subtract(quantized.residual, from: original.residual)
    if scale != 1 { backend.scale(original.residual, by: 1 / scale) }
    layer.addProduct(of: original.input, with: linear, to: original.residual)
    return original.residual
  }

  /// Adds a batch.
  /// - Parameters:
  ///   - drift: of the batch, each token's by its weight
  ///   - input: what the stage's linears read
  func add(_ drift: Matrix, _ input: Matrix) {
    backend.accumulateCrossProduct(drift, input, operands: operands, into: sum, rows: panels)
  }

  /// What the linear's target is moved by; nothing can be added any more.
  /// - Parameter gram: Σ of the batches that were added, in the lower triangle, which stays as it is
  /// - Throws: ``SolverError``
  func correction(gram: Matrix) throws -> Matrix? {
    try TargetDrift.correction(sum: sum, gram: gram, rows: panels, backend: backend)
  }
}
