import Compute
import ComputeOpenBLAS
import Quantization
import TestSupport
import Tensors
import Testing

@testable import Solvers

/// Both kinds of outliers by both methods.
enum OutlierCase: String, CaseIterable, Sendable {
  case entries, columns, paperEntries, paperColumns

  func solver(share: Double = 0.01) -> OutlierAwareQuantEase {
    let isPaper = self == .paperEntries || self == .paperColumns
    return OutlierAwareQuantEase(
      OutlierSettings(
        share: share, isStructured: self == .columns || self == .paperColumns,
        method: isPaper ? .paper(rounds: 25) : .standard))
  }

  func solve(
    _ problem: TestProblem, _ format: GridFormat, share: Double = 0.01, threads: Int = 2,
    panelRows: Int = 1_024
  ) throws -> LayerSolution {
    let solver = solver(share: share)
    return try solver.quantize(
      name: "linear", weights: problem.weights.copy(),
      problem: problem.layerProblem(
        damping: solver.damping(for: format), backend: OpenBLASBackend(threads: threads)),
      format: format, backend: OpenBLASBackend(threads: threads), panelRows: panelRows)
  }
}

/// What outlier-aware solvers keep to, on small problems.
struct OutlierTests {
  // 160 columns: a group of 128 leaves a shorter one.
  private static let problem = TestProblem(rows: 40, columns: 160)
  private static let threeBits = GridFormat(bitWidth: .three, groupSize: .channel, isSymmetric: false)

  @Test(arguments: allFormats, [OutlierCase.entries, .columns])
  func `outliers never make a linear worse`(_ format: GridFormat, _ kind: OutlierCase) throws {
    let solution = try kind.solve(Self.problem, format)
    let plain = try Method.standard.solve(Self.problem, format)
    let rounding = try Method.rounding.solve(Self.problem, format)
    #expect(solution.isValid)
    // Solvers descend on Σ + ρI: there it holds row by row.
    let damped = Self.problem.layerProblem(damping: QuantEase().damping(for: format))
    let dampedProblem = TestProblem(weights: Self.problem.weights, gram: damped.gram)
    for (row, without) in zip(
      dampedProblem.rowObjectives(of: solution.linear.dequantized()),
      dampedProblem.rowObjectives(of: plain.linear.dequantized()))
    {
      #expect(row <= without * (1 + 1e-4))
    }
    #expect(solution.relativeError < plain.relativeError)
    #expect(solution.relativeError < rounding.relativeError)
  }

  @Test(arguments: OutlierCase.allCases, [GroupSize.channel, .columns(32)])
  func `the result is quantized plus sparse, and its error that of what is stored`(
    _ kind: OutlierCase, _ group: GroupSize
  ) throws {
    let format = GridFormat(bitWidth: .three, groupSize: group, isSymmetric: false, scaleTypes: [.bfloat16])
    let solver = kind.solver()
    let problem = Self.problem.layerProblem(damping: solver.damping(for: format))
    let solution = try solver.quantize(
      name: "linear", weights: Self.problem.weights.copy(), problem: problem, format: format,
      backend: OpenBLASBackend(threads: 2), panelRows: 16)
    let outliers = try #require(solution.linear.outliers)
    #expect(solution.isValid)
    #expect(solution.linear.name == "linear")
    #expect(outliers.values.allSatisfy { $0 == $0.rounded(to: .float16) })

    let quantized = QuantizedLinear(
      name: "linear", codes: solution.linear.codes, grid: solution.linear.grid
    ).dequantized()
    let offGrid = zip(solution.linear.dequantized().elements, quantized.elements).count { $0 != $1 }
    #expect(offGrid > 0 && offGrid <= outliers.count)

    let objective = Self.problem.objective(of: solution.linear.dequantized())
    #expect(objective > 0)
    #expect(abs(solution.objective / objective - 1) < 1e-3)
    #expect(abs(solution.relativeError / (objective / Self.problem.scale) - 1) < 1e-3)
  }

