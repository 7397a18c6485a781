import Compute
import ComputeOpenBLAS
import Quantization
import Solvers
import Tensors
import TestSupport
import Testing

/// What every solver keeps to, on small problems.
struct SolverTests {
  // 160 columns: a group of 128 leaves a shorter one.
  private static let problem = TestProblem(rows: 40, columns: 160)

  @Test(arguments: allFormats)
  func `quantease is never worse than rounding`(_ format: GridFormat) throws {
    let rounding = try Method.rounding.solve(Self.problem, format)
    let standard = try Method.standard.solve(Self.problem, format)
    #expect(standard.relativeError <= rounding.relativeError)
    // Far from it, as the inputs are correlated; at 8 bits, too.
    #expect(standard.relativeError <= 0.7 * rounding.relativeError)
    #expect(standard.isValid && rounding.isValid)
  }

  @Test(arguments: Method.allCases, [GroupSize.channel, .columns(32)])
  func `the error is that of the weights that the codes stand for`(_ method: Method, _ group: GroupSize)
    throws
  {
    let format = GridFormat(bitWidth: .three, groupSize: group, isSymmetric: false)
    let solution = try method.solve(Self.problem, format)
    let objective = Self.problem.objective(of: solution.linear.dequantized())
    #expect(abs(solution.objective / objective - 1) < 1e-3)
    #expect(abs(solution.relativeError / (objective / Self.problem.scale) - 1) < 1e-3)
  }

  @Test func `a solution that is worse than rounding to nearest says so`() throws {
    let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: false)
    func isWorse(_ solver: any LayerSolver) throws -> Bool {
      try solver.quantize(
        name: "l", weights: Self.problem.weights.copy(),
        problem: Self.problem.layerProblem(damping: solver.damping(for: format)), format: format,
        backend: OpenBLASBackend(threads: 2), panelRows: 16
      ).isWorseThanRounding
    }
    #expect(try isWorse(EverySecondUp()))
    for method in Method.allCases { #expect(try !isWorse(method.solver), "\(method)") }
  }

  @Test(arguments: Method.allCases, [[DType.float16], [.bfloat16], [.bfloat16, .float16]])
  func `scales are those that the outputs can store`(_ method: Method, _ types: [DType]) throws {
    let format = GridFormat(
      bitWidth: .three, groupSize: .channel, isSymmetric: false, scaleTypes: types)
    let solution = try method.solve(Self.problem, format)
    #expect(solution.isValid)
    for scale in solution.linear.grid.scales.elements {
      for type in types { #expect(scale.rounded(to: type) == scale) }
    }
  }

  @Test(arguments: Method.allCases, [GroupSize.channel, .columns(32)])
  func `the number of threads changes no bit`(_ method: Method, _ group: GroupSize) throws {
    let problem = TestProblem(rows: 200, columns: 96)
    let format = GridFormat(bitWidth: .three, groupSize: group, isSymmetric: false)
    let solutions = try [1, 2, 3].map { try method.solve(problem, format, by: OpenBLASBackend(threads: $0)) }
    for solution in solutions.dropFirst() {
      #expect(solution.linear.codes == solutions[0].linear.codes)
      #expect(solution.linear.grid.scales.elements == solutions[0].linear.grid.scales.elements)
      #expect(solution.linear.grid.shifts.elements == solutions[0].linear.grid.shifts.elements)
      #expect(solution.objective == solutions[0].objective)
    }
  }

  @Test(arguments: Method.allCases)
  func `the height of panels makes no difference`(_ method: Method) throws {
    let problem = TestProblem(rows: 200, columns: 96)
    let format = GridFormat(bitWidth: .three, groupSize: .columns(32), isSymmetric: false)
    let low = try method.solve(problem, format, panelRows: 64)
    let high = try method.solve(problem, format, panelRows: 1_024)
    guard method != .standard else {
      // Each panel stops when it gains no more.
      #expect(abs(low.objective / high.objective - 1) < 1e-3)
      return
    }
    #expect(low.linear.codes == high.linear.codes)
    #expect(low.linear.grid.scales.elements == high.linear.grid.scales.elements)
    #expect(abs(low.objective / high.objective - 1) < 1e-6)
  }

  @Test(arguments: [Method.rounding, .gptq, .paper])
  func `the fast and the reference backend reach the same error`(_ method: Method) throws {
    let problem = TestProblem(rows: 9, columns: 37)
    let format = GridFormat(bitWidth: .three, groupSize: .columns(16), isSymmetric: false)
    let fast = try method.solve(problem, format)
    let reference = try method.solve(problem, format, by: ReferenceBackend())
    #expect(abs(fast.objective / reference.objective - 1) < 0.02)
  }

  @Test func `more bits and smaller groups cost less error`() throws {
    func error(_ bits: BitWidth, _ group: GroupSize) throws -> Double {
      let format = GridFormat(bitWidth: bits, groupSize: group, isSymmetric: false)
      return try Method.standard.solve(Self.problem, format).relativeError
    }
    let byBits = try BitWidth.allCases.map { try error($0, .channel) }
    #expect(zip(byBits, byBits.dropFirst()).allSatisfy { $0 > 2 * $1 })
    #expect(try error(.three, .columns(32)) < error(.three, .channel))
  }

  @Test func `weights that already lie on a grid come back as they are`() throws {
    // Every row uses the whole range, so that its minimum and maximum give the grid away.
    let weights = Matrix(rows: 8, columns: 32)
    for row in 0..<8 {
      for column in 0..<32 { weights[row, column] = 0.25 * Float((column * 7 + row) % 16 - 5) }
    }
    let problem = TestProblem(weights: weights, gram: TestProblem(rows: 1, columns: 32).gram)
    let format = GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: false)
    for method in Method.allCases {
      let solution = try method.solve(problem, format)
      #expect(solution.relativeError < 1e-9, "\(method)")
      #expect(solution.linear.dequantized().elements == weights.elements, "\(method)")
    }
  }
}

