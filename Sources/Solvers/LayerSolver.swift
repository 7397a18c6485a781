import Compute
import Quantization
import Tensors

/// Quantizes whole linears, in two steps: what takes a factor of Σ, and then what takes Σ itself. All linears of a stage
/// take the first before one of them takes the second, since there is memory for one of the two at a time.
///
/// Beside Σ, memory is bounded by `panelRows`, a handful of matrices of `panelRows × inFeatures` values, and by what a draft
/// holds.
public protocol LinearQuantizer: Sendable {
  /// The name that the command line and the reports give it.
  var name: String { get }

  /// The ridge that its problems carry where codes are those of a format, as a share of Σ's mean diagonal.
  func damping(for format: GridFormat) -> Float

  /// Makes the factor of Σ that all drafts of a stage begin with.
  /// - Throws: ``SolverError``
  func factorize(_ problem: LayerProblem) throws(SolverError)

  /// Chooses grids and first codes.
  /// - Throws: ``SolverError``, and what reading the weights throws
  func draft(
    _ weights: LinearRows, problem: LayerProblem, format: GridFormat, backend: any ComputeBackend,
    panelRows: Int
  ) throws -> LinearDraft

  /// Brings a draft to its end.
  /// - Throws: ``SolverError`` if a result is not finite or the solver fails, and what reading the weights throws
  func finish(
    _ draft: LinearDraft, name: String, weights: LinearRows, problem: LayerProblem,
    backend: any ComputeBackend,
    panelRows: Int
  ) throws -> LayerSolution
}

extension LinearQuantizer {
  /// Not all take one.
  public func factorize(_ problem: LayerProblem) throws(SolverError) {}

  /// Both steps of one linear.
  public func quantize(
    name: String, weights: Matrix, problem: LayerProblem, format: GridFormat,
    backend: any ComputeBackend, panelRows: Int = 1_024
  ) throws -> LayerSolution {
    let weights = LinearRows(weights, backend: backend)
    let draft = try draft(weights, problem: problem, format: format, backend: backend, panelRows: panelRows)
    return try finish(
      draft, name: name, weights: weights, problem: problem, backend: backend, panelRows: panelRows)
  }
}

/// A linear between the two steps. The second one takes over its memory.
public final class LinearDraft {
  /// `[outFeatures, inFeatures]`, a byte each.
  var codes: [UInt8]
  let grid: Grid
  /// Ĥ, where the solver keeps outliers.
  var outliers: SparseRows?
  /// What the same solver comes to without outliers, where that is to be compared.
  var plain: (codes: [UInt8], grid: Grid)?
  /// What each panel that is done has come to, by its first row.
  private var figures: [Int: PanelFigures] = [:]

  init(_ format: GridFormat, outFeatures: Int, inFeatures: Int, backend: any ComputeBackend) {
    codes = .uninitialized(count: outFeatures * inFeatures)
    grid = backend.makeGrid(format, outFeatures: outFeatures, inFeatures: inFeatures)
  }

  fileprivate subscript(panel: Range<Int>) -> PanelFigures {
    get {
      guard let figures = figures[panel.lowerBound] else { preconditionFailure("a panel is not done") }
      return figures
    }
    set { figures[panel.lowerBound] = newValue }
  }

  /// What ``take(_:panel:backend:)`` makes a panel of another draft of the same linear the same as this one's by.
  public func bytes(ofPanel panel: Range<Int>, backend: any ComputeBackend) -> [UInt8] {
    var writer = ByteWriter()
    let figures = self[panel]
    writer.append([figures.objective, figures.scale, figures.rounding])
    for matrix in grid.rows(panel).matrices {
      backend.withHostMatrix(matrix, for: .reading) { $0.withSpan { writer.append($0) } }
    }
    let (codes, range) = (codes, codes(of: panel))
    writer.append(codes.span.extracting(range))
    return writer.bytes
  }

