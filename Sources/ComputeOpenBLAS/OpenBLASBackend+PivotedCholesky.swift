import CKernels
import Compute
import Tensors

/// Rows that are factorised one by one before a matrix product brings the rest up to date.
private let rowsPerBlock = 64
/// Rows of the remaining matrix that one task brings up to date.
private let rowsPerTask = 192

extension OpenBLASBackend {
  /// Rows change places, columns stay where they are until every pivot is known: all that is read and written
  /// are whole rows. What that computes in columns whose pivot is past is never looked at.
  public func factorizePivotedCholesky(_ matrix: Matrix) throws(ComputeError) -> [Int] {
    let size = matrix.rows
    precondition(matrix.columns == size, "only a square matrix has a Cholesky factor")
    // The column whose row stands at every place, and the place of every column's row.
    var order = Array(0..<size)
    var places = order
    // What is left of every column's variance; infinite once it has been a pivot.
    let remaining = Matrix(rows: 1, columns: size)
    remaining.fill(.infinity)
    for start in stride(from: 0, to: size, by: rowsPerBlock) {
      let block = start..<min(start + rowsPerBlock, size)
      for place in start..<size { remaining[0, order[place]] = matrix[place, order[place]] }
      for place in block {
        let pivot = unsafe qe_index_of_smallest(size, remaining.pointer)
        let variance = pivot < size ? remaining[0, pivot] : .nan
        guard variance > 0 && variance.isFinite else { throw .notPositiveDefinite(pivot: place) }
        let chosen = places[pivot]
        exchangeRows(matrix, place, chosen)
        places.swapAt(order[place], pivot)
        order.swapAt(place, chosen)
        unsafe qe_cholesky_row(
          size, place - start, pivot, variance.squareRoot(), matrix.pointer + start * size,
          matrix.pointer + place * size, remaining.pointer)
        remaining[0, pivot] = .infinity
      }
      subtractProducts(of: block, from: matrix, order: order)
    }
    reorderColumns(of: matrix, order: order)
    return order
  }

  private func exchangeRows(_ matrix: Matrix, _ a: Int, _ b: Int) {
    guard a != b else { return }
    let size = matrix.columns
    for column in 0..<size {
      unsafe swap(&matrix.pointer[a * size + column], &matrix.pointer[b * size + column])
    }
  }

  /// A ← A − RᵀR in the rows below a finished block of rows of R.
  private func subtractProducts(of block: Range<Int>, from matrix: Matrix, order: [Int]) {
    let below = Division(matrix.rows - block.upperBound, blocksOfAtMost: rowsPerTask)
    let scratch = { Matrix(rows: block.count, columns: below.size) }
    team.run(chunks: below.count, scratch: scratch) { chunk, coefficients in
      let first = block.upperBound + below[chunk].lowerBound
      let rows = first..<first + below[chunk].count
      for (index, row) in block.enumerated() {
        for (place, column) in order[rows].enumerated() { coefficients[index, place] = matrix[row, column] }
      }
      matrix.rows(rows).whole.multiply(
        coefficients.block(rows: 0..<block.count, columns: 0..<rows.count), transposingA: true,
        matrix.rows(block).whole, scale: -1, keeping: 1)
    }
  }

  /// Brings the columns of R into the order of its rows, and clears what is left of the pivots before.
  private func reorderColumns(of matrix: Matrix, order: [Int]) {
    let size = matrix.rows
    let tasks = Division(size, blocksOfAtMost: rowsPerTask)
    team.run(chunks: tasks.count, scratch: { Matrix(rows: 1, columns: size) }) { chunk, old in
      for row in tasks[chunk] {
        let values = matrix.rows(row..<row + 1)
        old.copy(from: values)
        values.fill(0)
        for place in row..<size { values[0, place] = old[0, order[place]] }
      }
    }
  }
}
