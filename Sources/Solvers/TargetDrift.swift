import Compute
import Tensors

/// What a linear that adds to the residual stream would have to give beside its own output for the stream to be the
/// original model's, summed up over a sample of the calibration set that runs through both models.
///
/// With X and R, the inputs and the residual stream of the quantized model so far, and X° and R°, those of the
/// original, the stream is off by E = W (X° − X) + R° − R once the linear, not yet quantized, has run.
public struct TargetDrift {
  let sum: Matrix
  let gram: Matrix

  /// - Parameters:
  ///   - sum: E Xᵀ, `[outFeatures, inFeatures]`; overwritten when a problem is made of the drift
  ///   - gram: X Xᵀ of the sample, `[inFeatures, inFeatures]`, both triangles; overwritten likewise
  public init(sum: Matrix, gram: Matrix) {
    self.sum = sum
    self.gram = gram
  }

  /// The ridge of the regression that a correction is, as a share of the mean diagonal of its Gram matrix.
  ///
  /// Most of a drift is no linear function of the inputs. A hundred times the solver's ridge keeps the correction
  /// from fitting that part: docs/SOLVER.md has the figures from 1 % to 1,000 %.
  static let damping: Float = 1

  /// The C with the least ‖C X − E‖² + λ‖C‖² over the sample: E Xᵀ (X Xᵀ + λI)⁻¹. In the sum's memory.
  /// - Returns: nil where the sample's inputs are all zero
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  func correction(backend: any ComputeBackend) throws(SolverError) -> Matrix? {
    let ridge = LayerProblem.addRidge(to: gram, damping: Self.damping)
    guard ridge > 0 else { return nil }
    do { try backend.factorizeCholesky(gram) } catch {
      throw .notPositiveDefinite(ridge: ridge)
    }
    backend.solveCholesky(rows: sum, factor: gram)
    return sum
  }
}
