import Compute
import Quantization
import Solvers
import Synchronization
import Tensors

/// A solver that gives up on the way.
struct InterruptedSolver: LayerSolver {
  private final class Countdown: Sendable {
    private let left: Mutex<Int>

    init(_ count: Int) { left = Mutex(count) }

    func count() throws {
      let isOver = left.withLock { left in
        left -= 1
        return left < 0
      }
      if isOver { throw Interruption() }
    }
  }

  private let solver: any LayerSolver
  private let panels: Countdown
  private let linears: Countdown

  /// Gives up when it is to begin another panel, or to bring another linear to its end.
  init(_ solver: any LayerSolver, afterPanels panels: Int = .max, afterLinears linears: Int = .max) {
    self.solver = solver
    (self.panels, self.linears) = (Countdown(panels), Countdown(linears))
  }

  var name: String { solver.name }
  func damping(for format: GridFormat) -> Float { solver.damping(for: format) }
  var mayBeWorseThanRounding: Bool { solver.mayBeWorseThanRounding }

  func start(
    _ target: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) throws {
    try panels.count()
    try solver.start(target, problem: problem, grid: grid, into: codes, backend: backend)
  }

  func descend(
    _ target: Matrix, problem: LayerProblem, grid: Grid, codes: Matrix, backend: any ComputeBackend
  ) -> Matrix? {
    solver.descend(target, problem: problem, grid: grid, codes: codes, backend: backend)
  }

  func finish(
    _ draft: LinearDraft, name: String, weights: LinearRows, problem: LayerProblem,
    backend: any ComputeBackend, panelRows: Int
  ) throws -> LayerSolution {
    try linears.count()
    return try solver.finish(
      draft, name: name, weights: weights, problem: problem, backend: backend, panelRows: panelRows)
  }
}
