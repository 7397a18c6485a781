import Compute
import Quantization
import Tensors

/// The published algorithm: a pass of coordinate descent on Ŵ against W − Ĥ, then a projected gradient step
/// on Ĥ, Ĥ ← P_s(Ĥ − η ∇) with ∇ = 2 (Ŵ + Ĥ − W) Σ, and so on in turns.
///
/// P_s keeps the s entries of largest magnitude, or the columns of largest norm. With η = 1 / (2 λ_max(Σ)) no
/// half-step raises f once the first pass has brought Ŵ onto its grid.
struct ProjectedAlternation {
  let weights: LinearRows
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
    weights: LinearRows, problem: LayerProblem, format: GridFormat, settings: OutlierSettings,
    backend: any ComputeBackend, panelRows: Int
  ) throws {
    self.weights = weights
    self.problem = problem
    self.settings = settings
    self.backend = backend
    self.panelRows = panelRows
    let eigenvalue = problem.largestEigenvalue(backend: backend)
    doubleStep = eigenvalue > 0 ? Float(1 / eigenvalue) : 0
    codes = [UInt8](repeating: 0, count: weights.outFeatures * weights.inFeatures)
    grid = backend.makeGrid(format, outFeatures: weights.outFeatures, inFeatures: weights.inFeatures)
    outliers = SparseRows(rows: weights.outFeatures, everyRow: [], of: backend)
    outliers = try largest(panel: weights.rows)
    for rows in weights.panels(of: panelRows) {
      backend.gather(try weights.rows(rows), into: outliers.rows(rows))
    }
    try chooseGrid()
  }

  /// One pass of coordinate descent on the codes.
  mutating func descend() throws {
    for rows in weights.panels(of: panelRows) {
      let panelGrid = grid.rows(rows)
      let target = try problem.target(of: weights, rows)
      backend.add(outliers.rows(rows), scale: -1, to: target)
      // The first pass begins with Ŵ = W − Ĥ, off the grid.
      let approximation = isOnGrid ? dequantized(rows) : backend.copy(of: target)
      _ = backend.descend(
        from: target, approximation: approximation, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: panelGrid, isQuantizing: true)
      backend.round(approximation, grid: panelGrid, into: approximation)
      backend.downloadCodes(approximation, to: &codes, firstRow: rows.lowerBound)
    }
    isOnGrid = true
  }

  /// One projected gradient step on the outliers.
  mutating func stepOutliers() throws {
    let projected = try largest { rows in
      let stepped = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.add(outliers.rows(rows), to: stepped)
      backend.multiply(
        try residual(rows), problem.gram, transposingB: false, scale: doubleStep, into: stepped, keeping: 1)
      return stepped
    }
    // The places are known only now; the step is taken once more, at them alone.
    for rows in weights.panels(of: panelRows) {
      let present = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.add(outliers.rows(rows), to: present)
      let next = projected.rows(rows)
      backend.gather(present, into: next)
      backend.multiplySampled(try residual(rows), symmetric: problem.gram, scale: doubleStep, into: next)
    }
    outliers = projected
  }

  /// Rounds the outliers to what the outputs store, and lets coordinate descent settle them, and the codes
  /// with them, where they now stand.
  mutating func settle() throws {
    backend.roundOutliers(outliers)
    for rows in weights.panels(of: panelRows) {
      let panelCodes = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.uploadCodes(codes, firstRow: rows.lowerBound, to: panelCodes)
      let gradient = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.multiply(
        try residual(rows), problem.gram, transposingB: false, scale: 1, into: gradient, keeping: 0)
      for _ in 0..<Self.settlingPasses {
        let moved = backend.descendSparsely(
          codes: panelCodes, outliers: outliers.rows(rows), gradient: gradient, gram: problem.gram,
          inverseDiagonal: problem.inverseDiagonal, grid: grid.rows(rows))
        if moved == 0 { break }
      }
      backend.downloadCodes(panelCodes, to: &codes, firstRow: rows.lowerBound)
    }
  }

  /// The gradient steps are short, the descent's are exact: a few do what many rounds did not.
  private static let settlingPasses = 5

  /// f(Ŵ + Ĥ), for the target and with the ridge, as the two half-steps see it.
  func objective() throws -> Double {
    try weights.panels(of: panelRows).reduce(0) { sum, rows in
      sum + backend.quadraticForms(try residual(rows), problem.gram).reduce(0, +)
    }
  }

  /// The places that P_s keeps, with zeros.
  /// - Parameter panel: what it projects, some rows at a time; overwritten
  private func largest(panel: (Range<Int>) throws -> Matrix) throws -> SparseRows {
    let width = weights.inFeatures
    let ones = [Float](repeating: 1, count: width)
    let count = settings.entryCount(outFeatures: weights.outFeatures, inFeatures: width)
    var top = TopPlaces(settings.isStructured ? 0 : count)
    var energies = [Double](repeating: 0, count: width)
    for rows in weights.panels(of: panelRows) {
      let squares = try panel(rows)
      backend.weighSquares(squares, by: ones)
      if settings.isStructured { backend.addColumnSums(of: squares, to: &energies) }
      top.offer(squares, firstRow: rows.lowerBound, backend: backend)
    }
    return settings.isStructured
      ? SparseRows(
        rows: weights.outFeatures,
        everyRow: energies.indicesOfLargest(settings.columnCount(inFeatures: width)), of: backend)
      : SparseRows(rows: weights.outFeatures, width: width, places: top.places(), of: backend)
  }

  /// W − Ŵ − Ĥ of some rows.
  private func residual(_ rows: Range<Int>) throws -> Matrix {
    let residual = try problem.target(of: weights, rows)
    backend.subtract(dequantized(rows), from: residual)
    backend.add(outliers.rows(rows), scale: -1, to: residual)
    return residual
  }

  private func chooseGrid() throws {
    for rows in weights.panels(of: panelRows) {
      let others = try weights.rows(rows)
      backend.clear(others, at: outliers.rows(rows))
      backend.chooseGrid(
        others, importance: problem.inverseDiagonal, candidates: .range, into: grid.rows(rows))
    }
  }

  /// Ŵ of some rows.
  private func dequantized(_ rows: Range<Int>) -> Matrix {
    let result = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
    backend.uploadCodes(codes, firstRow: rows.lowerBound, to: result)
    backend.dequantize(result, grid: grid.rows(rows), into: result)
    return result
  }
}
