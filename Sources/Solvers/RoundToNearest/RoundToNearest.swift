import Compute
import Quantization
import Tensors

/// Every weight takes the nearest point of the grid from its row's minimum to its maximum.
public struct RoundToNearest: LayerSolver {
  public let name = "rtn"
  public let damping: Float = 0

  public let mayBeWorseThanRounding = false

  public init() {}

  public func start(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) {
    backend.searchGrid(weights, importance: problem.inverseDiagonal, candidates: .range, into: grid)
    backend.round(weights, grid: grid, into: codes)
  }
}
