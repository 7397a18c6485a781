import Compute
import Synchronization
import Tensors

/// The least-squares problem that the linears of one stage share: their Gram matrix, and what solvers
/// derive from it once for all of them.
public final class LayerProblem: Sendable {
  /// Σ + ρI, `[inFeatures, inFeatures]`, both triangles: what solvers descend on.
  ///
  /// The ridge ρ stands for inputs that the calibration set did not show; without it solvers spend codes on
  /// directions in which the set happens to have no energy.
  public let gram: Matrix
  /// ρ, the damping times the mean diagonal of Σ.
  public let ridge: Float
  /// ρ as a share of Σ's mean diagonal.
  public let damping: Float
  /// The diagonal of Σ without the ridge.
  private let diagonal: [Float]
  /// 1 / (Σ_jj + ρ), 0 for a dead column: one whose input is always zero.
  public let inverseDiagonal: [Float]
  /// What moves the target of the stage's one linear from its own output to what makes the residual stream the original
  /// model's, W* = W + correction, `[outFeatures, inFeatures]`; nil for its own output.
  public let correction: Matrix?
  private let factors = Mutex<[ColumnOrder: NearestPlaneFactor]>([:])
  private let neighbours = Mutex<ColumnNeighbours?>(nil)

  /// - Parameters:
  ///   - gram: Σ, symmetric; the problem adds the ridge in place
  ///   - damping: ρ as a share of Σ's mean diagonal
  public convenience init(gram: Matrix, damping: Float = 0) {
    self.init(gram: gram, damping: damping, diagonal: Self.diagonal(of: gram), correction: nil)
  }

  /// The problem of a stage whose one linear adds to the residual stream, which is to be the original model's.
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  public convenience init(
    gram: Matrix, damping: Float, drift: TargetDrift, backend: any ComputeBackend
  ) throws(SolverError) {
    self.init(
      gram: gram, damping: damping, diagonal: Self.diagonal(of: gram),
      correction: try drift.correction(backend: backend))
  }

  private init(gram: Matrix, damping: Float, diagonal: [Float], correction: Matrix?) {
    self.gram = gram
    self.damping = damping
    self.diagonal = diagonal
    let ridge = Self.addRidge(to: gram, damping: damping)
    self.ridge = ridge
    self.correction = correction
    inverseDiagonal = (0..<gram.rows).map { gram[$0, $0] > ridge ? 1 / gram[$0, $0] : 0 }
  }

  /// The same problem with another ridge, over the same memory: this one must not be used any more.
  public func damped(by damping: Float) -> LayerProblem {
    for column in diagonal.indices { gram[column, column] = diagonal[column] }
    return LayerProblem(gram: gram, damping: damping, diagonal: diagonal, correction: correction)
  }

  private static func diagonal(of gram: Matrix) -> [Float] { (0..<gram.rows).map { gram[$0, $0] } }

  static func addRidge(to gram: Matrix, damping: Float) -> Float {
    precondition(gram.rows == gram.columns, "a Gram matrix is square")
    let trace = (0..<gram.rows).reduce(0.0) { $0 + Double(gram[$1, $1]) }
    let ridge = damping * Float(trace / Double(max(gram.rows, 1)))
    for column in 0..<gram.rows { gram[column, column] += ridge }
    return ridge
  }

  public var inFeatures: Int { gram.rows }

  /// The weights that the solver aims at: W, or W* where the problem has a correction. `[rows, inFeatures]`
  /// - Parameters:
  ///   - panel: W's rows `rows`; the result itself if there is no correction
  func target(of panel: Matrix, rows: Range<Int>, backend: any ComputeBackend) -> Matrix {
    guard let correction else { return panel }
    let target = panel.copy()
    backend.add(correction.rows(rows), into: target)
    return target
  }

  /// Σ_i e_i Σ e_iᵀ for the rows e_i of `errors`, without the ridge.
  /// - Parameter images: the product of `errors` with Σ + ρI, if it is known
  public func objective(of errors: Matrix, images: Matrix? = nil, backend: any ComputeBackend) -> Double {
    let forms = images.map { backend.rowDots(errors, $0) } ?? backend.quadraticForms(errors, gram)
    let damped = forms.reduce(0, +)
    let energy = ridge > 0 ? backend.rowDots(errors, errors).reduce(0, +) : 0
    return max(damped - Double(ridge) * energy, 0)
  }

  /// The Cholesky factor of Σ + ρI for nearest-plane rounding, made once for each order.
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  func factor(
    order: ColumnOrder, backend: any ComputeBackend
  ) throws(SolverError) -> NearestPlaneFactor {
    if let known = factors.withLock({ $0[order] }) { return known }
    let factor: NearestPlaneFactor
    do { factor = try makeFactor(order: order, backend: backend) } catch {
      throw .notPositiveDefinite(ridge: ridge)
    }
    factors.withLock { $0[order] = factor }
    return factor
  }

  /// Every column's `count` most correlated ones, found once.
  func mostCorrelated(_ count: Int) -> ColumnNeighbours {
    neighbours.withLock { known in
      if let known, known.count == min(count, inFeatures - 1) { return known }
      let found = ColumnNeighbours(mostCorrelated: count, gram: gram)
      known = found
      return found
    }
  }

  private func makeFactor(
    order: ColumnOrder, backend: any ComputeBackend
  ) throws(ComputeError) -> NearestPlaneFactor {
    let count = inFeatures
    let matrix = gram.copy()
    // With every input zero any rounding is as good as another; a unit diagonal keeps the factor defined.
    for column in 0..<count where ridge == 0 && matrix[column, column] == 0 { matrix[column, column] = 1 }
    guard order == .natural else {
      let columns = try backend.factorizePivotedCholesky(matrix)
      return NearestPlaneFactor(order: columns, factor: matrix)
    }
    // Positions are rounded last to first: the factor is that of the reversed matrix.
    let reversed = matrix.reversedInBoth()
    try backend.factorizeCholesky(reversed)
    return NearestPlaneFactor(order: (0..<count).reversed(), factor: reversed.transposed())
  }
}

extension NearestPlaneFactor {
  /// - Parameters:
  ///   - order: the column at every position
  ///   - factor: R of the matrix in that order, upper triangular; overwritten
  init(order: [Int], factor: Matrix) {
    var variances = [Float](repeating: 0, count: order.count)
    for (position, column) in order.enumerated() {
      let pivot = factor[position, position]
      variances[column] = pivot * pivot
      factor.rows(position..<position + 1).withMutableSpan { row in
        for other in position..<order.count { row[other] /= pivot }
      }
    }
    self.init(order: order, unitFactor: factor, conditionalVariances: variances)
  }
}

extension Matrix {
  /// Rows and columns last to first.
  fileprivate func reversedInBoth() -> Matrix {
    Matrix(rows: rows, columns: columns, elements.reversed())
  }

  fileprivate func transposed() -> Matrix {
    let result = Matrix(rows: columns, columns: rows)
    for row in 0..<rows {
      for column in 0..<columns { result[column, row] = self[row, column] }
    }
    return result
  }
}

/// The order in which nearest-plane rounding takes the columns.
enum ColumnOrder: Sendable, Hashable {
  /// As they are stored: GPTQ's.
  case natural
  /// The column with the smallest variance given those already chosen is chosen next, and rounded before
  /// them: the greedy form of what GPTQ's activation order aims at.
  case smallestPivot
}