  @Test(arguments: OutlierCase.allCases, [0, 0.001, 0.01, 0.37, 1])
  func `exactly the planned number of outliers is stored`(_ kind: OutlierCase, _ share: Double) throws {
    let problem = TestProblem(rows: 12, columns: 40)
    let solution = try kind.solve(problem, Self.threeBits, share: share, panelRows: 5)
    let settings = kind.solver(share: share).settings
    switch try #require(solution.linear.outliers) {
    case .unstructured(let values, let columns, let rowOffsets):
      #expect(!settings.isStructured)
      #expect(values.count == Int(share * 480) && columns.count == values.count)
      #expect(rowOffsets.count == 13 && rowOffsets.first == 0 && rowOffsets.last == Int64(values.count))
      for (start, end) in zip(rowOffsets, rowOffsets.dropFirst()) {
        let row = columns[Int(start)..<Int(end)]
        #expect(zip(row, row.dropFirst()).allSatisfy { $0 < $1 })
      }
    case .structured(let values, let columns):
      #expect(settings.isStructured)
      #expect(columns.count == max(Int(share * 40), 1) && values.count == 12 * columns.count)
      #expect(zip(columns, columns.dropFirst()).allSatisfy { $0 < $1 })
    }
    #expect(settings.entryCount(outFeatures: 12, inFeatures: 40) == solution.linear.outliers?.count)
    if share == 1 { #expect(solution.relativeError < 1e-5) }
  }

  @Test(arguments: OutlierCase.allCases)
  func `the grid's range leaves the outliers out`(_ kind: OutlierCase) throws {
    let problem = TestProblem(rows: 40, columns: 100)
    let without = try kind.solve(problem, Self.threeBits)
    let planted = problem.weights.copy()
    for row in 0..<40 { planted[row, 17] = row.isMultiple(of: 2) ? 60 : -60 }
    let solution = try kind.solve(TestProblem(weights: planted, gram: problem.gram), Self.threeBits)
    let columns =
      switch try #require(solution.linear.outliers) {
      case .unstructured(_, let columns, _), .structured(_, let columns): columns
      }
    #expect(columns.allSatisfy { $0 == 17 })
    // No coarser than where there is nothing to leave out.
    let coarsest = without.linear.grid.scales.elements.max() ?? 0
    #expect(solution.linear.grid.scales.elements.allSatisfy { $0 <= 1.5 * coarsest })
  }

  @Test(arguments: [OutlierCase.paperEntries, .paperColumns], [GroupSize.channel, .columns(32)])
  func `no half-step of the published algorithm raises the objective`(
    _ kind: OutlierCase, _ group: GroupSize
  ) throws {
    let format = GridFormat(bitWidth: .three, groupSize: group, isSymmetric: false)
    let backend = OpenBLASBackend(threads: 2)
    var alternation = try ProjectedAlternation(
      weights: LinearRows(Self.problem.weights, backend: backend), problem: Self.problem.layerProblem(),
      format: format,
      settings: kind.solver().settings, backend: backend, panelRows: 16)
    try alternation.descend()
    var objectives = [try alternation.objective()]
    for _ in 0..<8 {
      try alternation.stepOutliers()
      objectives.append(try alternation.objective())
      try alternation.descend()
      objectives.append(try alternation.objective())
    }
    for (earlier, later) in zip(objectives, objectives.dropFirst()) {
      #expect(later <= earlier * (1 + 1e-6))
    }
    #expect(objectives[1] < objectives[0] && objectives[16] < 0.99 * objectives[0])
  }

  @Test(arguments: OutlierCase.allCases)
  func `the number of threads changes no bit`(_ kind: OutlierCase) throws {
    let problem = TestProblem(rows: 200, columns: 96)
    let solutions = try [1, 2, 3].map { try kind.solve(problem, Self.threeBits, threads: $0) }
    for other in solutions.dropFirst() {
      #expect(other.linear.codes == solutions[0].linear.codes)
      #expect(other.linear.dequantized().elements == solutions[0].linear.dequantized().elements)
      #expect(other.objective == solutions[0].objective)
    }
  }

  @Test(arguments: OutlierCase.allCases)
  func `panels change no more than rounding does`(_ kind: OutlierCase) throws {
    let whole = try kind.solve(Self.problem, Self.threeBits)
    let panels = try kind.solve(Self.problem, Self.threeBits, panelRows: 7)
    #expect(abs(panels.relativeError / whole.relativeError - 1) < 0.01)
    #expect(panels.linear.outliers?.count == whole.linear.outliers?.count)
  }

  @Test(arguments: OutlierCase.allCases)
  func `dead columns, zero rows and few tokens give finite results`(_ kind: OutlierCase) throws {
    let problem = TestProblem(rows: 24, columns: 96, tokens: 20, noise: 0, dead: [0, 5, 95])
    for column in 0..<96 { problem.weights[3, column] = 0 }
    let solution = try kind.solve(problem, Self.threeBits, share: 0.05)
    #expect(solution.isValid)
    let zeros = try kind.solve(
      TestProblem(weights: problem.weights, gram: Matrix(rows: 96, columns: 96)), Self.threeBits)
    #expect(zeros.isValid && zeros.relativeError == 0)
  }

  @Test func `weights that are not finite are named`() throws {
    let weights = Self.problem.weights.copy()
    weights[3, 7] = .nan
    #expect(throws: SolverError.nonFiniteObjective(linear: "linear")) {
      try OutlierCase.entries.solve(TestProblem(weights: weights, gram: Self.problem.gram), Self.threeBits)
    }
  }
}

