import Compute
import Tensors

/// The least-squares problem that the linears of one stage share: their Gram matrix with a ridge, and what solvers
/// derive from it.
///
/// All problems of a stage are over the memory of one matrix, ``GramSquare``: ``gram`` and a factor are never there at
/// the same time. A solver first does all that takes a factor, for every row, and then what takes Σ.
public struct LayerProblem {
  private let square: GramSquare
  private let backend: any ComputeBackend
  /// ρ, the damping times the mean diagonal of Σ.
  ///
  /// The ridge stands for inputs that the calibration set did not show; without it solvers spend codes on
  /// directions in which the set happens to have no energy.
  public let ridge: Float
  /// ρ as a share of Σ's mean diagonal.
  public let damping: Float
  /// 1 / (Σ_jj + ρ), 0 for a dead column: one whose input is always zero.
  public let inverseDiagonal: [Float]
  /// What moves the target of the stage's one linear from its own output to what makes the residual stream the original
  /// model's, W* = W + correction, `[outFeatures, inFeatures]`; nil for its own output.
  public let correction: Matrix?

  /// - Parameters:
  ///   - gram: Σ, of which the lower triangle and the diagonal are read; the problem's memory from now on
  ///   - damping: ρ as a share of Σ's mean diagonal
  ///   - correction: of a linear that adds to the residual stream, see ``TargetDrift``
  public init(gram: Matrix, damping: Float = 0, correction: Matrix? = nil, backend: any ComputeBackend) {
    self.init(GramSquare(gram, backend: backend), damping: damping, correction: correction, backend: backend)
  }

  private init(_ square: GramSquare, damping: Float, correction: Matrix?, backend: any ComputeBackend) {
    self.square = square
    self.backend = backend
    self.damping = damping
    self.correction = correction
    let ridge = square.ridge(damping)
    self.ridge = ridge
    inverseDiagonal = square.diagonal.map { $0 > 0 ? 1 / ($0 + ridge) : 0 }
  }

  /// The same problem with another ridge, over the same memory.
  public func damped(by damping: Float) -> LayerProblem {
    LayerProblem(square, damping: damping, correction: correction, backend: backend)
  }

  public var inFeatures: Int { square.inFeatures }

  /// Σ_jj: the energy of every input.
  public var inputEnergies: [Float] { square.diagonal }

  /// Σ + ρI, `[inFeatures, inFeatures]`, both triangles: what solvers descend on. Valid until a factor is asked for.
  public var gram: Matrix { square.full(ridge: ridge) }

  /// The Cholesky factor of Σ + ρI for nearest-plane rounding. Valid until ``gram`` or another factor is asked for.
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  func factor(_ order: ColumnOrder) throws(SolverError) -> NearestPlaneFactor {
    try square.factor(order, ridge: ridge)
  }

  /// Every column's `count` most correlated ones.
  func mostCorrelated(_ count: Int) -> ColumnNeighbours { square.mostCorrelated(count, ridge: ridge) }

  /// The weights that the solver aims at, to be written to: some rows of W, or of W* where the problem has a correction.
  func target(of weights: LinearRows, _ rows: Range<Int>) throws -> Matrix {
    let target = try weights.rows(rows)
    if let correction { backend.add(correction.rows(rows), into: target) }
    return target
  }

  /// Σ_i e_i Σ e_iᵀ for the rows e_i of `errors`, without the ridge.
  /// - Parameter images: the product of `errors` with Σ + ρI, if it is known
  public func objective(of errors: Matrix, images: Matrix? = nil) -> Double {
    let forms = images.map { backend.rowDots(errors, $0) } ?? backend.quadraticForms(errors, gram)
    let damped = forms.reduce(0, +)
    let energy = ridge > 0 ? backend.rowDots(errors, errors).reduce(0, +) : 0
    return max(damped - Double(ridge) * energy, 0)
  }
}
