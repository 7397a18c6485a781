import Compute
import ComputeOpenBLAS
import Quantization
import Tensors
import TestSupport
import Testing

/// The sweeps that keep outliers against their definitions, and bit by bit between thread counts.
struct OutlierSweepsTests {
  static let formats = [
    GridFormat(bitWidth: .two, groupSize: .channel, isSymmetric: false),
    GridFormat(bitWidth: .three, groupSize: .columns(24), isSymmetric: true),
    GridFormat(bitWidth: .eight, groupSize: .columns(16), isSymmetric: false),
  ]

  @Test(arguments: formats)
  func `nearest-plane rounding leaves outliers free`(_ format: GridFormat) throws {
    let panel = Panel(format)
    let order = Array((0..<panel.columns).reversed())
    let unitFactor = Matrix.random(panel.columns, panel.columns, seed: 7)
    for row in 0..<panel.columns {
      for column in 0..<panel.columns {
        unitFactor[row, column] = row == column ? 1 : row < column ? 0.1 * unitFactor[row, column] : 0
      }
    }
    let factor = NearestPlaneFactor(
      order: order, unitFactor: unitFactor,
      conditionalVariances: [Float](repeating: 1, count: panel.columns))
    try expectSame { backend in
      let codes = Matrix(rows: panel.rows, columns: panel.columns)
      let remainders = Matrix(rows: panel.rows, columns: panel.columns)
      backend.roundToNearestPlane(
        panel.weights, outliers: panel.outliers(), factor: factor, grid: panel.grid, into: codes,
        remainders: remainders)
      return [codes, remainders]
    }
  }

  @Test(arguments: formats)
  func `what rounding leaves is at most half a step inside the range`(_ format: GridFormat) throws {
    let panel = Panel(format)
    let results = try expectSame { backend in
      let remainders = Matrix(rows: panel.rows, columns: panel.columns)
      backend.roundingRemainders(panel.weights, grid: panel.grid, into: remainders)
      // Halfway between two points either is nearest.
      return [Matrix(rows: panel.rows, columns: panel.columns, remainders.elements.map(abs))]
    }
    let largestScale = panel.grid.scales.elements.max() ?? 0
    #expect(results[0].elements.allSatisfy { $0 <= 0.501 * largestScale })
  }

  @Test(arguments: formats)
  func `passes over outliers and codes follow their definition`(_ format: GridFormat) throws {
    let panel = Panel(format)
    // Codes agree or differ by 1; gradients are small differences, and outliers have 11 bits.
    try expectSame(within: 1e-3) { backend in
      let (codes, outliers, gradient) = panel.start(backend)
      let neighbours = ColumnNeighbours(mostCorrelated: 6, gram: panel.gram)
      let moved = backend.descendSparsely(
        codes: codes, outliers: outliers, gradient: gradient, gram: panel.gram,
        inverseDiagonal: panel.inverseDiagonal, grid: panel.grid)
      let pairs = backend.descendInPairs(
        codes: codes, outliers: outliers, gradient: gradient, gram: panel.gram, neighbours: neighbours,
        grid: panel.grid)
      #expect(moved > 0)
      let counts = Matrix(rows: 1, columns: 2, [Float(moved), Float(pairs)])
      return [codes, outliers.values, gradient, counts]
    }
  }

