import Compute
import Tensors

/// How far a stage's linears are from giving what the original model has in their place, summed up over a sample of
/// the calibration set that runs through both models.
///
/// X and R are the inputs and the residual stream of the quantized model so far, X° and R° those of the original.
public struct TargetDrift {
  public enum Sum {
    /// (X° − X) Xᵀ, `[inFeatures, inFeatures]`: what all linears of the stage read is off by X° − X.
    case inputs(Matrix)
    /// E Xᵀ, `[outFeatures, inFeatures]`, with E = W (X° − X) + R° − R: the stage's one linear adds to the residual
    /// stream, and so can make up for what the stream itself is off by.
    case outputs(Matrix)
  }

  let sum: Sum
  /// X Xᵀ of the sample, `[inFeatures, inFeatures]`.
  let gram: Matrix

  /// - Parameters:
  ///   - sum: overwritten when a problem is made of the drift
  ///   - gram: both triangles, without a ridge; overwritten likewise
  public init(_ sum: Sum, gram: Matrix) {
    self.sum = sum
    self.gram = gram
  }

  /// The ridge of the regression that a correction is, as a share of the mean diagonal of its Gram matrix.
  ///
  /// Most of a drift is no linear function of the inputs. A hundred times the solver's ridge keeps the correction
  /// from fitting that part: docs/SOLVER.md has the figures from 1 % to 1,000 %.
  static let damping: Float = 1
}

/// What moves a linear's target W from its own output to what the original model has in its place.
public enum TargetCorrection: Sendable {
  /// W* = W + W C for every linear of the stage, C `[inFeatures, inFeatures]`.
  case inputs(Matrix)
  /// W* = W + C for the one linear of the stage, C `[outFeatures, inFeatures]`.
  case outputs(Matrix)

  /// The W* with the least ‖W* X − (W X + E)‖² + λ‖W* − W‖² over the sample: the drift's sum times (X Xᵀ + λI)⁻¹.
  /// - Returns: nil where the sample's inputs are all zero
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  init?(_ drift: TargetDrift, backend: any ComputeBackend) throws(SolverError) {
    let ridge = LayerProblem.addRidge(to: drift.gram, damping: TargetDrift.damping)
    guard ridge > 0 else { return nil }
    do { try backend.factorizeCholesky(drift.gram) } catch {
      throw .notPositiveDefinite(ridge: ridge)
    }
    switch drift.sum {
    case .inputs(let sum):
      backend.solveCholesky(rows: sum, factor: drift.gram)
      self = .inputs(sum)
    case .outputs(let sum):
      backend.solveCholesky(rows: sum, factor: drift.gram)
      self = .outputs(sum)
    }
  }

  /// W* of some rows.
  /// - Parameters:
  ///   - panel: those rows of W
  func target(of panel: Matrix, rows: Range<Int>, backend: any ComputeBackend) -> Matrix {
    let target = panel.copy()
    switch self {
    case .inputs(let correction):
      backend.multiply(panel, correction, transposingB: false, scale: 1, into: target, keeping: 1)
    case .outputs(let correction):
      backend.add(correction.rows(rows), into: target)
    }
    return target
  }
}
