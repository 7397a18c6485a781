import Compute
import Quantization
import Tensors

/// GPTQ (arXiv 2210.17323): columns are rounded in their stored order, and those that follow make up for the
/// errors of those before.
///
/// Computed as Babai's nearest plane algorithm on the Cholesky factor of Σ itself (arXiv 2507.18553 shows the
/// two to be the same), which needs no inverse.
public struct GPTQ: LayerSolver {
  public let name = "gptq"
  private let damping: Float

  public let mayBeWorseThanRounding = true

  /// - Parameter damping: added to Σ's diagonal, as a share of its mean
  public init(damping: Float = 0.01) {
    self.damping = damping
  }

  public func damping(for format: GridFormat) -> Float { damping }

  public func factorize(_ problem: LayerProblem) throws(SolverError) { _ = try problem.factor(.natural) }

  public func start(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) throws {
    let factor = try problem.factor(.natural)
    backend.chooseGrid(weights, importance: problem.inverseDiagonal, candidates: .range, into: grid)
    backend.roundToNearestPlane(weights, factor: factor, grid: grid, into: codes)
  }
}
