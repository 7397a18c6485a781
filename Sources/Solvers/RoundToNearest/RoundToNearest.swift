import Compute
import Quantization
import Tensors

/// Every weight takes the nearest point of the grid from its row's minimum to its maximum, or of a better one.
public struct RoundToNearest: LayerSolver {
  public let name = "rtn"

  public let mayBeWorseThanRounding = false

  private let searchesGrid: Bool

  /// - Parameter searchesGrid: whether grids are those of the least squared error
  public init(searchesGrid: Bool = false) { self.searchesGrid = searchesGrid }

  public func damping(for format: GridFormat) -> Float { 0 }

  /// Rounds a panel of rows of which no inputs are known.
  /// - Returns: codes, `[panelRows, inFeatures]`, and their grids, in the backend's memory
  public func round(
    _ weights: Matrix, format: GridFormat, backend: any ComputeBackend
  ) -> (codes: Matrix, grid: Grid) {
    let codes = backend.makeMatrix(rows: weights.rows, columns: weights.columns)
    let grid = backend.makeGrid(format, outFeatures: weights.rows, inFeatures: weights.columns)
    round(weights, importance: [Float](repeating: 1, count: weights.columns), grid, into: codes, backend)
    return (codes, grid)
  }

  private func round(
    _ weights: Matrix, importance: [Float], _ grid: Grid, into codes: Matrix, _ backend: any ComputeBackend
  ) {
    backend.chooseGrid(
      weights, importance: importance, candidates: searchesGrid ? .standard(grid.format) : .range, into: grid)
    backend.round(weights, grid: grid, into: codes)
  }

  public func start(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) {
    round(weights, importance: problem.inverseDiagonal, grid, into: codes, backend)
  }
}
