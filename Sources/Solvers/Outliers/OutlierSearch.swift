import Compute
import Quantization
import Tensors

/// The search for the entries or columns that gain most from full precision.
///
/// An entry's worth is what its rounding costs: its squared rounding error times its column's conditional
/// variance, all that later columns cannot make up for. Since the grid depends on what is left out of it and
/// the rounding errors on the grid, the two are found in turns.
struct OutlierSearch {
  let settings: OutlierSettings
  let candidates: GridCandidates
  let weights: LinearRows
  let problem: LayerProblem
  let format: GridFormat
  let backend: any ComputeBackend
  let panelRows: Int

  /// Turns of choosing the grid and then the outliers.
  private static let turns = 3

  /// - Returns: grid, codes and outliers of a nearest-plane rounding in which an outlier takes the nearest code and keeps
  ///   the rest. Outputs that are read without the outliers then still hold a sensible weight.
  func draft() throws -> LinearDraft {
    let draft = LinearDraft(
      format, outFeatures: weights.outFeatures, inFeatures: weights.inFeatures, backend: backend)
    let (outliers, order) =
      settings.isStructured
      ? try findColumns(grid: draft.grid) : (try findEntries(grid: draft.grid), .smallestPivot)
    let factor = try problem.factor(order)
    try forEachPanel { panel, rows, remainders in
      let codes = backend.makeMatrix(rows: panel.rows, columns: panel.columns)
      let own = outliers.rows(rows)
      backend.roundToNearestPlane(
        panel, outliers: own, factor: factor, grid: draft.grid.rows(rows), into: codes, remainders: remainders
      )
      backend.gather(remainders, into: own)
      backend.downloadCodes(codes, to: &draft.codes, firstRow: rows.lowerBound)
    }
    backend.roundOutliers(outliers)
    draft.outliers = outliers
    return draft
  }

  private func findEntries(grid: Grid) throws -> SparseRows {
    let factor = try problem.factor(.smallestPivot)
    let importance = factor.conditionalVariances
    var outliers = try largestEntries { panel, _, scores in
      backend.copy(panel, into: scores)
      backend.weighSquares(scores, by: importance)
    }
    for _ in 0..<Self.turns {
      outliers = try largestEntries { panel, rows, scores in
        searchGrid(panel, without: outliers.rows(rows), importance: importance, grid: grid.rows(rows))
        backend.roundingRemainders(panel, grid: grid.rows(rows), into: scores)
        backend.weighSquares(scores, by: importance)
      }
    }
    // Nearest-plane rounding moves every weight before it is rounded: what then is left decides.
    return try largestEntries { panel, rows, scores in
      let codes = backend.makeMatrix(rows: panel.rows, columns: panel.columns)
      backend.roundToNearestPlane(
        panel, outliers: outliers.rows(rows), factor: factor, grid: grid.rows(rows), into: codes,
        remainders: scores)
      backend.weighSquares(scores, by: importance)
    }
  }

  private func findColumns(grid: Grid) throws -> (SparseRows, ColumnOrder) {
    var worths = [Double](repeating: 0, count: weights.inFeatures)
    let importance = try problem.factor(.smallestPivot).conditionalVariances
    try forEachPanel { panel, rows, scores in
      backend.chooseGrid(panel, importance: importance, candidates: candidates, into: grid.rows(rows))
      backend.roundingRemainders(panel, grid: grid.rows(rows), into: scores)
      backend.weighSquares(scores, by: importance)
      backend.addColumnSums(of: scores, to: &worths)
    }
    let columns = worths.indicesOfLargest(settings.columnCount(inFeatures: weights.inFeatures))
    let outliers = SparseRows(rows: weights.outFeatures, everyRow: columns, of: backend)
    let order = ColumnOrder.roundingLast(columns)
    let variances = try problem.factor(order).conditionalVariances
    try forEachPanel { panel, rows, _ in
      searchGrid(panel, without: outliers.rows(rows), importance: variances, grid: grid.rows(rows))
    }
    return (outliers, order)
  }

  private func searchGrid(_ panel: Matrix, without outliers: SparseRows, importance: [Float], grid: Grid) {
    // Zero lies on every grid with a zero point and in its range: it takes part in neither.
    let others = backend.copy(of: panel)
    backend.clear(others, at: outliers)
    backend.chooseGrid(others, importance: importance, candidates: candidates, into: grid)
  }

  /// The entries with the largest scores, which `score` writes a panel at a time.
  private func largestEntries(
    score: (_ panel: Matrix, _ rows: Range<Int>, _ scores: Matrix) -> Void
  ) throws -> SparseRows {
    let count = settings.entryCount(outFeatures: weights.outFeatures, inFeatures: weights.inFeatures)
    var top = TopPlaces(count)
    try forEachPanel { panel, rows, scores in
      score(panel, rows, scores)
      top.offer(scores, firstRow: rows.lowerBound, backend: backend)
    }
    return SparseRows(rows: weights.outFeatures, width: weights.inFeatures, places: top.places(), of: backend)
  }

  /// Calls `body` for panels of the target.
  private func forEachPanel(
    _ body: (_ panel: Matrix, _ rows: Range<Int>, _ scratch: Matrix) -> Void
  ) throws {
    for rows in weights.panels(of: panelRows) {
      let target = try problem.target(of: weights, rows)
      body(target, rows, backend.makeMatrix(rows: rows.count, columns: weights.inFeatures))
    }
  }
}

extension [Double] {
  /// The indices of the largest elements, in rising order; of equal elements the first.
  func indicesOfLargest(_ count: Int) -> [Int32] {
    indices.sorted { (self[$1], $0) < (self[$0], $1) }.prefix(count).sorted().map(Int32.init)
  }
}