  @Test(arguments: formats)
  func `no pass moves an outlier's code or raises the objective`(_ format: GridFormat) {
    let panel = Panel(format)
    let backend = OpenBLASBackend(threads: 2)
    let (codes, outliers, gradient) = panel.start(backend)
    let before = codes.copy()
    let neighbours = ColumnNeighbours(mostCorrelated: 6, gram: panel.gram)
    var objectives = [panel.objective(codes, outliers)]
    for _ in 0..<4 {
      _ = backend.descendSparsely(
        codes: codes, outliers: outliers, gradient: gradient, gram: panel.gram,
        inverseDiagonal: panel.inverseDiagonal, grid: panel.grid)
      objectives.append(panel.objective(codes, outliers))
      _ = backend.descendInPairs(
        codes: codes, outliers: outliers, gradient: gradient, gram: panel.gram, neighbours: neighbours,
        grid: panel.grid)
      objectives.append(panel.objective(codes, outliers))
    }
    outliers.forEach { row, column, _ in #expect(codes[row, column] == before[row, column]) }
    #expect(outliers.values.elements.allSatisfy { $0 == $0.storableOutlier })
    #expect(objectives[1] < objectives[0])
    for (earlier, later) in zip(objectives, objectives.dropFirst()) {
      #expect(later <= earlier * (1 + 1e-5))
    }
  }

  @Test func `squares, places and sampled products follow their definition`() throws {
    let panel = Panel(Self.formats[0])
    let importance = (0..<panel.columns).map { Float($0 % 5) }
    try expectSame { backend in
      let squares = panel.weights.copy()
      backend.weighSquares(squares, by: importance)
      let places = backend.elements(of: panel.weights, atLeast: 0.75).map(\.place)
      let outliers = panel.outliers()
      outliers.values.fill(1)
      backend.multiplySampled(panel.weights, symmetric: panel.gram, scale: -0.5, into: outliers)
      #expect(places.contains { $0 > 3 * panel.columns })
      return [squares, Matrix(rows: 1, columns: places.count, places.map(Float.init)), outliers.values]
    }
  }

  @Test func `a slice of sparse rows shares the values`() {
    let all = SparseRows(rows: 4, width: 3, places: [1, 3, 5, 11], of: ReferenceBackend())
    let slice = all.rows(1..<4)
    #expect(slice.rowCount == 3)
    #expect(slice.entries(ofRow: 0) == 1..<3 && slice.entries(ofRow: 1).isEmpty)
    slice.forEach { row, column, entry in slice.values[0, entry] = Float(10 * row + column) }
    #expect(all.values.elements == [0, 0, 2, 22])
    let dense = Matrix(rows: 4, columns: 3)
    ReferenceBackend().add(all, scale: 2, to: dense)
    #expect(dense.elements == [0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 44])
  }

  /// Runs `body` on the reference, with one to three threads, and on the emulated GPU: the same bits for every number and
  /// order of threads, and values close to the reference's.
  @discardableResult
  private func expectSame(
    within tolerance: Float = 2e-5, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: (any ComputeBackend) -> [Matrix]
  ) throws -> [Matrix] {
    let expected = body(ReferenceBackend())
    let byProcessor = (1...3).map { body(OpenBLASBackend(threads: $0)) }
    for (name, results) in [("processor", byProcessor), ("GPU", try EmulatedGPU.results(body))] {
      for (index, reference) in expected.enumerated() {
        let first = results[0][index].elements
        for other in results.dropFirst() {
          #expect(
            other[index].elements.map(\.bitPattern) == first.map(\.bitPattern), "\(name)",
            sourceLocation: sourceLocation)
        }
        let size = reference.elements.reduce(0) { max($0, abs($1)) }
        let error = zip(first, reference.elements).reduce(0) { max($0, abs($1.0 - $1.1)) }
        #expect(
          first.count == reference.count && error <= tolerance * size, "result \(index) of the \(name)",
          sourceLocation: sourceLocation)
      }
    }
    return byProcessor[0]
  }
}

/// A panel of random rows with a tenth of its entries outliers.
private struct Panel {
  let rows = 101
  let columns = 56
  let weights: Matrix
  let gram: Matrix
  let grid: Grid

  init(_ format: GridFormat) {
    weights = .random(rows, columns, seed: 3)
    gram = .positiveDefinite(order: columns, seed: 4)
    grid = Grid(format: format, outFeatures: rows, inFeatures: columns)
    OpenBLASBackend(threads: 1).searchGrid(
      weights, importance: [Float](repeating: 1, count: columns), candidates: .range, into: grid)
  }

  var inverseDiagonal: [Float] { (0..<columns).map { 1 / gram[$0, $0] } }

  func outliers() -> SparseRows {
    SparseRows(
      rows: rows, width: columns, places: Array(stride(from: 2, to: rows * columns, by: 11)),
      of: ReferenceBackend())
  }

  /// Weights rounded to nearest, outliers of zero, and the gradient there.
  func start(_ backend: any ComputeBackend) -> (codes: Matrix, outliers: SparseRows, gradient: Matrix) {
    let codes = Matrix(rows: rows, columns: columns)
    // By the same backend for all: halfway between two points either is nearest.
    OpenBLASBackend(threads: 1).round(weights, grid: grid, into: codes)
    let errors = Matrix(rows: rows, columns: columns)
    backend.dequantize(codes, grid: grid, into: errors)
    backend.subtract(weights, from: errors)
    let gradient = Matrix(rows: rows, columns: columns)
    backend.multiply(errors, gram, transposingB: false, scale: -1, into: gradient, keeping: 0)
    return (codes, outliers(), gradient)
  }

  func objective(_ codes: Matrix, _ outliers: SparseRows) -> Double {
    let backend = ReferenceBackend()
    let errors = Matrix(rows: rows, columns: columns)
    backend.dequantize(codes, grid: grid, into: errors)
    backend.add(outliers, to: errors)
    backend.subtract(weights, from: errors)
    let product = Matrix(rows: rows, columns: columns)
    backend.multiply(errors, gram, transposingB: false, scale: 1, into: product, keeping: 0)
    return backend.rowDots(errors, product).reduce(0, +)
  }
}
