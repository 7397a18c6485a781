import Compute
import ComputeOpenBLAS
import Quantization
import Tensors
import TestSupport
import Testing

@testable import Solvers

/// Symmetric grids whose one level more lies on the side that needs it.
struct SignedScaleTests {
  private static let groups: [GroupSize] = [.channel, .columns(16)]

  private func format(_ bits: BitWidth, _ group: GroupSize, signed: Bool) -> GridFormat {
    GridFormat(bitWidth: bits, groupSize: group, isSymmetric: true, hasSignedScales: signed)
  }

  @Test(arguments: Method.allCases, groups)
  func `a group whose only large weight is positive is represented exactly, as one that is negative`(
    _ method: Method, _ group: GroupSize
  ) throws {
    for bits in [BitWidth.two, .three, .four, .eight] {
      let problem = TestProblem(rows: 6, columns: 48)
      problem.weights.fill(0)
      for row in 0..<6 {
        for start in stride(from: 0, to: 48, by: group == .channel ? 48 : 16) {
          problem.weights[row, start + row] = (row % 2 == 0 ? 1 : -1) * (0.3 + 0.1 * Float(row))
        }
      }
      let solution = try method.solve(problem, format(bits, group, signed: true))
      #expect(solution.isValid)
      #expect(solution.relativeError < 1e-10, "\(bits)")
      #expect(solution.linear.dequantized().elements == problem.weights.elements)
    }
  }

  @Test(arguments: [BitWidth.two, .three, .four], groups)
  func `with both signs a search finds no grid that costs more than with one`(
    _ bits: BitWidth, _ group: GroupSize
  ) {
    let problem = TestProblem(rows: 40, columns: 64)
    let importance = (0..<64).map { problem.gram[$0, $0] }
    let backend = OpenBLASBackend(threads: 1)
    let (signed, unsigned) = (format(bits, group, signed: true), format(bits, group, signed: false))
    /// What every row costs, by its definition.
    func costs(_ format: GridFormat, _ candidates: GridCandidates) -> [Double] {
      let grid = Grid(format: format, outFeatures: 40, inFeatures: 64)
      backend.searchGrid(problem.weights, importance: importance, candidates: candidates, into: grid)
      let codes = Matrix(rows: 40, columns: 64)
      backend.round(problem.weights, grid: grid, into: codes)
      backend.dequantize(codes, grid: grid, into: codes)
      return (0..<40).map { row in
        (0..<64).reduce(0) { sum, column in
          let error = Double(problem.weights[row, column] - codes[row, column])
          return sum + Double(importance[column]) * error * error
        }
      }
    }
    for isSearching in [false, true] {
      let both = costs(signed, isSearching ? .standard(signed) : .range)
      let one = costs(unsigned, isSearching ? .standard(unsigned) : .range)
      #expect(zip(both, one).allSatisfy { $0 <= $1 * 1.0001 })
      #expect(both.reduce(0, +) < one.reduce(0, +))
    }
  }

  @Test func `the file's form has negative scales, middle zero points and the same weights to the last bit`()
    throws
  {
    for bits in BitWidth.allCases {
      let solution = try Method.standard.solve(
        TestProblem(rows: 24, columns: 48), format(bits, .columns(16), signed: true))
      let stored = solution.linear.withStoredScales
      let middle = Float(stored.grid.format.middleCode)
      #expect(stored.grid.shifts.elements.allSatisfy { $0 == middle })
      #expect(
        stored.grid.scales.elements.contains { $0 < 0 } && stored.grid.scales.elements.contains { $0 > 0 })
      #expect(stored.dequantized().elements == solution.linear.dequantized().elements)
    }
  }

  @Test func `without signs every scale is positive and every zero point the middle`() throws {
    let format = format(.three, .columns(16), signed: false)
    let solution = try Method.standard.solve(TestProblem(rows: 24, columns: 48), format)
    #expect(solution.isValid)
    #expect(solution.linear.grid.shifts.elements.allSatisfy { $0 == Float(format.middleCode) })
  }
}
