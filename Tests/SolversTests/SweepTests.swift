import Compute
import ComputeOpenBLAS
import Quantization
import Solvers
import Tensors
import TestSupport
import Testing

/// Passes of the descent: each may only lower the objective.
struct DescentTests {
  private static let formats =
    [
      GridFormat(bitWidth: .two, groupSize: .channel, isSymmetric: false),
      GridFormat(bitWidth: .three, groupSize: .columns(32), isSymmetric: true),
      GridFormat(bitWidth: .four, groupSize: .columns(32), isSymmetric: false),
    ] + GridFormat.ofGGUF

  @Test(arguments: formats)
  func `dense passes never raise the objective`(_ format: GridFormat) {
    let start = Start(format)
    let approximation = start.approximation
    var objectives = [start.problem.objective(of: approximation)]
    for _ in 0..<6 {
      _ = start.backend.descend(
        from: start.problem.weights, approximation: approximation, gram: start.problem.gram,
        inverseDiagonal: start.inverseDiagonal, grid: start.grid, isQuantizing: true)
      objectives.append(start.problem.objective(of: approximation))
    }
    expectFall(objectives)
    #expect(objectives[1] < 0.8 * objectives[0])
  }

  @Test(arguments: formats)
  func `sparse passes, pairs and refits never raise the objective`(_ format: GridFormat) {
    let start = Start(format)
    let (codes, gradient) = (start.codes, start.gradient)
    let neighbours = ColumnNeighbours(mostCorrelated: 8, gram: start.problem.gram)
    var objectives = [start.problem.objective(of: start.approximation)]
    for _ in 0..<5 {
      _ = start.descendSparsely(codes, gradient)
      objectives.append(start.objective(of: codes))
      _ = start.backend.descendInPairs(
        codes: codes, gradient: gradient, gram: start.problem.gram, neighbours: neighbours, grid: start.grid)
      objectives.append(start.objective(of: codes))
      start.backend.refitScales(
        codes: codes, images: start.problem.images, gradient: gradient, gram: start.problem.gram,
        grid: start.grid)
      objectives.append(start.objective(of: codes))
      if format.superBlocks != nil {
        start.backend.refitUnits(codes: codes, gradient: gradient, gram: start.problem.gram, grid: start.grid)
        objectives.append(start.objective(of: codes))
        #expect(start.grid.isStorable)
      }
      start.expectGradient(gradient, of: codes)
    }
    expectFall(objectives)
    #expect(objectives[1] < 0.8 * objectives[0])
  }

  @Test func `where no coordinate moves, no other code of a coordinate is better`() {
    let format = GridFormat(bitWidth: .two, groupSize: .columns(8), isSymmetric: false)
    let start = Start(format, rows: 6, columns: 24)
    let codes = start.codes
    var passes = 0
    while start.descendSparsely(codes, start.gradient) > 0 && passes < 100 { passes += 1 }
    #expect(passes < 100)
    let best = start.objective(of: codes)
    for row in 0..<6 {
      for column in 0..<24 {
        let present = codes[row, column]
        for other in 0...format.maximumCode where Float(other) != present {
          codes[row, column] = Float(other)
          #expect(start.objective(of: codes) >= best * (1 - 1e-5))
        }
        codes[row, column] = present
      }
    }
  }

  @Test func `a dense and a sparse pass make the same moves`() {
    let format = GridFormat(bitWidth: .three, groupSize: .channel, isSymmetric: false)
    let start = Start(format, rows: 30, columns: 50)
    let approximation = start.approximation
    let moved = start.backend.descend(
      from: start.problem.weights, approximation: approximation, gram: start.problem.gram,
      inverseDiagonal: start.inverseDiagonal, grid: start.grid, isQuantizing: true)
    let codes = start.codes
    let movedSparsely = start.descendSparsely(codes, start.gradient)
    let fromCodes = Matrix(rows: 30, columns: 50)
    start.backend.dequantize(codes, grid: start.grid, into: fromCodes)
    let differing = zip(approximation.elements, fromCodes.elements).count { abs($0 - $1) > 1e-4 }
    #expect(differing <= 3)
    #expect(abs(moved - movedSparsely) <= 3)
  }

  @Test func `a pass off the grid minimises one coordinate after the other`() {
    let start = Start(
      GridFormat(bitWidth: .two, groupSize: .channel, isSymmetric: false), rows: 4, columns: 20)
    let approximation = start.approximation
    for _ in 0..<2_000 {
      _ = start.backend.descend(
        from: start.problem.weights, approximation: approximation, gram: start.problem.gram,
        inverseDiagonal: start.inverseDiagonal, grid: start.grid, isQuantizing: false)
    }
    // Without a grid the way leads back to W.
    #expect(start.problem.objective(of: approximation) < 1e-6 * start.problem.scale)
  }

