import Compute
import Quantization
import Tensors

/// The published algorithm: a pass of coordinate descent on Ŵ against W − Ĥ, then a projected gradient step
/// on Ĥ, Ĥ ← P_s(Ĥ − η ∇) with ∇ = 2 (Ŵ + Ĥ − W) Σ, and so on in turns.
///
/// P_s keeps the s entries of largest magnitude, or the columns of largest norm. With η = 1 / (2 λ_max(Σ)) no
/// half-step raises f once the first pass has brought Ŵ onto its grid.
struct ProjectedAlternation {
  let weights: Matrix
  let problem: LayerProblem
  let settings: OutlierSettings
  let backend: any ComputeBackend
  let panelRows: Int
  /// From minimum to maximum of what is no outlier at the start.
  let grid: Grid
  private(set) var codes: [UInt8]
  private(set) var outliers: SparseRows
  /// 2 η
  private let doubleStep: Float
  private var isOnGrid = false

  init(
    weights: Matrix, problem: LayerProblem, format: GridFormat, settings: OutlierSettings,
    backend: any ComputeBackend, panelRows: Int
  ) {
    self.weights = weights
    self.problem = problem
    self.settings = settings
    self.backend = backend
    self.panelRows = panelRows
    let eigenvalue = problem.largestEigenvalue(backend: backend)
    doubleStep = eigenvalue > 0 ? Float(1 / eigenvalue) : 0
    codes = [UInt8](repeating: 0, count: weights.count)
    grid = Grid(format: format, outFeatures: weights.rows, inFeatures: weights.columns)
    outliers = SparseRows(rows: weights.rows, everyRow: [])
    outliers = largest { weights.rows($0).copy() }
    outliers.forEach { [self] row, column, entry in outliers.values[0, entry] = weights[row, column] }
    chooseGrid()
  }

  /// One pass of coordinate descent on the codes.
  mutating func descend() {
    for rows in weights.panels(of: panelRows) {
      let panelGrid = grid.rows(rows)
      let target = problem.target(of: weights.rows(rows), rows: rows).copy()
      outliers.rows(rows).add(to: target, scale: -1)
      // The first pass begins with Ŵ = W − Ĥ, off the grid.
      let approximation = isOnGrid ? dequantized(rows) : target.copy()
      _ = backend.descend(
        from: target, approximation: approximation, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: panelGrid, isQuantizing: true)
      backend.round(approximation, grid: panelGrid, into: approximation)
      approximation.store(in: &codes, firstRow: rows.lowerBound)
    }
    isOnGrid = true
  }

  /// One projected gradient step on the outliers.
  mutating func stepOutliers() {
    let projected = largest { rows in
      let stepped = Matrix(rows: rows.count, columns: weights.columns)
      outliers.rows(rows).add(to: stepped)
      backend.multiply(
        residual(rows), problem.gram, transposingB: false, scale: doubleStep, into: stepped, keeping: 1)
      return stepped
    }
    // The places are known only now; the step is taken once more, at them alone.
    for rows in weights.panels(of: panelRows) {
      let present = Matrix(rows: rows.count, columns: weights.columns)
      outliers.rows(rows).add(to: present)
      let next = projected.rows(rows)
      next.forEach { row, column, entry in next.values[0, entry] = present[row, column] }
      backend.multiplySampled(residual(rows), symmetric: problem.gram, scale: doubleStep, into: next)
    }
    outliers = projected
  }

  /// Rounds the outliers to what the outputs store, and lets coordinate descent settle them, and the codes
  /// with them, where they now stand.
  mutating func settle() {
    let values = outliers.values
    for entry in 0..<values.columns { values[0, entry] = values[0, entry].storableOutlier }
    for rows in weights.panels(of: panelRows) {
      let panelCodes = Matrix(rows: rows.count, columns: weights.columns)
      panelCodes.load(from: codes, firstRow: rows.lowerBound)
      let gradient = Matrix(rows: rows.count, columns: weights.columns)
      backend.multiply(
        residual(rows), problem.gram, transposingB: false, scale: 1, into: gradient, keeping: 0)
      for _ in 0..<Self.settlingPasses {
        let moved = backend.descendSparsely(
          codes: panelCodes, outliers: outliers.rows(rows), gradient: gradient, gram: problem.gram,
          inverseDiagonal: problem.inverseDiagonal, grid: grid.rows(rows))
        if moved == 0 { break }
      }
      panelCodes.store(in: &codes, firstRow: rows.lowerBound)
    }
  }

  /// The gradient steps are short, the descent's are exact: a few do what many rounds did not.
  private static let settlingPasses = 5

  /// f(Ŵ + Ĥ), for the target and with the ridge, as the two half-steps see it.
  func objective() -> Double {
    weights.panels(of: panelRows).reduce(0) { sum, rows in
      sum + backend.quadraticForms(residual(rows), problem.gram).reduce(0, +)
    }
  }

  /// The places that P_s keeps, with zeros.
  /// - Parameter panel: what it projects, some rows at a time; overwritten
  private func largest(panel: (Range<Int>) -> Matrix) -> SparseRows {
    let width = weights.columns
    let ones = [Float](repeating: 1, count: width)
    let count = settings.entryCount(outFeatures: weights.rows, inFeatures: width)
    var top = TopPlaces(settings.isStructured ? 0 : count)
    var energies = [Double](repeating: 0, count: width)
    for rows in weights.panels(of: panelRows) {
      let squares = panel(rows)
      backend.weighSquares(squares, by: ones)
      if settings.isStructured { squares.addColumnSums(to: &energies) }
      top.offer(squares, firstRow: rows.lowerBound, backend: backend)
    }
    return settings.isStructured
      ? SparseRows(
        rows: weights.rows,
        everyRow: energies.indicesOfLargest(settings.columnCount(inFeatures: width)))
      : SparseRows(rows: weights.rows, width: width, places: top.places())
  }

  /// W − Ŵ − Ĥ of some rows.
  private func residual(_ rows: Range<Int>) -> Matrix {
    let residual = problem.target(of: weights.rows(rows), rows: rows).copy()
    backend.subtract(dequantized(rows), from: residual)
    outliers.rows(rows).add(to: residual, scale: -1)
    return residual
  }

  private func chooseGrid() {
    for rows in weights.panels(of: panelRows) {
      let others = weights.rows(rows).copy()
      outliers.rows(rows).forEach { row, column, _ in others[row, column] = 0 }
      backend.searchGrid(
        others, importance: problem.inverseDiagonal, candidates: .range, into: grid.rows(rows))
    }
  }

  /// Ŵ of some rows.
  private func dequantized(_ rows: Range<Int>) -> Matrix {
    let result = Matrix(rows: rows.count, columns: weights.columns)
    result.load(from: codes, firstRow: rows.lowerBound)
    backend.dequantize(result, grid: grid.rows(rows), into: result)
    return result
  }
}
