import Compute
import Synchronization
import Tensors

/// The least-squares problem that the linears of one stage share: their Gram matrix, and what solvers
/// derive from it once for all of them.
public final class LayerProblem: Sendable {
  /// Σ, `[inFeatures, inFeatures]`, both triangles.
  public let gram: Matrix
  /// 1 / Σ_jj, 0 for a dead column: one whose input is always zero.
  public let inverseDiagonal: [Float]
  let meanDiagonal: Float
  private let factors = Mutex<[FactorKey: NearestPlaneFactor]>([:])

  private struct FactorKey: Hashable {
    let order: ColumnOrder
    let damping: Float
  }

  public init(gram: Matrix) {
    precondition(gram.rows == gram.columns, "a Gram matrix is square")
    self.gram = gram
    let diagonal = (0..<gram.rows).map { gram[$0, $0] }
    inverseDiagonal = diagonal.map { $0 > 0 ? 1 / $0 : 0 }
    meanDiagonal = Float(diagonal.reduce(0) { $0 + Double($1) } / Double(max(diagonal.count, 1)))
  }

  public var inFeatures: Int { gram.rows }

  /// Σ_i e_i Σ e_iᵀ for the rows e_i of `errors`.
  public func objective(of errors: Matrix, backend: any ComputeBackend) -> Double {
    let gradient = Matrix(rows: errors.rows, columns: errors.columns)
    backend.multiply(errors, gram, transposingB: false, scale: 1, into: gradient, keeping: 0)
    return backend.rowDots(errors, gradient).reduce(0, +)
  }

  /// The Cholesky factor of Σ with `damping` times its mean diagonal added, made once.
  /// - Throws: ``SolverError/notPositiveDefinite(damping:)``
  func factor(
    order: ColumnOrder, damping: Float, backend: any ComputeBackend
  ) throws(SolverError) -> NearestPlaneFactor {
    let key = FactorKey(order: order, damping: damping)
    if let known = factors.withLock({ $0[key] }) { return known }
    let factor: NearestPlaneFactor
    do { factor = try makeFactor(order: order, damping: damping, backend: backend) } catch {
      throw .notPositiveDefinite(damping: Double(damping))
    }
    factors.withLock { $0[key] = factor }
    return factor
  }

  private func makeFactor(
    order: ColumnOrder, damping: Float, backend: any ComputeBackend
  ) throws(ComputeError) -> NearestPlaneFactor {
    let count = inFeatures
    // With every input zero any rounding is as good as another; a unit diagonal keeps the factor defined.
    let ridge = meanDiagonal > 0 ? damping * meanDiagonal : 1
    let (columns, lower) = try factorize(order: order, ridge: ridge, backend: backend)
    var variances = [Float](repeating: 0, count: count)
    let unitFactor = Matrix(rows: count, columns: count)
    for position in 0..<count {
      let pivot = lower[position, position]
      variances[columns[position]] = pivot * pivot
      for other in position..<count {
        unitFactor[position, other] = lower[other, position] / pivot
      }
    }
    return NearestPlaneFactor(
      order: columns, unitFactor: unitFactor, conditionalVariances: variances)
  }

  /// The lower Cholesky factor of Σ with `ridge` on its diagonal, its columns in the order asked for.
  private func factorize(
    order: ColumnOrder, ridge: Float, backend: any ComputeBackend
  ) throws(ComputeError) -> (columns: [Int], lower: Matrix) {
    let count = inFeatures
    let columns = order.positions(gram: gram)
    let matrix = Matrix(rows: count, columns: count)
    for (row, source) in columns.enumerated() {
      gram.rows(source..<source + 1).withSpan { values in
        matrix.rows(row..<row + 1).withMutableSpan { permuted in
          for (column, other) in columns.enumerated() { permuted[column] = values[other] }
        }
      }
      matrix[row, row] += ridge
    }
    guard order == .smallestPivot else {
      try backend.factorizeCholesky(matrix)
      return (columns, matrix)
    }
    return (try backend.factorizePivotedCholesky(matrix), matrix)
  }
}

/// The order in which nearest-plane rounding takes the columns.
enum ColumnOrder: Sendable, Hashable {
  /// As they are stored: GPTQ's.
  case natural
  /// Largest Σ_jj first: GPTQ's activation order.
  case fallingDiagonal
  /// The column with the smallest variance given those already chosen is chosen next, and rounded before
  /// them: the greedy form of what the activation order aims at.
  case smallestPivot

  /// The column at every position; positions are rounded last to first. What `smallestPivot` comes to is
  /// known only from its factorisation.
  func positions(gram: Matrix) -> [Int] {
    switch self {
    case .natural: return (0..<gram.rows).reversed()
    case .fallingDiagonal:
      return (0..<gram.rows).sorted { (gram[$0, $0], $0) < (gram[$1, $1], $1) }
    case .smallestPivot: return Array(0..<gram.rows)
    }
  }
}
