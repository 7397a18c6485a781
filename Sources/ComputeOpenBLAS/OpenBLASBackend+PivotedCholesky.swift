import CKernels
import COpenBLAS
import Compute
import Tensors

/// Columns that are factorised one by one before a matrix product brings the rest up to date.
private let columnsPerBlock = 64
/// Rows of the remaining matrix that one task brings up to date.
private let rowsPerTask = 192

extension OpenBLASBackend {
  public func factorizePivotedCholesky(_ matrix: Matrix) throws(ComputeError) -> [Int] {
    let size = matrix.rows
    precondition(matrix.columns == size, "only a square matrix has a Cholesky factor")
    var order = Array(0..<size)
    let sums = Matrix(rows: 1, columns: size)
    for start in stride(from: 0, to: size, by: columnsPerBlock) {
      let end = min(start + columnsPerBlock, size)
      sums.fill(0)
      for pivot in start..<end {
        let chosen = smallestPivot(in: matrix, from: pivot, sums: sums)
        let variance = matrix[chosen, chosen] - sums[0, chosen]
        guard variance > 0 && variance.isFinite else { throw .notPositiveDefinite(pivot: pivot) }
        exchange(matrix, pivot, chosen)
        order.swapAt(pivot, chosen)
        (sums[0, pivot], sums[0, chosen]) = (sums[0, chosen], sums[0, pivot])
        let value = variance.squareRoot()
        matrix[pivot, pivot] = value
        unsafe qe_cholesky_column(size, start, pivot, value, matrix.pointer, sums.pointer)
      }
      subtractOuterProduct(matrix, columns: start..<end)
    }
    for row in 0..<size {
      matrix.rows(row..<row + 1).withMutableSpan { span in
        for column in row + 1..<max(size, row + 1) { span[column] = 0 }
      }
    }
    return order
  }

  private func smallestPivot(in matrix: Matrix, from first: Int, sums: Matrix) -> Int {
    var (chosen, least) = (first, Float.infinity)
    for row in first..<matrix.rows {
      let variance = unsafe matrix.pointer[row * matrix.columns + row] - sums.pointer[row]
      if variance < least { (chosen, least) = (row, variance) }
    }
    return chosen
  }

  /// Exchanges two rows and the same two columns.
  private func exchange(_ matrix: Matrix, _ a: Int, _ b: Int) {
    guard a != b else { return }
    let size = matrix.columns
    for column in 0..<size {
      unsafe swap(&matrix.pointer[a * size + column], &matrix.pointer[b * size + column])
    }
    for row in 0..<size {
      unsafe swap(&matrix.pointer[row * size + a], &matrix.pointer[row * size + b])
    }
  }

  /// A ← A − L Lᵀ below and to the right of a finished block of columns of L.
  private func subtractOuterProduct(_ matrix: Matrix, columns: Range<Int>) {
    let size = matrix.rows
    let first = columns.upperBound
    guard first < size else { return }
    let tasks = (size - first + rowsPerTask - 1) / rowsPerTask
    team.run(chunks: tasks) { task in
      let start = first + task * rowsPerTask
      let count = min(rowsPerTask, size - start)
      unsafe cblas_sgemm(
        CblasRowMajor, CblasNoTrans, CblasTrans, Int32(count), Int32(size - first),
        Int32(columns.count), -1, matrix.pointer + start * size + columns.lowerBound, Int32(size),
        matrix.pointer + first * size + columns.lowerBound, Int32(size), 1,
        matrix.pointer + start * size + first, Int32(size))
    }
  }
}
