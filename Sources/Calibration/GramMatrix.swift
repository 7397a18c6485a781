import Compute
import Tensors

/// Σ = X Xᵀ over the calibration inputs X of the linears of one stage, `[inFeatures, inFeatures]`, fp32, in the lower
/// triangle.
public final class GramMatrix {
  public let values: Matrix
  /// Inputs added so far.
  public private(set) var tokens = 0
  private let operands: OperandType
  private let backend: any ComputeBackend

  /// - Parameter operands: what inputs are rounded to
  public init(inFeatures: Int, operands: OperandType = .float32, backend: any ComputeBackend) {
    self.operands = operands
    self.backend = backend
    values = backend.makeMatrix(rows: inFeatures, columns: inFeatures)
  }

  /// Adds a batch of inputs.
  /// - Parameter inputs: `[tokens, inFeatures]`
  public func accumulate(_ inputs: Matrix) {
    backend.accumulateGram(inputs, operands: operands, into: values)
    tokens += inputs.rows
  }
}