/// The parts that outlier-aware solvers are made of.
struct OutlierPartTests {
  @Test(arguments: [1, 3, 50])
  func `the largest places are those of a sort, whatever the panels`(_ panelRows: Int) {
    var generator = SeededGenerator(seed: 5)
    // Few different values, so that there are ties.
    let scores = (0..<50 * 30).map { _ in Float(Int.random(in: 0..<100, using: &generator)) / 7 }
    let sorted = scores.indices.sorted { (scores[$1], $0) < (scores[$0], $1) }
    for count in [0, 1, 40, 700, 1_500] {
      var top = TopPlaces(count)
      for start in stride(from: 0, to: 50, by: panelRows) {
        let end = min(start + panelRows, 50)
        let panel = Matrix(rows: end - start, columns: 30, Array(scores[start * 30..<end * 30]))
        top.offer(panel, firstRow: start, backend: OpenBLASBackend(threads: 1))
      }
      #expect(top.places() == sorted.prefix(count).sorted())
    }
  }

  @Test func `the factor rounds the given columns last`() throws {
    let problem = TestProblem(rows: 1, columns: 40).layerProblem(damping: 0.01)
    let last: Set<Int> = [3, 20, 39]
    let factor = try problem.factor(.roundingLast(last.map(Int32.init)))
    func unit(_ row: Int, _ column: Int) -> Double {
      row == column ? 1 : Double(factor.unitFactor[row, column])
    }
    #expect(Set(factor.order.prefix(3)) == last)
    #expect(Set(factor.order) == Set(0..<40))
    // Rᵀ R is Σ + ρI in the factor's order.
    let products = (0..<40).map { row in
      (0..<40).map { column in
        (0...min(row, column)).reduce(0.0) { sum, position in
          sum + unit(position, row) * unit(position, column)
            * Double(factor.conditionalVariances[factor.order[position]])
        }
      }
    }
    let gram = problem.gram
    for row in 0..<40 {
      for column in 0..<40 {
        let expected = gram[factor.order[row], factor.order[column]]
        #expect(abs(products[row][column] - Double(expected)) <= 1e-5 * Double(gram[39, 39]))
      }
    }
  }

  @Test func `power iteration bounds the largest eigenvalue from above, closely`() {
    let gram = Matrix(rows: 30, columns: 30)
    for index in 0..<30 { gram[index, index] = index == 11 ? 8 : Float(index) / 10 }
    let eigenvalue = LayerProblem(gram: gram, backend: OpenBLASBackend(threads: 2)).largestEigenvalue(
      backend: OpenBLASBackend(threads: 1))
    #expect(eigenvalue >= 8 && eigenvalue <= 8.1)
    let zero = LayerProblem(gram: Matrix(rows: 4, columns: 4), backend: OpenBLASBackend(threads: 2))
    #expect(zero.largestEigenvalue(backend: OpenBLASBackend(threads: 1)) == 0)
  }
}

