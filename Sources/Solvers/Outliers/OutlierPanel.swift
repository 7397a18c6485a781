import Compute
import Quantization
import Tensors

/// A panel of rows on its way to codes and outliers.
struct OutlierPanel {
  /// W, or what the problem's correction makes of it, `[panelRows, inFeatures]`
  let target: Matrix
  /// Ĥ
  let outliers: SparseRows
  let grid: Grid
  let problem: LayerProblem
  let settings: QuantEase.Settings
  let backend: any ComputeBackend
  /// The result, `[panelRows, inFeatures]`
  let codes: Matrix

  init(
    target: Matrix, outliers: SparseRows, grid: Grid, problem: LayerProblem,
    settings: QuantEase.Settings, backend: any ComputeBackend
  ) {
    self.target = target
    self.outliers = outliers
    self.grid = grid
    self.problem = problem
    self.settings = settings
    self.backend = backend
    codes = backend.makeMatrix(rows: target.rows, columns: target.columns)
  }

  /// Passes over outliers and codes until they gain little; no step raises the objective.
  func descend() {
    let errors = backend.makeMatrix(rows: target.rows, columns: target.columns)
    let gradient = backend.makeMatrix(rows: target.rows, columns: target.columns)
    updateErrors(errors)
    backend.multiply(errors, problem.gram, transposingB: false, scale: -1, into: gradient, keeping: 0)
    var objective = -backend.rowDots(errors, gradient).reduce(0, +)
    for pass in 0..<settings.passes {
      let moved = backend.descendSparsely(
        codes: codes, outliers: outliers, gradient: gradient, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: grid)
      if settings.refitsScales && Self.refitPasses.contains(pass) {
        backend.refitScales(codes: codes, images: nil, gradient: gradient, gram: problem.gram, grid: grid)
      }
      if pass > 0 && settings.pairNeighbours > 0 {
        _ = backend.descendInPairs(
          codes: codes, outliers: outliers, gradient: gradient, gram: problem.gram,
          neighbours: problem.mostCorrelated(settings.pairNeighbours), grid: grid)
      }
      updateErrors(errors)
      let next = -backend.rowDots(errors, gradient).reduce(0, +)
      let gain = objective - next
      objective = next
      if pass > 1 && (moved == 0 || gain <= settings.leastGain * objective) { break }
    }
  }

  /// As in the solver without outliers.
  private static let refitPasses: Set = [1, 3]

  /// Brings a draft without outliers to its end, and takes that solution where it is better.
  /// - Parameters:
  ///   - plainCodes: the draft's, `[panelRows, inFeatures]`; changed
  ///   - plainGrid: its grids; changed
  func takeBetterRows(of solver: QuantEase, from plainCodes: Matrix, grid plainGrid: Grid) {
    _ = solver.descend(target, problem: problem, grid: plainGrid, codes: plainCodes, backend: backend)
    let errors = backend.makeMatrix(rows: target.rows, columns: target.columns)
    updateErrors(errors)
    let objectives = backend.quadraticForms(errors, problem.gram)
    backend.dequantize(plainCodes, grid: plainGrid, into: errors)
    backend.subtract(target, from: errors)
    let plainObjectives = backend.quadraticForms(errors, problem.gram)
    let worse = objectives.indices.filter { objectives[$0] > plainObjectives[$0] }
    for row in worse {
      func take(_ source: Matrix, _ destination: Matrix) {
        backend.copy(source.rows(row..<row + 1), into: destination.rows(row..<row + 1))
      }
      take(plainCodes, codes)
      for (plain, own) in zip(plainGrid.matrices, grid.matrices) { take(plain, own) }
      backend.fill(outliers.values(ofRow: row), with: 0)
    }
    if !worse.isEmpty { descend() }
  }

  /// Ŵ + Ĥ − W
  private func updateErrors(_ errors: Matrix) {
    backend.dequantize(codes, grid: grid, into: errors)
    backend.add(outliers, to: errors)
    backend.subtract(target, from: errors)
  }
}
