import Compute
import ComputeOpenBLAS
import Tensors
import Testing

@testable import Solvers

/// The target that makes up for what the residual stream is off by.
struct TargetDriftTests {
  private static let backend = OpenBLASBackend(threads: 2)

  @Test func `a drift that the inputs explain is added to the target, but for what the ridge holds back`()
    throws
  {
    // X Xᵀ = 2 I, so that the mean diagonal and with it λ is 2: half of E = 2 X is what the regression gives.
    let gram = Matrix(rows: 2, columns: 2, [2, 0, 0, 2])
    let correction = try TargetDrift.correction(
      sum: Matrix(rows: 2, columns: 2, [4, 0, 0, 4]), gram: gram, rows: [0..<2], backend: Self.backend)
    let problem = LayerProblem(gram: gram, correction: correction, backend: Self.backend)
    let weights = Matrix(rows: 2, columns: 2, [1, 2, 3, 4])
    let rows = LinearRows(weights, backend: Self.backend)
    #expect(try problem.target(of: rows, 0..<2).elements == [2, 2, 3, 5])
    #expect(try problem.target(of: rows, 1..<2).elements == [3, 5])
    #expect(weights.elements == [1, 2, 3, 4])
  }

  @Test func `a sample whose inputs are all zero corrects nothing`() throws {
    let zero = { Matrix(rows: 3, columns: 3) }
    let correction = try TargetDrift.correction(
      sum: zero(), gram: zero(), rows: [0..<2], backend: Self.backend)
    #expect(correction == nil)
    let problem = LayerProblem(gram: zero(), damping: 0.01, correction: correction, backend: Self.backend)
    let weights = Matrix(rows: 3, columns: 3, (1...9).map { Float($0) })
    let target = try problem.target(of: LinearRows(weights, backend: Self.backend), 0..<3)
    #expect(target.elements == weights.elements)
  }

  @Test func `fewer tokens than columns give a finite target`() throws {
    let inputs = Matrix(rows: 2, columns: 40, (0..<80).map { Float($0 % 7) - 3 })
    let gram = Matrix(rows: 40, columns: 40)
    Self.backend.accumulateGram(inputs, into: gram)
    let before = gram.elements
    let sum = Matrix(rows: 5, columns: 40)
    sum.fill(1)
    let correction = try TargetDrift.correction(
      sum: sum, gram: gram, rows: [0..<sum.rows], backend: Self.backend)
    #expect(try #require(correction).firstNonFinite == nil)
    // The sum goes on with the batches of the quantized model alone.
    for row in 0..<40 { for column in 0...row { #expect(gram[row, column] == before[row * 40 + column]) } }
  }
}
