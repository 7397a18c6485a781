import CKernels
import Compute
import Tensors

/// Columns that are factorised before a matrix product brings the rest up to date.
private let columnsPerPanel = 256
/// The tiles of what a panel brings up to date.
private let tileOrder = 512
/// Columns, or rows, that one task solves with a triangle.
private let columnsPerTask = 128
/// The tiles that are transposed at once.
private let transposedTile = 64
/// Rows that one task goes through.
private let rowsPerTask = 64

extension OpenBLASBackend {
  public func symmetrize(_ matrix: Matrix) {
    let order = matrix.rows
    precondition(matrix.columns == order, "only a square matrix is symmetric")
    let blocks = Division(order, blocksOfAtMost: transposedTile)
    team.run(chunks: blocks.count) { chunk in
      let rows = blocks[chunk]
      let square = matrix.block(rows: rows, columns: rows)
      for row in 0..<rows.count {
        for column in row + 1..<max(rows.count, row + 1) {
          unsafe square.pointer[row * order + column] = square.pointer[column * order + row]
        }
      }
      let below = matrix.block(rows: rows.upperBound..<order, columns: rows)
      let right = matrix.block(rows: rows, columns: rows.upperBound..<order)
      unsafe qe_transpose(below.rows, below.columns, below.pointer, order, right.pointer, order)
    }
  }

  public func fillUpperTriangle(of matrix: Matrix, inOrder order: [Int]) {
    let count = matrix.rows
    precondition(matrix.columns == count && order.count == count, "the order has another length")
    let tasks = Division(count, blocksOfAtMost: rowsPerTask)
    team.run(chunks: tasks.count) { task in
      for place in tasks[task] {
        let row = order[place]
        for other in place + 1..<max(count, place + 1) {
          let column = order[other]
          unsafe matrix.pointer[place * count + other] =
            matrix.pointer[max(row, column) * count + min(row, column)]
        }
      }
    }
  }

  /// Right-looking: the factor of a diagonal block, then the rows beside it, then what these take from the triangle
  /// that is left, which is nearly all of the work and runs in parallel.
  public func factorizeCholesky(_ matrix: Matrix) throws(ComputeError) {
    let order = matrix.rows
    precondition(matrix.columns == order, "only a square matrix has a Cholesky factor")
    counter.add(.factor, ProductCounter.factor(order: order))
    let panels = Division(order, blocksOfAtMost: columnsPerPanel)
    for panel in (0..<panels.count).map({ panels[$0] }) {
      let corner = matrix.block(rows: panel, columns: panel)
      do {
        try corner.factorizeCholesky()
      } catch .notPositiveDefinite(let pivot) {
        throw .notPositiveDefinite(pivot: panel.lowerBound + pivot)
      }
      let stripes = Division(order - panel.upperBound, blocksOfAtMost: columnsPerTask)
      team.run(chunks: stripes.count) { chunk in
        let columns = stripes[chunk].shifted(by: panel.upperBound)
        matrix.block(rows: panel, columns: columns).divideFromLeft(byTransposeOf: corner)
      }
      subtractProducts(ofRows: panel, fromUpperTriangleOf: matrix)
    }
  }

  /// A ← A − RᵀR in the part of the upper triangle that is below finished rows of R.
  func subtractProducts(ofRows finished: Range<Int>, fromUpperTriangleOf matrix: Matrix) {
    let start = finished.upperBound
    let tiles = SymmetricTiles(Division(matrix.rows - start, blocksOfAtMost: tileOrder))
    team.run(chunks: tiles.count) { chunk in
      let (rows, columns) = (tiles[chunk].first.shifted(by: start), tiles[chunk].second.shifted(by: start))
      let target = matrix.block(rows: rows, columns: columns)
      let left = matrix.block(rows: finished, columns: rows)
      if rows == columns {
        target.addGram(left, scale: -1, to: .upper)
      } else {
        let right = matrix.block(rows: finished, columns: columns)
        target.multiply(left, transposingA: true, right, scale: -1, keeping: 1)
      }
    }
  }

  public func divideUpperRowsByDiagonal(_ matrix: Matrix) {
    let order = matrix.rows
    precondition(matrix.columns == order, "only a square matrix has a diagonal")
    let tasks = Division(order, blocksOfAtMost: rowsPerTask)
    team.run(chunks: tasks.count) { task in
      for row in tasks[task] {
        let start = unsafe matrix.pointer + row * order
        unsafe qe_divide(order - row - 1, start[row], start + row + 1)
      }
    }
  }

  public func solveCholesky(rows: Matrix, factor: Matrix) {
    solveCholesky(rows: rows, [0..<rows.rows], factor: factor)
  }

  public func solveCholesky(rows: Matrix, _ ranges: [Range<Int>], factor: Matrix) {
    precondition(factor.rows == factor.columns, "only a square matrix is a Cholesky factor")
    precondition(rows.columns == factor.rows, "the factor has another order")
    counter.add(.solution, factor.rows * factor.rows * ranges.reduce(0) { $0 + $1.count })
    let blocks = ranges.flatMap { range in
      let blocks = Division(range.count, blocksOfAtMost: columnsPerTask)
      return (0..<blocks.count).map { blocks[$0].shifted(by: range.lowerBound) }
    }
    team.run(chunks: blocks.count) { chunk in
      let block = rows.rows(blocks[chunk]).whole
      block.divide(by: factor.whole, transposed: false)
      block.divide(by: factor.whole, transposed: true)
    }
  }
}

extension Range<Int> {
  fileprivate func shifted(by offset: Int) -> Range<Int> { lowerBound + offset..<upperBound + offset }
}
