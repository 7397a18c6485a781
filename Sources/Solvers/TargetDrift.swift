import Compute
import Tensors

/// What a linear that adds to the residual stream would have to give beside its own output for the stream to be the
/// original model's, summed up over a sample of the calibration set that runs through both models.
///
/// With X and R, the inputs and the residual stream of the quantized model so far, and X° and R°, those of the
/// original, the stream is off by E = W (X° − X) + R° − R once the linear, not yet quantized, has run.
public enum TargetDrift {
  /// The ridge of the regression that a correction is, as a share of the mean diagonal of its Gram matrix.
  ///
  /// Most of a drift is no linear function of the inputs. A hundred times the solver's ridge keeps the correction
  /// from fitting that part: docs/SOLVER.md has the figures from 1 % to 1,000 %.
  public static let damping: Float = 1

  /// The same for what the head reads, behind which nothing makes up for what is left: less, where there are tokens enough for
  /// each of its columns.
  public static func headDamping(width: Int, tokens: Int) -> Float {
    0.1 * max(1, 7 * Float(width) / Float(max(tokens, 1)))
  }

  /// The C with the least ‖C X − E‖² + λ‖C‖² over the sample: E Xᵀ (X Xᵀ + λI)⁻¹.
  /// - Parameters:
  ///   - sum: E Xᵀ, `[outFeatures, inFeatures]`; its memory takes the result
  ///   - gram: X Xᵀ of the sample in the lower triangle and on the diagonal, `[inFeatures, inFeatures]`, which stay as
  ///     they are; above the diagonal it is overwritten
  ///   - rows: the rows that the result is wanted of, each range on its own
  ///   - damping: λ as a share of the mean of X Xᵀ's diagonal
  /// - Returns: nil where the sample's inputs are all zero
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  public static func correction(
    sum: Matrix, gram: Matrix, rows: [Range<Int>], damping: Float = damping, backend: any ComputeBackend
  ) throws(SolverError) -> Matrix? {
    let diagonal = backend.diagonal(of: gram)
    let ridge = diagonal.ridge(damping)
    guard ridge > 0 else { return nil }
    backend.symmetrize(gram)
    backend.setDiagonal(diagonal.map { $0 + ridge }, of: gram)
    defer { backend.setDiagonal(diagonal, of: gram) }
    do { try backend.factorizeCholesky(gram) } catch {
      throw .notPositiveDefinite(ridge: ridge)
    }
    backend.solveCholesky(rows: sum, rows, factor: gram)
    return sum
  }
}