  private func expectFall(_ objectives: [Double], sourceLocation: SourceLocation = #_sourceLocation) {
    for (before, after) in zip(objectives, objectives.dropFirst()) {
      #expect(after <= before * (1 + 1e-5), "\(objectives)", sourceLocation: sourceLocation)
    }
  }
}

/// A problem rounded to nearest, from where a descent begins.
private struct Start {
  let problem: TestProblem
  let grid: Grid
  let backend = OpenBLASBackend(threads: 2)
  let inverseDiagonal: [Float]
  let codes: Matrix
  let approximation: Matrix
  /// (W − Ŵ) Σ
  let gradient: Matrix

  init(_ format: GridFormat, rows: Int = 40, columns: Int = 80) {
    let problem = TestProblem(rows: rows, columns: columns, seed: 3)
    self.problem = problem
    grid = Grid(format: format, outFeatures: rows, inFeatures: columns)
    inverseDiagonal = (0..<columns).map { 1 / problem.gram[$0, $0] }
    backend.chooseGrid(problem.weights, importance: inverseDiagonal, candidates: .range, into: grid)
    codes = Matrix(rows: rows, columns: columns)
    approximation = Matrix(rows: rows, columns: columns)
    backend.round(problem.weights, grid: grid, into: codes)
    backend.dequantize(codes, grid: grid, into: approximation)
    gradient = Self.gradient(problem, approximation)
  }

  func descendSparsely(_ codes: Matrix, _ gradient: Matrix) -> Int {
    backend.descendSparsely(
      codes: codes, gradient: gradient, gram: problem.gram, inverseDiagonal: inverseDiagonal, grid: grid)
  }

  func objective(of codes: Matrix) -> Double {
    let approximation = Matrix(rows: codes.rows, columns: codes.columns)
    backend.dequantize(codes, grid: grid, into: approximation)
    return problem.objective(of: approximation)
  }

  /// Expects that `gradient` is that of `codes`, as far as fp32 keeps it.
  func expectGradient(
    _ gradient: Matrix, of codes: Matrix, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let approximation = Matrix(rows: codes.rows, columns: codes.columns)
    backend.dequantize(codes, grid: grid, into: approximation)
    let expected = Self.gradient(problem, approximation).elements
    let largest = Self.gradient(problem, self.approximation).elements.map(abs).max() ?? 0
    let difference = zip(gradient.elements, expected).map { abs($0 - $1) }.max() ?? .infinity
    #expect(difference <= 1e-3 * largest, sourceLocation: sourceLocation)
  }

  private static func gradient(_ problem: TestProblem, _ approximation: Matrix) -> Matrix {
    let (rows, columns) = (approximation.rows, approximation.columns)
    let errors = (0..<rows * columns).map {
      problem.weights[$0 / columns, $0 % columns] - approximation[$0 / columns, $0 % columns]
    }
    let gradient = Matrix(rows: rows, columns: columns)
    ReferenceBackend().multiply(
      Matrix(rows: rows, columns: columns, errors), problem.gram, transposingB: false, scale: 1,
      into: gradient, keeping: 0)
    return gradient
  }
}

/// Every sweep of the fast backend against the reference, on shapes that fill no block evenly.
struct SweepAgreementTests {
  struct Shape: Sendable, CustomTestStringConvertible {
    let rows: Int
    let columns: Int
    let format: GridFormat

    var testDescription: String { "\(rows) × \(columns), \(format)" }
  }

  static let shapes: [Shape] =
    [
      Shape(
        rows: 1, columns: 1, format: GridFormat(bitWidth: .four, groupSize: .channel, isSymmetric: false)),
      Shape(
        rows: 7, columns: 33, format: GridFormat(bitWidth: .three, groupSize: .channel, isSymmetric: false)),
      Shape(
        rows: 17, columns: 61, format: GridFormat(bitWidth: .two, groupSize: .columns(16), isSymmetric: false)
      ),
      Shape(
        rows: 35, columns: 50,
        format: GridFormat(
          bitWidth: .four, groupSize: .columns(24), isSymmetric: true, scaleTypes: [.float16])),
      Shape(
        rows: 101, columns: 49, format: GridFormat(bitWidth: .eight, groupSize: .channel, isSymmetric: true)),
    ] + GridFormat.ofGGUF.map { Shape(rows: 19, columns: 71, format: $0) }

