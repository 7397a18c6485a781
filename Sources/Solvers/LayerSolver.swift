import Compute
import Quantization
import Tensors

/// Quantizes whole linears.
public protocol LinearQuantizer: Sendable {
  /// The name that the command line and the reports give it.
  var name: String { get }

  /// The ridge that its problems carry, as a share of Σ's mean diagonal.
  var damping: Float { get }

  /// Quantizes a linear, a panel of rows at a time.
  ///
  /// Beside the weights and Σ, memory is bounded by `panelRows`: a handful of matrices of
  /// `panelRows × inFeatures` values.
  /// - Parameters:
  ///   - weights: W, `[outFeatures, inFeatures]`; overwritten with what the result stands for
  /// - Throws: ``SolverError`` if a result is not finite or the solver fails.
  func quantize(
    name: String, weights: Matrix, problem: LayerProblem, format: GridFormat,
    backend: any ComputeBackend, panelRows: Int
  ) throws -> LayerSolution
}

/// A method that moves the weights of one linear onto an integer grid.
///
/// All solvers minimise f(Ŵ) = Σ_i (w_i − ŵ_i) Σ (w_i − ŵ_i)ᵀ, or ignore it; they differ in how far they go.
public protocol LayerSolver: LinearQuantizer {
  /// Quantizes a panel of rows.
  /// - Parameters:
  ///   - target: W, or what the problem's correction makes of it, `[panelRows, inFeatures]`
  ///   - problem: Σ and what was derived from it
  ///   - grid: the panel's grids; the solver chooses them
  ///   - codes: the result, whole numbers, `[panelRows, inFeatures]`
  /// - Returns: the target's product with Σ + ρI, if the solver has made it
  /// - Throws: ``SolverError``
  @discardableResult
  func solve(
    _ target: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix,
    backend: any ComputeBackend
  ) throws -> Matrix?
}

/// A quantized linear and what it cost.
public struct LayerSolution: Sendable {
  public let linear: QuantizedLinear
  /// f(Ŵ)
  public let objective: Double
  /// f(0) = Σ_i w_i Σ w_iᵀ
  public let scale: Double

  /// f(Ŵ) / f(0); 0 where the inputs are all zero.
  public var relativeError: Double { scale > 0 ? objective / scale : 0 }
}

extension LayerSolver {
  public func quantize(
    name: String, weights: Matrix, problem: LayerProblem, format: GridFormat,
    backend: any ComputeBackend, panelRows: Int = 1_024
  ) throws -> LayerSolution {
    let grid = Grid(format: format, outFeatures: weights.rows, inFeatures: weights.columns)
    var codes = [UInt8](repeating: 0, count: weights.count)
    var objective = 0.0
    var scale = 0.0
    for start in stride(from: 0, to: weights.rows, by: panelRows) {
      let rows = start..<min(start + panelRows, weights.rows)
      let panel = weights.rows(rows)
      let panelCodes = Matrix(rows: rows.count, columns: weights.columns)
      let target = problem.target(of: panel, rows: rows, backend: backend)
      let images = try solve(
        target, problem: problem, grid: grid.rows(rows), into: panelCodes, backend: backend)
      panelCodes.store(in: &codes, firstRow: start)
      scale += problem.objective(of: target, images: images, backend: backend)
      backend.dequantize(panelCodes, grid: grid.rows(rows), into: panelCodes)
      backend.subtract(panelCodes, from: target)
      objective += problem.objective(of: target, backend: backend)
      panel.copy(from: panelCodes)
    }
    guard objective.isFinite && scale.isFinite else { throw SolverError.nonFiniteObjective(linear: name) }
    return LayerSolution(
      linear: QuantizedLinear(name: name, codes: codes, grid: grid), objective: objective, scale: scale)
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