  /// - Returns: false for bytes of another shape
  public func take(_ bytes: [UInt8], panel: Range<Int>, backend: any ComputeBackend) -> Bool {
    var reader = ByteReader()
    guard let figures = reader.values(Double.self, count: 3, of: bytes) else { return false }
    self[panel] = PanelFigures(objective: figures[0], scale: figures[1], rounding: figures[2])
    for matrix in grid.rows(panel).matrices {
      guard let values = reader.values(Float.self, count: matrix.count, of: bytes) else { return false }
      backend.withHostMatrix(matrix, for: .writing) {
        $0.copy(from: Matrix(rows: matrix.rows, columns: matrix.columns, values))
      }
    }
    let range = codes(of: panel)
    guard let codes = reader.values(UInt8.self, count: range.count, of: bytes) else { return false }
    self.codes.replaceSubrange(range, with: codes)
    return true
  }

  private func codes(of panel: Range<Int>) -> Range<Int> {
    panel.lowerBound * grid.inFeatures..<panel.upperBound * grid.inFeatures
  }
}

/// What the rows of a panel have come to: f(Ŵ), f(0), and f of rounding to nearest where that is looked at.
private struct PanelFigures {
  var objective = 0.0
  var scale = 0.0
  var rounding = 0.0
}

/// A method that moves the weights of one linear onto an integer grid, row by row.
///
/// All solvers minimise f(Ŵ) = Σ_i (w_i − ŵ_i) Σ (w_i − ŵ_i)ᵀ, or ignore it; they differ in how far they go.
public protocol LayerSolver: LinearQuantizer {
  /// Whether a linear may come out worse than by rounding to nearest, which is then looked at: a product more.
  var mayBeWorseThanRounding: Bool { get }

  /// Chooses the grids and first codes of a panel of rows.
  /// - Parameters:
  ///   - target: W, or what the problem's correction makes of it, `[panelRows, inFeatures]`
  ///   - grid: the panel's grids, to be chosen
  ///   - codes: whole numbers, `[panelRows, inFeatures]`, to be chosen
  /// - Throws: ``SolverError``
  func start(
    _ target: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) throws

  /// Descends from there.
  /// - Returns: the target's product with Σ + ρI, if the solver has made it
  func descend(
    _ target: Matrix, problem: LayerProblem, grid: Grid, codes: Matrix, backend: any ComputeBackend
  ) -> Matrix?
}

/// A quantized linear and what it cost.
public struct LayerSolution: Sendable {
  public let linear: QuantizedLinear
  /// f(Ŵ)
  public let objective: Double
  /// f(0) = Σ_i w_i Σ w_iᵀ
  public let scale: Double
  /// What rounding every weight to the nearest point of its range's grid would have cost; nil where the solver cannot end
  /// above that.
  public var roundingObjective: Double?

  /// Whether the work was worse than none.
  public var isWorseThanRounding: Bool { roundingObjective.map { objective > $0 } ?? false }

  /// f(Ŵ) / f(0); 0 where the inputs are all zero.
  public var relativeError: Double { scale > 0 ? objective / scale : 0 }
}

extension LayerSolver {
  /// A solver may be done when it has begun.
  public func descend(
    _ target: Matrix, problem: LayerProblem, grid: Grid, codes: Matrix, backend: any ComputeBackend
  ) -> Matrix? { nil }

  public func draft(
    _ weights: LinearRows, problem: LayerProblem, format: GridFormat, backend: any ComputeBackend,
    panelRows: Int
  ) throws -> LinearDraft {
    try draft(
      weights, problem: problem, format: format, backend: backend, panels: weights.panels(of: panelRows))
  }

  public func finish(
    _ draft: LinearDraft, name: String, weights: LinearRows, problem: LayerProblem,
    backend: any ComputeBackend, panelRows: Int
  ) throws -> LayerSolution {
    let panels = weights.panels(of: panelRows)
    try finish(draft, weights: weights, problem: problem, backend: backend, panels: panels)
    return try solution(of: draft, name: name, panels: panels, backend: backend)
  }

