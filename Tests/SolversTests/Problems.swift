import Compute
import ComputeOpenBLAS
import Quantization
import Solvers
import Tensors
import TestSupport

/// The solvers by name, as arguments of tests.
enum Method: String, CaseIterable, Sendable {
  case rounding, gptq, paper, standard

  var solver: any LayerSolver {
    switch self {
    case .rounding: RoundToNearest()
    case .gptq: GPTQ()
    case .paper: QuantEase(.paper())
    case .standard: QuantEase(.standard())
    }
  }

  func solve(
    _ problem: TestProblem, _ format: GridFormat,
    by backend: any ComputeBackend = OpenBLASBackend(threads: 2),
    panelRows: Int = 1_024
  ) throws -> LayerSolution {
    try solver.quantize(
      name: "linear", weights: problem.weights.copy(),
      problem: problem.layerProblem(damping: solver.damping, backend: backend), format: format,
      backend: backend, panelRows: panelRows)
  }
}

/// A linear's weights with the Gram matrix of its inputs.
struct TestProblem {
  let weights: Matrix
  let gram: Matrix

  /// Random weights, and inputs that a few directions dominate, as those of language models.
  /// - Parameters:
  ///   - tokens: fewer than `columns` make a singular Gram matrix
  ///   - rank: how many directions the inputs have beside noise
  ///   - noise: 0 leaves the inputs in those directions
  ///   - dead: columns whose input is always zero
  init(
    rows: Int, columns: Int, tokens: Int = 1_024, rank: Int = 12, noise: Float = 0.3, dead: Set<Int> = [],
    seed: UInt64 = 1
  ) {
    var generator = SeededGenerator(seed: seed)
    func random(_ rows: Int, _ columns: Int) -> Matrix {
      Matrix(rows: rows, columns: columns, (0..<rows * columns).map { _ in generator.normal() })
    }
    weights = random(rows, columns)
    let backend = OpenBLASBackend(threads: 1)
    let inputs = random(tokens, columns)
    backend.multiply(
      random(tokens, rank), random(rank, columns), transposingB: false, scale: 1, into: inputs, keeping: noise
    )
    for column in dead {
      for token in 0..<tokens { inputs[token, column] = 0 }
    }
    gram = Matrix(rows: columns, columns: columns)
    backend.accumulateGram(inputs, into: gram)
    backend.symmetrize(gram)
  }

  init(weights: Matrix, gram: Matrix) {
    self.weights = weights
    self.gram = gram
  }

  /// For a solver, over memory of its own.
  func layerProblem(
    damping: Float = 0, backend: any ComputeBackend = OpenBLASBackend(threads: 2)
  ) -> LayerProblem {
    LayerProblem(gram: gram.copy(), damping: damping, backend: backend)
  }

  /// W Σ
  var images: Matrix {
    let images = Matrix(rows: weights.rows, columns: weights.columns)
    OpenBLASBackend(threads: 1)
      .multiply(weights, gram, transposingB: false, scale: 1, into: images, keeping: 0)
    return images
  }

  /// Σ_i (w_i − ŵ_i) Σ (w_i − ŵ_i)ᵀ in fp64.
  func objective(of approximation: Matrix) -> Double {
    (0..<weights.rows).reduce(0) { sum, row in
      let error = (0..<weights.columns).map {
        Double(weights[row, $0]) - Double(approximation[row, $0])
      }
      return sum
        + error.indices.reduce(0) { sum, column in
          sum + error[column] * error.indices.reduce(0) { $0 + error[$1] * Double(gram[$1, column]) }
        }
    }
  }

  /// f(0)
  var scale: Double { objective(of: Matrix(rows: weights.rows, columns: weights.columns)) }
}

/// The formats that the tests try: bits × groups × symmetry.
let allFormats: [GridFormat] = BitWidth.allCases.flatMap { bits in
  [GroupSize.channel, .columns(32), .columns(128)].flatMap { group in
    [false, true].map { GridFormat(bitWidth: bits, groupSize: group, isSymmetric: $0) }
  }
}

extension LayerSolution {
  /// Whether every code, zero point and scale is what a file can hold.
  var isValid: Bool {
    let grid = linear.grid
    let format = grid.format
    let zeroPoints = grid.zeroPoints.elements
    return linear.codes.allSatisfy { $0 <= format.maximumCode }
      && zeroPoints.allSatisfy { zero in
        format.isSymmetric
          ? format.symmetricZeroPoints.contains(Int(zero))
          : zero == zero.rounded() && format.zeroPointRange.contains(Int(zero))
      }
      && grid.scales.elements.allSatisfy { $0.isFinite && $0 > 0 && $0 == format.storable($0) }
      && relativeError.isFinite && relativeError >= 0
      && linear.dequantized().firstNonFinite == nil
  }
}