/// Problems at the edge of what can be solved.
struct DegenerateProblemTests {
  private static let formats = [
    GridFormat(bitWidth: .three, groupSize: .channel, isSymmetric: false),
    GridFormat(bitWidth: .four, groupSize: .columns(16), isSymmetric: true, scaleTypes: [.float16]),
  ]

  @Test(arguments: Method.allCases, formats)
  func `a dead column is rounded to nearest`(_ method: Method, _ format: GridFormat) throws {
    let problem = TestProblem(rows: 20, columns: 48, dead: [0, 17, 47])
    let solution = try method.solve(problem, format)
    #expect(solution.isValid)
    let grid = solution.linear.grid
    for row in 0..<20 {
      for column in [0, 17, 47] {
        let group = column / grid.columnsPerGroup
        let place = problem.weights[row, column] / grid.scales[row, group] + grid.zeroPoint(row, group)
        let inRange = min(max(place, 0), Float(format.maximumCode))
        // The standard settings refit scales after the rounding.
        let distance = abs(Float(solution.linear.codes[row * 48 + column]) - inRange)
        #expect(distance <= (method == .standard ? 1 : 0.501))
      }
    }
  }

  @Test(arguments: Method.allCases, formats)
  func `a row of zeros stays zero`(_ method: Method, _ format: GridFormat) throws {
    let problem = TestProblem(rows: 5, columns: 40)
    problem.weights.rows(2..<3).fill(0)
    let solution = try method.solve(problem, format)
    #expect(solution.isValid)
    #expect(solution.linear.dequantized().rows(2..<3).elements.allSatisfy { $0 == 0 })
  }

  @Test(arguments: Method.allCases, formats)
  func `a Gram matrix of zeros has no error`(_ method: Method, _ format: GridFormat) throws {
    let weights = TestProblem(rows: 6, columns: 40).weights
    let problem = TestProblem(weights: weights, gram: Matrix(rows: 40, columns: 40))
    let solution = try method.solve(problem, format)
    #expect(solution.isValid)
    #expect(solution.relativeError == 0)
  }

  @Test(arguments: Method.allCases, formats)
  func `fewer tokens than columns are enough`(_ method: Method, _ format: GridFormat) throws {
    let problem = TestProblem(rows: 12, columns: 96, tokens: 24)
    let solution = try method.solve(problem, format)
    let rounding = try Method.rounding.solve(problem, format)
    #expect(solution.isValid)
    #expect(solution.relativeError <= rounding.relativeError)
  }

  @Test(arguments: Method.allCases, formats)
  func `inputs in very few directions are enough`(_ method: Method, _ format: GridFormat) throws {
    let problem = TestProblem(rows: 12, columns: 96, rank: 2, noise: 0)
    let solution = try method.solve(problem, format)
    let rounding = try Method.rounding.solve(problem, format)
    #expect(solution.isValid)
    #expect(solution.relativeError <= rounding.relativeError)
  }

  @Test(arguments: Method.allCases)
  func `one row and one column are a problem, too`(_ method: Method) throws {
    for (rows, columns) in [(1, 1), (1, 33), (33, 1)] {
      let solution = try method.solve(TestProblem(rows: rows, columns: columns), Self.formats[0])
      #expect(solution.isValid, "\(rows) × \(columns)")
    }
  }

  @Test(arguments: Method.allCases, [Float(1e-12), 1e12])
  func `the size of weights and inputs does not matter`(_ method: Method, _ factor: Float) throws {
    let plain = TestProblem(rows: 8, columns: 40)
    let weights = plain.weights.copy()
    let gram = plain.gram.copy()
    for index in 0..<8 * 40 { weights[index / 40, index % 40] *= factor }
    for index in 0..<40 * 40 { gram[index / 40, index % 40] *= 1 / factor }
    let format = Self.formats[0]
    let solution = try method.solve(TestProblem(weights: weights, gram: gram), format)
    #expect(solution.isValid)
    let expected = try method.solve(plain, format).relativeError
    #expect(abs(solution.relativeError / expected - 1) < 0.05)
  }

  @Test(arguments: Method.allCases, [Float.nan, .infinity])
  func `a Gram matrix that is not finite is an error`(_ method: Method, _ value: Float) throws {
    let problem = TestProblem(rows: 4, columns: 24)
    problem.gram[3, 3] = value
    #expect(throws: SolverError.self) { try method.solve(problem, Self.formats[0]) }
  }
}

/// Rounds to nearest, and then moves every second code away from there.
private struct EverySecondUp: LayerSolver {
  let name = "up"
  let mayBeWorseThanRounding = true

  func damping(for format: GridFormat) -> Float { 0 }

  func start(
    _ target: Matrix, problem: LayerProblem, grid: Grid, into codes: Matrix, backend: any ComputeBackend
  ) throws {
    RoundToNearest().start(target, problem: problem, grid: grid, into: codes, backend: backend)
    for row in 0..<codes.rows {
      for column in stride(from: 0, to: codes.columns, by: 2) {
        codes[row, column] = min(codes[row, column] + 1, Float(grid.format.maximumCode))
      }
    }
  }
}
