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
    let drift = TargetDrift(sum: Matrix(rows: 2, columns: 2, [4, 0, 0, 4]), gram: gram.copy())
    let problem = try LayerProblem(gram: gram, damping: 0, drift: drift, backend: Self.backend)
    let weights = Matrix(rows: 2, columns: 2, [1, 2, 3, 4])
    #expect(problem.target(of: weights, rows: 0..<2, backend: Self.backend).elements == [2, 2, 3, 5])
    #expect(problem.target(of: weights.rows(1..<2), rows: 1..<2, backend: Self.backend).elements == [3, 5])
    #expect(weights.elements == [1, 2, 3, 4])
  }

  @Test func `a sample whose inputs are all zero corrects nothing`() throws {
    let zero = { Matrix(rows: 3, columns: 3) }
    let drift = TargetDrift(sum: zero(), gram: zero())
    let problem = try LayerProblem(gram: zero(), damping: 0.01, drift: drift, backend: Self.backend)
    #expect(problem.correction == nil)
    let weights = Matrix(rows: 3, columns: 3, (1...9).map { Float($0) })
    #expect(problem.target(of: weights, rows: 0..<3, backend: Self.backend) === weights)
  }

  @Test func `fewer tokens than columns give a finite target`() throws {
    let inputs = Matrix(rows: 2, columns: 40, (0..<80).map { Float($0 % 7) - 3 })
    let gram = Matrix(rows: 40, columns: 40)
    Self.backend.accumulateGram(inputs, into: gram)
    Self.backend.symmetrize(gram)
    let sum = Matrix(rows: 5, columns: 40)
    sum.fill(1)
    let correction = try TargetDrift(sum: sum, gram: gram).correction(backend: Self.backend)
    #expect(try #require(correction).firstNonFinite == nil)
  }
}