  @Test(arguments: shapes)
  func `rounding and dequantizing agree`(_ shape: Shape) throws {
    try expectAgreement(shape) { backend, setup in
      let codes = setup.blank()
      backend.round(setup.problem.weights, grid: setup.grid, into: codes)
      return codes
    }
    try expectAgreement(shape, tolerance: 1e-6) { backend, setup in
      let weights = setup.blank()
      backend.dequantize(setup.codes, grid: setup.grid, into: weights)
      return weights
    }
  }

  @Test(arguments: shapes)
  func `differences and dot products agree`(_ shape: Shape) throws {
    try expectAgreement(shape, tolerance: 1e-6) { backend, setup in
      let result = setup.problem.weights.copy()
      backend.subtract(setup.approximation, from: result)
      return result
    }
    try expectAgreement(shape, tolerance: 1e-5) { backend, setup in
      let dots = backend.rowDots(setup.problem.weights, setup.approximation)
      return Matrix(rows: dots.count, columns: 1, dots.map(Float.init))
    }
  }

  @Test(arguments: shapes)
  func `what rows cost agrees`(_ shape: Shape) throws {
    try expectAgreement(shape, tolerance: 1e-5) { backend, setup in
      let objectives = backend.rowObjectives(
        of: setup.codes, weights: setup.problem.weights, gradient: setup.gradient, grid: setup.grid)
      return Matrix(rows: objectives.count, columns: 1, objectives.map(Float.init))
    }
  }

  @Test(arguments: shapes, [false, true])
  func `grid searches agree`(_ shape: Shape, _ isIndependent: Bool) throws {
    let candidates = GridCandidates(shrinks: [0.4, 0.55, 0.7, 0.85, 1], isIndependent: isIndependent)
    try expectAgreement(shape, tolerance: 1e-6) { backend, setup in
      let grid = Grid(format: shape.format, outFeatures: shape.rows, inFeatures: shape.columns)
      let importance = (0..<shape.columns).map { setup.problem.gram[$0, $0] }
      backend.searchGrid(setup.problem.weights, importance: importance, candidates: candidates, into: grid)
      // Which grid it is: a shift that is another one counts as much as a scale that is.
      let both = Matrix(rows: shape.rows, columns: 2 * grid.groups)
      for row in 0..<shape.rows {
        for group in 0..<grid.groups {
          both[row, 2 * group] = grid.scales[row, group]
          both[row, 2 * group + 1] = grid.shifts[row, group]
        }
      }
      return both
    }
  }

  @Test(arguments: shapes)
  func `nearest planes agree`(_ shape: Shape) throws {
    try expectAgreement(shape, misses: 0.01) { backend, setup in
      // Any unit triangular factor will do, in an order that is not the stored one.
      let factor = setup.blank(shape.columns)
      for row in 0..<shape.columns {
        for column in row..<shape.columns {
          factor[row, column] =
            row == column ? 1 : setup.problem.gram[row, column] / max(setup.problem.gram[row, row], 1) / 4
        }
      }
      let order = (0..<shape.columns).map { ($0 * 7 + 3) % shape.columns }
      let unique = Set(order).count == shape.columns ? order : Array((0..<shape.columns).reversed())
      let codes = setup.blank()
      backend.roundToNearestPlane(
        setup.problem.weights,
        factor: NearestPlaneFactor(
          order: unique, unitFactor: factor,
          conditionalVariances: [Float](repeating: 1, count: shape.columns)),
        grid: setup.grid, into: codes)
      return codes
    }
  }

  @Test(arguments: shapes, [false, true])
  func `dense passes agree`(_ shape: Shape, _ isQuantizing: Bool) throws {
    try expectAgreement(shape, tolerance: 1e-4, misses: isQuantizing ? 0.01 : 0) { backend, setup in
      let approximation = setup.approximation.copy()
      _ = backend.descend(
        from: setup.problem.weights, approximation: approximation, gram: setup.problem.gram,
        inverseDiagonal: setup.inverseDiagonal, grid: setup.grid, isQuantizing: isQuantizing)
      return approximation
    }
  }

  @Test(arguments: shapes)
  func `sparse passes agree`(_ shape: Shape) throws {
    try expectAgreement(shape, misses: 0.01) { backend, setup in
      let codes = setup.codes.copy()
      _ = backend.descendSparsely(
        codes: codes, gradient: setup.gradient.copy(), gram: setup.problem.gram,
        inverseDiagonal: setup.inverseDiagonal, grid: setup.grid)
      return codes
    }
  }

  @Test(arguments: shapes)
  func `pair moves agree`(_ shape: Shape) throws {
    try expectAgreement(shape, misses: 0.02) { backend, setup in
      let codes = setup.codes.copy()
      _ = backend.descendInPairs(
        codes: codes, gradient: setup.gradient.copy(), gram: setup.problem.gram,
        neighbours: ColumnNeighbours(mostCorrelated: 5, gram: setup.problem.gram), grid: setup.grid)
      return codes
    }
  }

