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
      problem: problem.layerProblem(damping: solver.damping(for: format), backend: backend), format: format,
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

/// The formats that the tests try: bits × groups × symmetry, and those of GGUF.
let allFormats: [GridFormat] =
  BitWidth.allCases.flatMap { bits in
    [GroupSize.channel, .columns(32), .columns(128)].flatMap { group in
      [false, true].map { GridFormat(bitWidth: bits, groupSize: group, isSymmetric: $0) }
    }
  } + GridFormat.ofGGUF

extension GridFormat {
  /// Float offsets, and super-blocks with and without offsets; fewer groups in a super-block than files have, so that small
  /// matrices have some.
  static let ofGGUF = [
    GridFormat(
      bitWidth: .four, groupSize: .columns(32), isSymmetric: false, coding: .offsets, scaleTypes: [.float16]),
    superBlocks(.two, group: 16, scales: 0...15, offsets: 0...15),
    superBlocks(.five, group: 32, scales: 0...63, offsets: 0...63),
    superBlocks(.three, group: 16, scales: -32...31),
    superBlocks(.six, group: 16, scales: -128...127),
  ]

  private static func superBlocks(
    _ bits: BitWidth, group: Int, scales: ClosedRange<Int>, offsets: ClosedRange<Int>? = nil
  ) -> GridFormat {
    GridFormat(
      bitWidth: bits, groupSize: .columns(group), isSymmetric: offsets == nil,
      coding: .superBlocks(SuperBlockCoding(groups: 3, scaleMultiples: scales, offsetMultiples: offsets)),
      scaleTypes: [.float16])
  }
}

extension Grid {
  /// Whether a file can hold all scales and offsets of super-blocks.
  var isStorable: Bool {
    let codes = [UInt8](repeating: 0, count: outFeatures * inFeatures)
    return QuantizedLinear(name: "", codes: codes, grid: self).withStoredScales.grid.areMultiplesValid
  }

  /// Whether all scales and offsets of super-blocks, as they are stored, are such multiples of units as have a place.
  fileprivate var areMultiplesValid: Bool {
    guard let units, let blocks = format.superBlocks else { return true }
    func isMultiple(_ value: Float, of unit: Float, in range: ClosedRange<Int>) -> Bool {
      let multiple = (value / unit).rounded()
      return unit == unit.rounded(to: .float16) && multiple * unit == value
        && range.contains(Int(multiple))
    }
    return (0..<outFeatures).allSatisfy { row in
      (0..<groups).allSatisfy { group in
        let block = group / blocks.groups
        guard isMultiple(scales[row, group], of: units.scales[row, block], in: blocks.scaleMultiples) else {
          return false
        }
        guard let offsets = units.offsets, let range = blocks.offsetMultiples else { return true }
        return isMultiple(-shifts[row, group], of: offsets[row, block], in: range)
      }
    }
  }
}

extension LayerSolution {
  /// Whether every code, zero point and scale is what a file can hold.
  var isValid: Bool {
    let grid = linear.grid
    let format = grid.format
    let areShiftsValid = grid.shifts.elements.allSatisfy { shift in
      if format.hasOwnOffsets { return format.superBlocks != nil || shift == format.storable(offset: shift) }
      return format.isSymmetric
        ? format.symmetricZeroPoints.contains(Int(shift))
        : shift == shift.rounded() && format.zeroPointRange.contains(Int(shift))
    }
    return linear.codes.allSatisfy { $0 <= format.maximumCode } && areShiftsValid
      && grid.scales.elements.allSatisfy { $0.isFinite && $0 > 0 && $0 == format.storable($0) }
      && linear.withStoredScales.grid.areMultiplesValid
      && relativeError.isFinite && relativeError >= 0
      && linear.dequantized().firstNonFinite == nil
  }
}