/// Relative errors on linears of a real model with 1 % of outliers.
@Suite(
  .serialized,
  .enabled(if: layersFile != nil, "needs reference/layers.safetensors; see QUANTEASE_SHARED"))
struct ReferenceOutlierTests {
  /// Errors in percent at 3 and 2 bits: an independent implementation of the paper's algorithm, 25 rounds, and
  /// the best that a prototype reached.
  struct Layer: Sendable, CustomTestStringConvertible {
    let name: String
    let paperEntries: [Double]
    let paperColumns: [Double]
    let bestEntries: [Double]
    let bestColumns: [Double]

    var testDescription: String { name }

    func expected(_ kind: OutlierCase) -> [Double] {
      switch kind {
      case .entries: bestEntries
      case .columns: bestColumns
      case .paperEntries: paperEntries
      case .paperColumns: paperColumns
      }
    }
  }

  static let layers = [
    Layer(
      name: "layers.15.self_attn.q_proj", paperEntries: [0.524, 2.611], paperColumns: [0.826, 3.966],
      bestEntries: [0.2332, 0.9255], bestColumns: [0.3334, 1.2158]),
    Layer(
      name: "layers.15.mlp.gate_proj", paperEntries: [0.987, 5.176], paperColumns: [1.567, 8.007],
      bestEntries: [0.5122, 2.0353], bestColumns: [0.7336, 2.5999]),
    Layer(
      name: "layers.15.mlp.down_proj", paperEntries: [2.053, 10.725], paperColumns: [4.544, 20.442],
      bestEntries: [1.0660, 4.1728], bestColumns: [1.6287, 5.5827]),
    Layer(
      name: "layers.29.self_attn.o_proj", paperEntries: [1.109, 5.855], paperColumns: [1.788, 9.116],
      bestEntries: [0.3759, 1.6193], bestColumns: [0.5611, 2.2493]),
  ]

  @Test(arguments: layers, OutlierCase.allCases)
  func `errors are at or below the known ones`(_ layer: Layer, _ kind: OutlierCase) throws {
    let problem = try TestProblem(layer.name)
    // The published algorithm is slow, and ends in one of many local minima, a little apart.
    let isPaper = kind == .paperEntries || kind == .paperColumns
    let tolerance = isPaper ? 1.02 : 1
    for (bits, expected) in zip(isPaper ? [BitWidth.three] : [.three, .two], layer.expected(kind)) {
      let format = GridFormat(
        bitWidth: bits, groupSize: .channel, isSymmetric: false, scaleTypes: [.bfloat16])
      let solution = try kind.solve(problem, format)
      let error = 100 * solution.relativeError
      #expect(solution.isValid)
      #expect(error <= tolerance * expected, "\(bits): \(error), expected \(expected)")
    }
  }

  @Test(arguments: allFormats)
  func `no combination of options is worse than rounding, or than without outliers`(_ format: GridFormat)
    throws
  {
    let whole = try TestProblem("layers.29.self_attn.o_proj")
    let problem = TestProblem(weights: whole.weights.rows(0..<40).copy(), gram: whole.gram)
    let rounding = try Method.rounding.solve(problem, format)
    let standard = try Method.standard.solve(problem, format)
    #expect(standard.isValid && standard.relativeError <= rounding.relativeError)
    for kind in [OutlierCase.entries, .columns] {
      let solution = try kind.solve(problem, format)
      #expect(solution.isValid && solution.relativeError <= standard.relativeError, "\(kind)")
    }
  }
}

extension Outliers {
  fileprivate var values: [Float] {
    switch self {
    case .unstructured(let values, _, _), .structured(let values, _): values
    }
  }
}

extension TestProblem {
  /// e Σ eᵀ of every row's error e, in fp64.
  fileprivate func rowObjectives(of approximation: Matrix) -> [Double] {
    (0..<weights.rows).map { row in
      TestProblem(weights: weights.rows(row..<row + 1), gram: gram)
        .objective(of: approximation.rows(row..<row + 1))
    }
  }
}
