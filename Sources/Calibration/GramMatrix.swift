import Compute
import Tensors

/// Σ = X Xᵀ over the calibration inputs X of the linears of one stage, `[inFeatures, inFeatures]`, fp32, in the lower
/// triangle.
public final class GramMatrix {
  public let values: Matrix
  /// Inputs added so far.
  public private(set) var tokens = 0

  public init(inFeatures: Int) {
    values = Matrix(rows: inFeatures, columns: inFeatures)
  }

  /// Adds a batch of inputs.
  /// - Parameter inputs: `[tokens, inFeatures]`
  public func accumulate(_ inputs: Matrix, backend: any ComputeBackend) {
    backend.accumulateGram(inputs, into: values)
    tokens += inputs.rows
  }
}
