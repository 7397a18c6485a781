import CKernels
import Compute
import Tensors

/// The cuts of dense products. Every call of OpenBLAS packs its operands anew, so a chunk must be large
/// enough to pay for that. Sizes are by measurement on Zen 3, where products of a few thousand tokens keep
/// 85 to 95 % of the rate of one large product.
private enum ChunkSize {
  static let productRows = 1024
  static let productColumns = 1024
  static let gramColumns = 768
  /// Four blocks make ten tiles, which two, four or eight threads share evenly.
  static let fewestGramBlocks = 4
  static let crossRows = 384
  static let crossColumns = 512
  static let formRows = 256
  static let formColumns = 192
  /// Enough for several threads to share the work evenly; small operations use smaller chunks for it.
  static let fewest = 8
  /// No chunk has fewer rows for the sake of that.
  static let leastRows = 64
}

extension OpenBLASBackend: LinearAlgebra {
  public func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float
  ) {
    precondition(a.rows == c.rows, "A and C differ in their rows")
    precondition(
      a.columns == (transposingB ? b.columns : b.rows), "A and B differ in their inner dimension")
    precondition((transposingB ? b.rows : b.columns) == c.columns, "B and C differ in their columns")
    runProduct(rows: c.rows, columns: c.columns) { rows, columns in
      let bRows = transposingB ? columns : 0..<b.rows
      let bColumns = transposingB ? 0..<b.columns : columns
      c.block(rows: rows, columns: columns).multiply(
        a.rows(rows).whole, b.block(rows: bRows, columns: bColumns), transposingB: transposingB,
        scale: alpha, keeping: beta)
    }
  }

  /// Calls `body` for blocks that cover a product of the given shape.
  func runProduct(rows: Int, columns: Int, _ body: (Range<Int>, Range<Int>) -> Void) {
    let columnBlocks = Division(columns, blocksOfAtMost: ChunkSize.productColumns, multipleOf: 8)
    let wanted = ChunkSize.fewest.dividedRoundingUp(by: max(columnBlocks.count, 1))
    let fitting = max(rows.dividedRoundingUp(by: wanted), ChunkSize.leastRows)
    let rowBlocks = Division(rows, blocksOfAtMost: min(fitting, ChunkSize.productRows))
    team.run(chunks: rowBlocks.count * columnBlocks.count) { chunk in
      // Neighbouring chunks share rows of A, which are the larger operand.
      body(rowBlocks[chunk / columnBlocks.count], columnBlocks[chunk % columnBlocks.count])
    }
  }

  /// Every tile of the triangle is one task, which takes all tokens and adds to Σ in place: sums of their own for
  /// parts of the tokens would have to be made, and faulted in, for every batch.
  public func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix) {
    let tiles = gramTiles(order: gram.rows, operands: operands)
    accumulateGram(inputs, operands: operands, into: gram, tiles: tiles)
  }

  public func gramTiles(order: Int, operands: OperandType) -> [GramTile] {
    let blocks: Division
    if operands == .bfloat16 {
      blocks = packedGramBlocks(order: order)
    } else {
      let evenly = order.dividedRoundingUp(by: ChunkSize.fewestGramBlocks)
      let largest = min(max(evenly, ChunkSize.leastRows), ChunkSize.gramColumns)
      blocks = Division(order, blocksOfAtMost: largest, multipleOf: 8)
    }
    let tiles = SymmetricTiles(blocks)
    return (0..<tiles.count).map { GramTile(rows: tiles[$0].second, columns: tiles[$0].first) }
  }

  public func accumulateGram(
    _ inputs: Matrix, operands: OperandType, into gram: Matrix, tiles: [GramTile]
  ) {
    precondition(
      gram.columns == gram.rows && inputs.columns == gram.rows, "the Gram matrix has another order")
    counter.add(.gram, inputs.rows * tiles.reduce(0) { $0 + $1.products })
    if operands == .bfloat16 { return accumulatePackedGram(inputs, into: gram, tiles: tiles) }
    team.run(chunks: tiles.count) { chunk in
      let (columns, rows) = (tiles[chunk].columns, tiles[chunk].rows)
      let sum = gram.block(rows: rows, columns: columns)
      let left = inputs.block(rows: 0..<inputs.rows, columns: rows)
      if rows == columns {
        sum.addGram(left, to: .lower)
      } else {
        let right = inputs.block(rows: 0..<inputs.rows, columns: columns)
        sum.multiply(left, transposingA: true, right, keeping: 1)
      }
    }
  }

  public func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix) {
    accumulateCrossProduct(a, b, operands: operands, into: product, rows: [0..<product.rows])
  }

  public func accumulateCrossProduct(
    _ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix, rows ranges: [Range<Int>]
  ) {
    precondition(a.rows == b.rows, "A and B differ in their tokens")
    precondition(product.rows == a.columns && product.columns == b.columns, "the product has another shape")
    counter.add(.crossProduct, a.rows * product.columns * ranges.reduce(0) { $0 + $1.count })
    if operands == .bfloat16 { return accumulatePackedCrossProduct(a, b, into: product, rows: ranges) }
    let rowBlocks = ranges.flatMap { range in
      let blocks = Division(range.count, blocksOfAtMost: ChunkSize.crossRows, multipleOf: 8)
      return (0..<blocks.count).map {
        range.lowerBound + blocks[$0].lowerBound..<range.lowerBound + blocks[$0].upperBound
      }
    }
    let columnBlocks = Division(product.columns, blocksOfAtMost: ChunkSize.crossColumns, multipleOf: 8)
    team.run(chunks: rowBlocks.count * columnBlocks.count) { chunk in
      let rows = rowBlocks[chunk / columnBlocks.count]
      let columns = columnBlocks[chunk % columnBlocks.count]
      product.block(rows: rows, columns: columns).multiply(
        a.block(rows: 0..<a.rows, columns: rows), transposingA: true,
        b.block(rows: 0..<b.rows, columns: columns), keeping: 1)
    }
  }

  /// Takes every pair of columns once: the products of a block of columns with those before it count double.
  public func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double] {
    let order = matrix.rows
    precondition(matrix.columns == order && rows.columns == order, "the shapes differ")
    let rowBlocks = Division(rows.rows, blocksOfAtMost: ChunkSize.formRows)
    let columnBlocks = Division(order, blocksOfAtMost: ChunkSize.formColumns, multipleOf: 8)
    let scratch = { Matrix(rows: rowBlocks.size, columns: columnBlocks.size) }
    return unsafe [Double](unsafeUninitializedCapacity: rows.rows) { forms, count in
      unsafe forms.initialize(repeating: 0)
      let forms = unsafe forms
      team.run(chunks: rowBlocks.count, scratch: scratch) { chunk, scratch in
        let x = rows.rows(rowBlocks[chunk])
        for columns in (0..<columnBlocks.count).map({ columnBlocks[$0] }) {
          let image = scratch.block(rows: 0..<x.rows, columns: 0..<columns.count)
          let before = 0..<columns.lowerBound
          image.multiply(
            x.block(rows: 0..<x.rows, columns: before), matrix.block(rows: before, columns: columns),
            scale: 2, keeping: 0)
          let own = x.block(rows: 0..<x.rows, columns: columns)
          image.multiply(own, matrix.block(rows: columns, columns: columns), keeping: 1)
          for row in 0..<x.rows {
            unsafe forms[rowBlocks[chunk].lowerBound + row] += qe_dot(
              columns.count, own.pointer + row * own.stride, image.pointer + row * image.stride)
          }
        }
      }
      count = rows.rows
    }
  }
}

/// The tiles of one triangle of a symmetric matrix: pairs of blocks, the first no later than the second.
/// The ones off the diagonal come first, for they are twice the work.
struct SymmetricTiles {
  private let blocks: Division
  private let pairs: [(Int, Int)]

  init(_ blocks: Division) {
    self.blocks = blocks
    let offDiagonal = (0..<blocks.count).flatMap { second in (0..<second).map { ($0, second) } }
    pairs = offDiagonal + (0..<blocks.count).map { ($0, $0) }
  }

  var count: Int { pairs.count }

  subscript(tile: Int) -> (first: Range<Int>, second: Range<Int>) {
    (blocks[pairs[tile].0], blocks[pairs[tile].1])
  }
}