  @Test(arguments: shapes, [false, true])
  func `refitted scales agree`(_ shape: Shape, _ areImagesKnown: Bool) throws {
    try expectAgreement(shape, tolerance: 2e-3) { backend, setup in
      backend.refitScales(
        codes: setup.codes, images: areImagesKnown ? setup.problem.images : nil,
        gradient: setup.gradient.copy(),
        gram: setup.problem.gram, grid: setup.grid)
      return setup.grid.scales
    }
  }

  @Test(arguments: shapes.filter { $0.format.superBlocks != nil })
  func `refitted units agree, and every scale stays a multiple of one`(_ shape: Shape) throws {
    try expectAgreement(shape, tolerance: 2e-3) { backend, setup in
      let before = setup.grid.scales.copy()
      backend.refitUnits(
        codes: setup.codes, gradient: setup.gradient.copy(), gram: setup.problem.gram, grid: setup.grid)
      #expect(setup.grid.isStorable)
      #expect(before.elements != setup.grid.scales.elements)
      return setup.grid.scales
    }
  }

  /// What the sweeps work on; made anew for every call, as they change it.
  struct Setup {
    let problem: TestProblem
    let grid: Grid
    let inverseDiagonal: [Float]
    let codes: Matrix
    let approximation: Matrix
    let gradient: Matrix

    init(_ shape: Shape) {
      let reference = ReferenceBackend()
      let (rows, columns) = (shape.rows, shape.columns)
      let problem = TestProblem(
        rows: rows, columns: columns, tokens: 200, dead: columns > 40 ? [5] : [], seed: UInt64(rows))
      self.problem = problem
      grid = Grid(format: shape.format, outFeatures: rows, inFeatures: columns)
      inverseDiagonal = (0..<columns).map { problem.gram[$0, $0] > 0 ? 1 / problem.gram[$0, $0] : 0 }
      // On the grid from minimum to maximum a row's ends lie half-way between two codes, and fp64 and fp32
      // break the tie as they like.
      if shape.format.superBlocks != nil {
        reference.chooseGrid(
          problem.weights, importance: inverseDiagonal,
          candidates: GridCandidates(shrinks: [0.93], isIndependent: false), into: grid)
      } else {
        reference.searchGrid(problem.weights, importance: inverseDiagonal, candidates: .range, into: grid)
        for row in 0..<rows {
          for group in 0..<grid.groups {
            grid.scales[row, group] = shape.format.storable(0.93 * grid.scales[row, group])
          }
        }
      }
      codes = Matrix(rows: rows, columns: columns)
      approximation = Matrix(rows: rows, columns: columns)
      reference.round(problem.weights, grid: grid, into: codes)
      reference.dequantize(codes, grid: grid, into: approximation)
      gradient = Matrix(rows: rows, columns: columns)
      let errors = problem.weights.copy()
      reference.subtract(approximation, from: errors)
      reference.multiply(errors, problem.gram, transposingB: false, scale: 1, into: gradient, keeping: 0)
    }

    func blank(_ rows: Int? = nil) -> Matrix {
      Matrix(rows: rows ?? problem.weights.rows, columns: problem.weights.columns)
    }
  }

  /// Runs `sweep` by the reference, by the processor with one, two and three threads, and by the emulated GPU. The threads
  /// of each give the same bits, and these lie within `tolerance` of the reference, relative to its largest value.
  /// - Parameter misses: the share of values that may lie elsewhere, where a tie in fp64 is none in fp32
  private func expectAgreement(
    _ shape: Shape, tolerance: Float = 0, misses: Double = 0,
    sourceLocation: SourceLocation = #_sourceLocation,
    _ sweep: (any ComputeBackend, Setup) -> Matrix
  ) throws {
    let expected = sweep(ReferenceBackend(), Setup(shape)).elements
    let bound = tolerance * (expected.map(abs).max() ?? 0)
    let byProcessor = (1...3).map { sweep(OpenBLASBackend(threads: $0), Setup(shape)).elements }
    let byGPU = try EmulatedGPU.results { sweep($0, Setup(shape)).elements }
    for (name, results) in [("processor", byProcessor), ("GPU", byGPU)] {
      for result in results.dropFirst() {
        #expect(
          result.map(\.bitPattern) == results[0].map(\.bitPattern), "\(name)", sourceLocation: sourceLocation)
      }
      let differing = zip(results[0], expected).count { !(abs($0 - $1) <= bound) }
      #expect(
        results[0].count == expected.count && Double(differing) <= misses * Double(expected.count),
        "\(differing) of \(expected.count) differ on the \(name)", sourceLocation: sourceLocation)
    }
  }
}
