import Compute
import ComputeOpenBLAS
import Quantization
import Tensors
import Testing

@testable import Solvers

/// Σ and what is made of it, in one square.
struct GramSquareTests {
  private static let problem = TestProblem(rows: 24, columns: 80)
  private static let format = GridFormat(bitWidth: .three, groupSize: .channel, isSymmetric: false)

  @Test func `every form is what it is alone, whatever was there before`() throws {
    let square = GramSquare(Self.problem.gram.copy(), backend: OpenBLASBackend(threads: 2))
    let orders: [ColumnOrder] = [.natural, .smallestPivot, .roundingLast([3, 70, 9])]
    for ridge in [Float(0.5), 2] {
      for order in orders + orders.reversed() {
        let factor = try square.factor(order, ridge: ridge)
        let elements = factor.unitFactor.elements
        let alone = GramSquare(Self.problem.gram.copy(), backend: OpenBLASBackend(threads: 2))
        let expected = try alone.factor(order, ridge: ridge)
        #expect(factor.order == expected.order)
        #expect(factor.conditionalVariances == expected.conditionalVariances)
        for row in 0..<80 {
          for column in row + 1..<max(80, row + 1) {
            #expect(elements[row * 80 + column] == expected.unitFactor[row, column])
          }
        }
        let full = square.full(ridge: ridge)
        for row in 0..<80 {
          for column in 0..<80 {
            #expect(full[row, column] == Self.problem.gram[row, column] + (row == column ? ridge : 0))
          }
        }
      }
    }
  }

  @Test func `linears of one stage that differ in solver and damping are as if each were alone`() throws {
    let backend = OpenBLASBackend(threads: 2)
    var settings = QuantEase.Settings.standard()
    settings.damping = .share(0.1)
    let quantizers: [any LinearQuantizer] = [
      QuantEase(), GPTQ(damping: 0.02), QuantEase(settings), RoundToNearest(),
      OutlierAwareQuantEase(OutlierSettings(share: 0.05, isStructured: true)),
    ]
    let shared = Self.problem.layerProblem(backend: backend)
    let weights = LinearRows(Self.problem.weights, backend: backend)
    let drafts = try quantizers.indices.map { index in
      try quantizers[index].draft(
        weights, problem: shared.damped(by: quantizers[index].damping(for: Self.format)), format: Self.format,
        backend: backend, panelRows: 16)
    }
    for (index, quantizer) in quantizers.enumerated() {
      let together = try quantizer.finish(
        drafts[index], name: "l", weights: weights,
        problem: shared.damped(by: quantizer.damping(for: Self.format)), backend: backend, panelRows: 16)
      let alone = try quantizer.quantize(
        name: "l", weights: Self.problem.weights.copy(),
        problem: Self.problem.layerProblem(damping: quantizer.damping(for: Self.format), backend: backend),
        format: Self.format, backend: backend, panelRows: 16)
      #expect(together.linear.codes == alone.linear.codes)
      #expect(together.linear.grid.scales.elements == alone.linear.grid.scales.elements)
      #expect(together.objective == alone.objective)
    }
  }
}
