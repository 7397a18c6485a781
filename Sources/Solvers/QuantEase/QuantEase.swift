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
  /// The published schedule goes off the grid and back, and stops where its passes end.
  public var mayBeWorseThanRounding: Bool { settings.start == .weights }

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
    /// The neighbours with which every column tries to move in pairs; none if 0.
    public var pairNeighbours: Int
    /// The ridge.
    public var damping: Damping
    /// A pass that lowers the objective by less than this share is the last.
    public var leastGain: Double

    /// Whether the descent ends when passes gain little; the published schedule runs to its end.
    var stopsEarly: Bool { leastGain > 0 }

    /// The published algorithm.
    public static func paper(passes: Int = 25) -> Settings {
      Settings(
        start: .weights, passes: passes, searchesGrid: false, refitsScales: false,
        pairNeighbours: 0, damping: .share(0), leastGain: 0)
    }

    /// All that lowers the error at the same bits and in the same file format.
    public static func standard(passes: Int = 25) -> Settings {
      Settings(
        start: .nearestPlane, passes: passes, searchesGrid: true, refitsScales: true,
        pairNeighbours: 16, damping: .share(0.01), leastGain: 0.002)
    }
  }

  public init(_ settings: Settings = .standard()) {
    self.settings = settings
  }

  public func damping(for format: GridFormat) -> Float { settings.damping.share(for: format) }

  public func factorize(_ problem: LayerProblem) throws(SolverError) {
    if settings.start == .nearestPlane { _ = try problem.factor(.smallestPivot) }
  }

  public func start(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) throws {
    switch settings.start {
    case .weights:
      chooseGrid(weights, importance: Array(repeating: 1, count: weights.columns), grid, backend)
    case .nearestPlane:
      let factor = try problem.factor(.smallestPivot)
      chooseGrid(weights, importance: factor.conditionalVariances, grid, backend)
      backend.roundToNearestPlane(weights, factor: factor, grid: grid, into: codes)
    }
  }

  public func descend(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, codes: Matrix, backend: any ComputeBackend
  ) -> Matrix? {
    if settings.start == .weights {
      descendFromWeights(weights, problem: problem, grid: grid, into: codes, backend: backend)
      guard settings.stopsEarly else { return nil }
    }
    return descendFromCodes(weights, problem: problem, grid: grid, codes: codes, backend: backend)
  }

  /// What rounding costs a row is its columns' squared errors weighted by their conditional variances, as far
  /// as later columns make up for the rest: so the best grid is found without solving for any.
  private func chooseGrid(
    _ weights: Matrix, importance: [Float], _ grid: Grid, _ backend: any ComputeBackend
  ) {
    backend.chooseGrid(
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
    backend.copy(weights, into: approximation)
    for pass in 0..<settings.passes {
      let isQuantizing = pass == settings.passes - 1 || pass % 3 != 1
      let moved = backend.descend(
        from: weights, approximation: approximation, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: grid, isQuantizing: isQuantizing)
      let share = Double(moved) / Double(max(weights.count, 1))
      if settings.stopsEarly && isQuantizing && share < Self.sparseShare { break }
    }
    backend.round(approximation, grid: grid, into: codes)
  }

  /// A dense pass costs two products with Σ whatever moves, a sparse one a row of Σ for every move, at about a
  /// tenth of a product's speed: below this share of moves the sparse form is the cheaper.
  private static let sparseShare = 0.08

  /// Passes over codes that already lie on the grid; after a start as good as the nearest plane few move.
  /// - Returns: W Σ, if a refit has use for it
  private func descendFromCodes(
    _ weights: Matrix, problem: LayerProblem, grid: Grid, codes: Matrix, backend: any ComputeBackend
  ) -> Matrix? {
    let gradient = backend.makeMatrix(rows: weights.rows, columns: weights.columns)
    do {
      let errors = backend.makeMatrix(rows: weights.rows, columns: weights.columns)
      backend.dequantize(codes, grid: grid, into: errors)
      backend.subtract(weights, from: errors)
      backend.multiply(errors, problem.gram, transposingB: false, scale: -1, into: gradient, keeping: 0)
    }
    var images: Matrix?
    if settings.refitsScales && grid.groups == 1 {
      let product = backend.makeMatrix(rows: weights.rows, columns: weights.columns)
      backend.multiply(weights, problem.gram, transposingB: false, scale: 1, into: product, keeping: 0)
      images = product
    }
    func objectiveNow() -> Double {
      backend.rowObjectives(of: codes, weights: weights, gradient: gradient, grid: grid).reduce(0, +)
    }
    var objective = objectiveNow()
    for pass in 0..<settings.passes {
      let moved = backend.descendSparsely(
        codes: codes, gradient: gradient, gram: problem.gram,
        inverseDiagonal: problem.inverseDiagonal, grid: grid)
      if settings.refitsScales && Self.refitPasses.contains(pass) {
        backend.refitScales(
          codes: codes, images: images, gradient: gradient, gram: problem.gram, grid: grid)
        if grid.units != nil {
          backend.refitUnits(codes: codes, gradient: gradient, gram: problem.gram, grid: grid)
        }
      }
      if settings.pairNeighbours > 0 && Self.pairPasses.contains(pass) {
        _ = backend.descendInPairs(
          codes: codes, gradient: gradient, gram: problem.gram,
          neighbours: problem.mostCorrelated(settings.pairNeighbours), grid: grid)
      }
      let next = objectiveNow()
      let gain = objective - next
      objective = next
      if pass > 1 && (moved == 0 || gain <= settings.leastGain * objective) { break }
    }
    return images
  }

  /// A refit of groups costs a product with Σ, more than a pass of moves, and hardly changes anything once the codes
  /// have settled.
  private static let refitPasses: Set = [1, 3]

  /// Pairs look further than single moves and cost more: they wait until those have done their part, and a few
  /// passes find nearly all there are.
  private static let pairPasses = 1...2
}

extension GridCandidates {
  /// The shrinks worth trying at a bit width.
  static func standard(_ format: GridFormat) -> GridCandidates {
    if format.isSymmetric {
      return GridCandidates(shrinks: (0..<33).map { 0.3 + Float($0) * 0.025 }, isIndependent: false)
    }
    // A group's few weights fill their range better than a whole row's.
    return format.groupSize == .channel
      ? GridCandidates(shrinks: (0..<8).map { 0.3 + Float($0) * 0.1 }, isIndependent: true)
      : GridCandidates(shrinks: (0..<7).map { 0.5 + Float($0) * 0.1 }, isIndependent: true)
  }
}
