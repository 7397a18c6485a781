import Compute
import Quantization
import Tensors

/// Where the outliers of a linear are, the grid that was chosen without them, and the factor to round with.
struct OutlierPlan {
  /// Their places; values are zero.
  let outliers: SparseRows
  /// The whole linear's.
  let grid: Grid
  let factor: NearestPlaneFactor
}

/// The search for the entries or columns that gain most from full precision.
///
/// An entry's worth is what its rounding costs: its squared rounding error times its column's conditional
/// variance, all that later columns cannot make up for. Since the grid depends on what is left out of it and
/// the rounding errors on the grid, the two are found in turns.
struct OutlierSearch {
  let settings: OutlierSettings
  let candidates: GridCandidates
  let weights: Matrix
  let problem: LayerProblem
  let format: GridFormat
  let backend: any ComputeBackend
  let panelRows: Int

  /// Turns of choosing the grid and then the outliers.
  private static let turns = 3

  func plan() throws -> OutlierPlan {
    let factor = try problem.factor(order: .smallestPivot, backend: backend)
    let grid = Grid(format: format, outFeatures: weights.rows, inFeatures: weights.columns)
    return settings.isStructured
      ? try planColumns(factor: factor, grid: grid) : planEntries(factor: factor, grid: grid)
  }

  private func planEntries(factor: NearestPlaneFactor, grid: Grid) -> OutlierPlan {
    let importance = factor.conditionalVariances
    var outliers = largestEntries { panel, _, scores in
      scores.copy(from: panel)
      backend.weighSquares(scores, by: importance)
    }
    for _ in 0..<Self.turns {
      outliers = largestEntries { panel, rows, scores in
        searchGrid(panel, without: outliers.rows(rows), importance: importance, grid: grid.rows(rows))
        backend.roundingRemainders(panel, grid: grid.rows(rows), into: scores)
        backend.weighSquares(scores, by: importance)
      }
    }
    // Nearest-plane rounding moves every weight before it is rounded: what then is left decides.
    outliers = largestEntries { panel, rows, scores in
      let codes = Matrix(rows: panel.rows, columns: panel.columns)
      backend.roundToNearestPlane(
        panel, outliers: outliers.rows(rows), factor: factor, grid: grid.rows(rows), into: codes,
        remainders: scores)
      backend.weighSquares(scores, by: importance)
    }
    return OutlierPlan(outliers: outliers, grid: grid, factor: factor)
  }

  private func planColumns(factor: NearestPlaneFactor, grid: Grid) throws -> OutlierPlan {
    var worths = [Double](repeating: 0, count: weights.columns)
    forEachPanel { panel, rows, scores in
      backend.searchGrid(
        panel, importance: factor.conditionalVariances, candidates: candidates, into: grid.rows(rows))
      backend.roundingRemainders(panel, grid: grid.rows(rows), into: scores)
      backend.weighSquares(scores, by: factor.conditionalVariances)
      scores.addColumnSums(to: &worths)
    }
    let columns = worths.indicesOfLargest(settings.columnCount(inFeatures: weights.columns))
    let outliers = SparseRows(rows: weights.rows, everyRow: columns)
    let factor = try problem.factor(roundingLast: columns, backend: backend)
    forEachPanel { panel, rows, _ in
      searchGrid(
        panel, without: outliers.rows(rows), importance: factor.conditionalVariances,
        grid: grid.rows(rows))
    }
    return OutlierPlan(outliers: outliers, grid: grid, factor: factor)
  }

  private func searchGrid(_ panel: Matrix, without outliers: SparseRows, importance: [Float], grid: Grid) {
    // Zero lies on every grid and in every range: it takes part in neither.
    let others = panel.copy()
    outliers.forEach { row, column, _ in others[row, column] = 0 }
    backend.searchGrid(others, importance: importance, candidates: candidates, into: grid)
  }

  /// The entries with the largest scores, which `score` writes a panel at a time.
  private func largestEntries(
    score: (_ panel: Matrix, _ rows: Range<Int>, _ scores: Matrix) -> Void
  ) -> SparseRows {
    let count = settings.entryCount(outFeatures: weights.rows, inFeatures: weights.columns)
    var top = TopPlaces(count)
    forEachPanel { panel, rows, scores in
      score(panel, rows, scores)
      top.offer(scores, firstRow: rows.lowerBound, backend: backend)
    }
    return SparseRows(rows: weights.rows, width: weights.columns, places: top.places())
  }

  /// Calls `body` for panels of the target; they are not to be written to.
  private func forEachPanel(_ body: (_ panel: Matrix, _ rows: Range<Int>, _ scratch: Matrix) -> Void) {
    for rows in weights.panels(of: panelRows) {
      let target = problem.target(of: weights.rows(rows), rows: rows, backend: backend)
      body(target, rows, Matrix(rows: rows.count, columns: weights.columns))
    }
  }
}

extension Matrix {
  /// The row ranges of panels of at most `rows` rows.
  func panels(of rows: Int) -> [Range<Int>] {
    stride(from: 0, to: self.rows, by: rows).map { $0..<min($0 + rows, self.rows) }
  }

  /// Adds the sum of every column to `sums`.
  func addColumnSums(to sums: inout [Double]) {
    withSpan { span in
      for row in 0..<rows {
        for column in 0..<columns { sums[column] += Double(span[row * columns + column]) }
      }
    }
  }
}

extension [Double] {
  /// The indices of the largest elements, in rising order; of equal elements the first.
  func indicesOfLargest(_ count: Int) -> [Int32] {
    indices.sorted { (self[$1], $0) < (self[$0], $1) }.prefix(count).sorted().map(Int32.init)
  }
}
