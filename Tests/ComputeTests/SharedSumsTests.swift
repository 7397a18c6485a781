import Compute
import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

/// Sums of which several processes each make a part: the parts have the bits of the whole.
struct SharedSumsTests {
  @Test(arguments: [1, 40, 300, 1_000]) func `a tile of a Gram matrix does not know of the others`(order: Int)
  {
    let batches = (0..<3).map { Matrix.random(70, order, seed: UInt64(10 + $0)) }
    for kernels in [nil] + BFloat16Kernels.available.map(Optional.init) {
      let backend = OpenBLASBackend(threads: 2, bfloat16: kernels)
      let operands: OperandType = kernels == nil ? .float32 : .bfloat16
      let tiles = backend.gramTiles(order: order, operands: operands)
      let whole = Matrix(rows: order, columns: order)
      let parts = Matrix(rows: order, columns: order)
      for batch in batches { backend.accumulateGram(batch, operands: operands, into: whole) }
      for rank in 0..<3 {
        let own = tiles.indices.filter { $0 % 3 == rank }.map { tiles[$0] }
        for batch in batches { backend.accumulateGram(batch, operands: operands, into: parts, tiles: own) }
      }
      #expect(whole.elements == parts.elements)
      // They cover the triangle once.
      var covered = [Int](repeating: 0, count: order * order)
      for tile in tiles {
        for row in tile.rows {
          for column in tile.columns where column <= row { covered[row * order + column] += 1 }
        }
      }
      #expect((0..<order).allSatisfy { row in (0...row).allSatisfy { covered[row * order + $0] == 1 } })
    }
  }

  @Test(arguments: [(70, 64, 40), (33, 1_100, 300), (5, 512, 9)])
  func `rows of a cross product do not know of the others`(_ shape: (tokens: Int, m: Int, n: Int)) {
    let a = Matrix.random(shape.tokens, shape.m, seed: 1)
    let b = Matrix.random(shape.tokens, shape.n, seed: 2)
    let panels = stride(from: 0, to: shape.m, by: 512).map { $0..<min($0 + 512, shape.m) }
    for kernels in [nil] + BFloat16Kernels.available.map(Optional.init) {
      let backend = OpenBLASBackend(threads: 2, bfloat16: kernels)
      let operands: OperandType = kernels == nil ? .float32 : .bfloat16
      let together = Matrix.random(shape.m, shape.n, seed: 3)
      let apart = Matrix.random(shape.m, shape.n, seed: 3)
      backend.accumulateCrossProduct(a, b, operands: operands, into: together, rows: panels)
      for panel in panels.reversed() {
        backend.accumulateCrossProduct(a, b, operands: operands, into: apart, rows: [panel])
      }
      #expect(together.elements == apart.elements)
    }
  }
}
