import Tensors

/// A part of a Gram matrix: of its lower triangle, so no row is above a column.
public struct GramTile: Sendable, Hashable {
  public let rows: Range<Int>
  public let columns: Range<Int>

  public init(rows: Range<Int>, columns: Range<Int>) {
    self.rows = rows
    self.columns = columns
  }
}

// Of backends that do not share their sums with others, a matrix is one tile, and a product all of its rows.
extension LinearAlgebra {
  public func gramTiles(order: Int, operands: OperandType) -> [GramTile] {
    [GramTile(rows: 0..<order, columns: 0..<order)]
  }

  public func accumulateGram(
    _ inputs: Matrix, operands: OperandType, into gram: Matrix, tiles: [GramTile]
  ) {
    if !tiles.isEmpty { accumulateGram(inputs, operands: operands, into: gram) }
  }

  public func accumulateCrossProduct(
    _ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix, rows: [Range<Int>]
  ) {
    precondition(rows.reduce(0) { $0 + $1.count } == product.rows, "this backend adds up whole products")
    accumulateCrossProduct(a, b, operands: operands, into: product)
  }

  public func solveCholesky(rows: Matrix, _ ranges: [Range<Int>], factor: Matrix) {
    for range in ranges { solveCholesky(rows: rows.rows(range), factor: factor) }
  }
}
