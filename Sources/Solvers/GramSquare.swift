import Compute
import Tensors

/// The Gram matrix of a stage and whatever solvers need of it at a time, in one n × n square.
///
/// Σ stays in the lower triangle, its diagonal in a vector. The upper triangle is a factor while weights are rounded, and
/// Σ once more while they descend: each is made from the lower triangle when it is asked for and not there. At the width
/// of the largest models a square is most of a machine's memory, so there is no second one; whoever asks for one form
/// and the other in turns pays for it in time. What was lent before is overwritten then.
final class GramSquare {
  let matrix: Matrix
  /// Σ_jj
  let diagonal: [Float]
  private let backend: any ComputeBackend
  private var content = Content.nothing
  private var neighbours: (ridge: Float, found: ColumnNeighbours)?

  private enum Content {
    case nothing
    case full(ridge: Float)
    case factor(NearestPlaneFactor, ColumnOrder, ridge: Float)
  }

  /// - Parameter gram: Σ, of which the lower triangle and the diagonal are read; the rest is overwritten
  init(_ gram: Matrix, backend: any ComputeBackend) {
    precondition(gram.rows == gram.columns, "a Gram matrix is square")
    matrix = gram
    diagonal = backend.diagonal(of: gram)
    self.backend = backend
  }

  var inFeatures: Int { matrix.rows }

  /// A share of the mean diagonal.
  func ridge(_ damping: Float) -> Float { diagonal.ridge(damping) }

  /// Σ + ρI, both triangles.
  func full(ridge: Float) -> Matrix {
    switch content {
    case .full(ridge: ridge): return matrix
    // The triangles are those of every ridge.
    case .full: break
    default: backend.symmetrize(matrix)
    }
    backend.setDiagonal(diagonal.map { $0 + ridge }, of: matrix)
    content = .full(ridge: ridge)
    return matrix
  }

  /// The factor of Σ + ρI, or, where rounding leaves that without one, of Σ with so much more on its diagonal as it takes:
  /// coordinate descent, which follows, takes the ridge that was asked for.
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  func factor(_ order: ColumnOrder, ridge: Float) throws(SolverError) -> NearestPlaneFactor {
    if case .factor(let known, order, ridge: ridge) = content { return known }
    content = .nothing
    for multiple in [1, 10, 100] as [Float] {
      guard let factor = try? makeFactor(order, ridge: multiple * ridge) else { continue }
      content = .factor(factor, order, ridge: ridge)
      return factor
    }
    throw .notPositiveDefinite(ridge: ridge)
  }

  private func makeFactor(_ order: ColumnOrder, ridge: Float) throws(ComputeError) -> NearestPlaneFactor {
    let columns = order.firstColumns(of: inFeatures)
    // With every input of a column zero any rounding of it is as good as another; a unit diagonal keeps the factor
    // defined.
    let damped = columns.map { diagonal[$0] + ridge == 0 ? 1 : diagonal[$0] + ridge }
    backend.setDiagonal(damped, of: matrix)
    let taken: [Int]
    switch order {
    case .natural:
      backend.fillUpperTriangle(of: matrix, inOrder: columns)
      try backend.factorizeCholesky(matrix)
      taken = columns
    case .smallestPivot:
      taken = try backend.factorizePivotedCholesky(matrix, inOrder: columns, leading: 0)
    case .roundingLast(let last):
      taken = try backend.factorizePivotedCholesky(matrix, inOrder: columns, leading: last.count)
    }
    let pivots = backend.diagonal(of: matrix)
    backend.divideUpperRowsByDiagonal(matrix)
    var variances = [Float](repeating: 0, count: inFeatures)
    for (place, column) in taken.enumerated() { variances[column] = pivots[place] * pivots[place] }
    return NearestPlaneFactor(order: taken, unitFactor: matrix, conditionalVariances: variances)
  }

  /// Every column's `count` most correlated ones, found once.
  func mostCorrelated(_ count: Int, ridge: Float) -> ColumnNeighbours {
    if let neighbours, neighbours.ridge == ridge, neighbours.found.count == min(count, inFeatures - 1) {
      return neighbours.found
    }
    let found = backend.mostCorrelated(count, gram: full(ridge: ridge))
    neighbours = (ridge, found)
    return found
  }
}

/// The order in which nearest-plane rounding takes the columns.
enum ColumnOrder: Hashable {
  /// As they are stored: GPTQ's.
  case natural
  /// The column with the smallest variance given those already chosen is chosen next, and rounded before
  /// them: the greedy form of what GPTQ's activation order aims at.
  case smallestPivot
  /// The same, but given columns are rounded after all others, so that they make up for the others' errors.
  case roundingLast([Int32])

  /// The columns as they stand before a factorisation that may reorder them. What comes first is rounded last.
  fileprivate func firstColumns(of count: Int) -> [Int] {
    switch self {
    case .natural: return (0..<count).reversed()
    case .smallestPivot: return Array(0..<count)
    case .roundingLast(let last):
      let last = last.map(Int.init)
      let isLast = Set(last)
      return last + (0..<count).filter { !isLast.contains($0) }
    }
  }
}

extension [Float] {
  /// A share of the mean of a diagonal.
  func ridge(_ damping: Float) -> Float {
    damping * Float(reduce(0.0) { $0 + Double($1) } / Double(Swift.max(count, 1)))
  }
}