  /// The first step for some panels; their rows alone are chosen, each panel on its own.
  public func draft(
    _ weights: LinearRows, problem: LayerProblem, format: GridFormat, backend: any ComputeBackend,
    panels: [Range<Int>]
  ) throws -> LinearDraft {
    let draft = LinearDraft(
      format, outFeatures: weights.outFeatures, inFeatures: weights.inFeatures, backend: backend)
    for rows in panels {
      let codes = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      try start(
        problem.target(of: weights, rows), problem: problem, grid: draft.grid.rows(rows),
        into: codes, backend: backend)
      backend.downloadCodes(codes, to: &draft.codes, firstRow: rows.lowerBound)
    }
    return draft
  }

  /// The second step for some panels.
  public func finish(
    _ draft: LinearDraft, weights: LinearRows, problem: LayerProblem, backend: any ComputeBackend,
    panels: [Range<Int>]
  ) throws {
    for rows in panels {
      var figures = PanelFigures()
      let grid = draft.grid.rows(rows)
      let panelCodes = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.uploadCodes(draft.codes, firstRow: rows.lowerBound, to: panelCodes)
      let target = try problem.target(of: weights, rows)
      let images = descend(target, problem: problem, grid: grid, codes: panelCodes, backend: backend)
      backend.downloadCodes(panelCodes, to: &draft.codes, firstRow: rows.lowerBound)
      figures.scale = problem.objective(of: target, images: images)
      if mayBeWorseThanRounding {
        figures.rounding = roundingObjective(target, problem: problem, format: grid.format, backend: backend)
      }
      backend.dequantize(panelCodes, grid: grid, into: panelCodes)
      backend.subtract(panelCodes, from: target)
      figures.objective = problem.objective(of: target)
      draft[rows] = figures
    }
  }

  /// What the panels of a draft, which are all done, have come to together.
  /// - Throws: ``SolverError/nonFiniteObjective(linear:)``
  public func solution(
    of draft: LinearDraft, name: String, panels: [Range<Int>], backend: any ComputeBackend
  ) throws(SolverError) -> LayerSolution {
    var (objective, scale, rounding) = (0.0, 0.0, 0.0)
    for figures in panels.map({ draft[$0] }) {
      objective += figures.objective
      scale += figures.scale
      rounding += figures.rounding
    }
    guard objective.isFinite && scale.isFinite else { throw SolverError.nonFiniteObjective(linear: name) }
    var solution = LayerSolution(
      linear: QuantizedLinear(name: name, codes: draft.codes, grid: backend.download(draft.grid)),
      objective: objective,
      scale: scale)
    solution.roundingObjective = mayBeWorseThanRounding ? rounding : nil
    return solution
  }

  private func roundingObjective(
    _ target: Matrix, problem: LayerProblem, format: GridFormat, backend: any ComputeBackend
  ) -> Double {
    let grid = backend.makeGrid(format, outFeatures: target.rows, inFeatures: target.columns)
    let errors = backend.makeMatrix(rows: target.rows, columns: target.columns)
    RoundToNearest().start(target, problem: problem, grid: grid, into: errors, backend: backend)
    backend.dequantize(errors, grid: grid, into: errors)
    backend.subtract(target, from: errors)
    return problem.objective(of: errors)
  }
}

public enum SolverError: Error, Sendable, Equatable, CustomStringConvertible {
  case nonFiniteObjective(linear: String)
  case notPositiveDefinite(ridge: Float)

  public var description: String {
    switch self {
    case .nonFiniteObjective(let linear):
      "\(linear): the layer objective is not finite; its weights or inputs overflow fp32"
    case .notPositiveDefinite(let ridge):
      "the Gram matrix is not positive definite with \(ridge) on its diagonal; calibrate with more tokens"
    }
  }
}
