import Quantization
import Tensors

/// The sweeps over the columns of a panel of rows with which solvers move weights onto their grids.
///
/// Matrices of a panel are `[panelRows, inFeatures]`, and its grid has as many rows; rows are independent of
/// one another. Codes are whole numbers, kept as fp32 while a solver works. Σ is `[inFeatures, inFeatures]`
/// with both triangles filled.
public protocol GridSweeps: Sendable {
  /// The nearest code of every weight.
  func round(_ weights: Matrix, grid: Grid, into codes: Matrix)

  /// Ŵ = s·(q − z).
  func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix)

  /// Babai's nearest plane, which is GPTQ in the reverse of the factor's order: columns take their nearest
  /// code one after the other, each target moved by what the errors of earlier columns ask of it.
  func roundToNearestPlane(_ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix)

  /// One dense pass of coordinate descent: every column of Ŵ moves to the minimiser of the objective, or to
  /// the grid point nearest to it.
  /// - Parameters:
  ///   - weights: W
  ///   - approximation: Ŵ, changed
  ///   - isQuantizing: false leaves the columns off the grid
  /// - Returns: the number of values that changed.
  func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int

  /// One pass of coordinate descent that pays for the coordinates that move, exact in the same order.
  /// - Parameters:
  ///   - codes: changed
  ///   - gradient: (W − Ŵ) Σ, kept up to date
  ///   - inverseDiagonal: 1 / Σ_jj, 0 for a dead column
  /// - Returns: the number of codes that changed.
  func descendSparsely(
    codes: Matrix, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid
  ) -> Int

  /// Moves the scale of every row that has one grid to the least-squares optimum for its codes, rounded to what
  /// the outputs store, where that lowers the objective.
  /// - Parameters:
  ///   - projection: W Σ
  ///   - gradient: (W − Ŵ) Σ, kept up to date
  func refitScales(codes: Matrix, projection: Matrix, gradient: Matrix, grid: Grid)

  /// y ← y − x.
  func subtract(_ x: Matrix, from y: Matrix)

  /// The dot product of every row of `a` with the same row of `b`.
  func rowDots(_ a: Matrix, _ b: Matrix) -> [Double]

  /// For every row and group the candidate grid with the least Σ_j importance_j (w_j − ŵ_j)².
  /// - Parameters:
  ///   - importance: one weight a column
  ///   - candidates: shrink factors of the group's range
  func searchGrid(_ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid)
}

/// The triangular factor that nearest-plane rounding works with.
public struct NearestPlaneFactor: Sendable {
  /// `order[k]` is the column at position k; positions are rounded last to first.
  public let order: [Int]
  /// R with every row divided by its diagonal, `[inFeatures, inFeatures]`, in that order.
  public let unitFactor: Matrix
  /// R_kk² by column of the linear: the variance of an input given those that are rounded after it.
  public let conditionalVariances: [Float]

  public init(order: [Int], unitFactor: Matrix, conditionalVariances: [Float]) {
    self.order = order
    self.unitFactor = unitFactor
    self.conditionalVariances = conditionalVariances
  }
}
