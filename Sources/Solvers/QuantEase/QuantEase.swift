import Compute
import Quantization
import Tensors

/// QuantEase (arXiv 2309.01885): coordinate descent on the layer-wise least-squares objective.
///
/// ``Settings/paper(passes:)`` is the algorithm as published. ``Settings/standard(passes:)`` begins where a
/// nearest-plane rounding ends, on a grid chosen for the output, and refits the scales.
public struct QuantEase: LayerSolver {
  public let name = "quantease"
  public let settings: Settings

  public struct Settings: Sendable, Hashable {
    /// Where the descent begins.
    public enum Start: Sendable, Hashable {
      /// Ŵ = W, off the grid, with every third pass left off the grid too.
      case weights
      /// The nearest-plane rounding, columns of small conditional variance last.
      case nearestPlane
    }

    public var start: Start
    /// Passes over the columns, at most.
    public var passes: Int
    /// Search each row's or group's grid for the least expected output error; the weights' range otherwise.
    public var searchesGrid: Bool
    /// Refit scales to the codes by least squares in the metric of Σ.
    public var refitsScales: Bool
    /// Added to Σ's diagonal for the nearest-plane rounding, as a share of its mean.
    public var damping: Float
    /// A pass that lowers the objective by less than this share is the last.
    public var leastGain: Double

    /// The published algorithm.
    public static func paper(passes: Int = 25) -> Settings {
      Settings(
        start: .weights, passes: passes, searchesGrid: false, refitsScales: false, damping: 0,
        leastGain: 0)
    }

    /// All that lowers the error at the same bits and in the same file format.
    public static func standard(passes: Int = 25) -> Settings {
      Settings(
        start: .nearestPlane, passes: passes, searchesGrid: true, refitsScales: true,
        damping: 0.003, leastGain: 0.002)
    }
  }

  public init(_ settings: Settings = .standard()) {
    self.settings = settings
  }

  public func solve(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix,
    backend: any ComputeBackend
  ) throws {
    switch settings.start {
    case .weights:
      chooseGrid(weights, importance: problem.inverseDiagonal, grid, backend)
      descendFromWeights(weights, problem: problem, grid: grid, into: codes, backend: backend)
    case .nearestPlane:
      let factor = try problem.factor(
        order: .smallestPivot, damping: settings.damping, backend: backend)
      chooseGrid(weights, importance: factor.conditionalVariances, grid, backend)
      backend.roundToNearestPlane(weights, factor: factor, grid: grid, into: codes)
      descend(weights, problem: problem, grid: grid, codes: codes, backend: backend)
    }
  }

  /// What rounding costs a row is its columns' squared errors weighted by their conditional variances, as far
  /// as later columns make up for the rest: so the best grid is found without solving for any.
  private func chooseGrid(
    _ weights: Matrix, importance: [Float], _ grid: Grid, _ backend: any ComputeBackend
  ) {
    backend.searchGrid(
      weights, importance: importance,
      candidates: settings.searchesGrid ? .standard(grid.format) : .range, into: grid)
  }

  /// The paper's schedule: passes over all columns from Ŵ = W, every third of them off the grid so that
  /// coordinates can leave a poor cell, the last one on it.
  private func descendFromWeights(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix,
    backend: any ComputeBackend
  ) {
    let approximation = codes
    approximation.copy(from: weights)
    for pass in 0..<settings.passes {
      let isLast = pass == settings.passes - 1
      _ = backend.descend(
        from: weights, approximation: approximation, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: grid,
        isQuantizing: isLast || pass % 3 != 1)
    }
    backend.round(approximation, grid: grid, into: codes)
  }

  /// Passes over codes that already lie on the grid; after a start as good as the nearest plane few move.
  private func descend(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, codes: Matrix, backend: any ComputeBackend
  ) {
    let errors = Matrix(rows: weights.rows, columns: weights.columns)
    let gradient = Matrix(rows: weights.rows, columns: weights.columns)
    func updateErrors() {
      backend.dequantize(codes, grid: grid, into: errors)
      backend.subtract(weights, from: errors)
    }
    updateErrors()
    backend.multiply(errors, problem.gram, transposingB: false, scale: -1, into: gradient, keeping: 0)
    var objective = -backend.rowDots(errors, gradient).reduce(0, +)

    let refits = settings.refitsScales && grid.groups == 1
    let projection = refits ? Matrix(rows: weights.rows, columns: weights.columns) : nil
    if let projection {
      backend.multiply(weights, problem.gram, transposingB: false, scale: 1, into: projection, keeping: 0)
    }
    for _ in 0..<settings.passes {
      let moved = backend.descendSparsely(
        codes: codes, gradient: gradient, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: grid)
      if let projection {
        backend.refitScales(codes: codes, projection: projection, gradient: gradient, grid: grid)
      }
      updateErrors()
      let next = -backend.rowDots(errors, gradient).reduce(0, +)
      let gain = objective - next
      objective = next
      if moved == 0 || gain <= settings.leastGain * objective { break }
    }
  }
}

extension GridCandidates {
  /// The shrinks worth trying at a bit width.
  static func standard(_ format: GridFormat) -> GridCandidates {
    format.isSymmetric
      ? GridCandidates(shrinks: (0..<33).map { 0.3 + Float($0) * 0.025 }, isIndependent: false)
      : GridCandidates(shrinks: (0..<8).map { 0.3 + Float($0) * 0.1 }, isIndependent: true)
  }
}
