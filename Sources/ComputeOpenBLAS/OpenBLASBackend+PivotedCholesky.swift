import CKernels
import Compute
import Tensors

/// Rows that are factorised one by one before a matrix product brings the rest up to date.
private let rowsPerBlock = 64
/// Finished rows in which one task exchanges elements.
private let rowsPerTask = 192

extension OpenBLASBackend {
  /// Rows and columns change places together, within the upper triangle. In rows that were finished before the block
  /// at hand the exchanges of a block are made up for when it is done, all of them row by row.
  public func factorizePivotedCholesky(
    _ matrix: Matrix, inOrder first: [Int], leading: Int
  ) throws(ComputeError) -> [Int] {
    let size = matrix.rows
    precondition(matrix.columns == size, "only a square matrix has a Cholesky factor")
    precondition(first.count == size && (0...size).contains(leading), "there are not as many rows")
    counter.add(.factor, ProductCounter.factor(order: size))
    var order = first
    if first.elementsEqual(0..<size) {
      symmetrize(matrix)
    } else {
      fillUpperTriangle(of: matrix, inOrder: first)
    }
    // What is left of every row's variance, by place.
    let remaining = Matrix(rows: 1, columns: size)
    for start in stride(from: 0, to: size, by: rowsPerBlock) {
      let block = start..<min(start + rowsPerBlock, size)
      for place in start..<size { remaining[0, place] = matrix[place, place] }
      var exchanges: [(Int, Int)] = []
      for place in block {
        let end = place < leading ? leading : size
        let chosen = place + (unsafe qe_index_of_smallest(end - place, remaining.pointer + place))
        let variance = chosen < end ? remaining[0, chosen] : .nan
        guard variance > 0 && variance.isFinite else { throw .notPositiveDefinite(pivot: place) }
        if chosen != place {
          exchange(place, chosen, in: matrix, finishedFrom: start)
          remaining[0, chosen] = remaining[0, place]
          order.swapAt(place, chosen)
          exchanges.append((place, chosen))
        }
        let pivot = variance.squareRoot()
        let row = unsafe matrix.pointer + place * size + place
        unsafe row.pointee = pivot
        unsafe qe_cholesky_row(
          size - place - 1, place - start, size, matrix.pointer + start * size + place, pivot, row + 1,
          remaining.pointer + place + 1)
      }
      subtractProducts(ofRows: block, fromUpperTriangleOf: matrix)
      exchange(exchanges, inRows: 0..<start, of: matrix)
    }
    return order
  }

  /// Exchanges two rows and the same columns of a symmetric matrix of which there is the upper triangle from `start`
  /// on, and above the first of the two finished rows of R.
  private func exchange(_ first: Int, _ second: Int, in matrix: Matrix, finishedFrom start: Int) {
    let size = matrix.columns
    let base = unsafe matrix.pointer
    for row in start..<first { unsafe swap(&base[row * size + first], &base[row * size + second]) }
    unsafe swap(&base[first * size + first], &base[second * size + second])
    for between in first + 1..<second {
      unsafe swap(&base[first * size + between], &base[between * size + second])
    }
    for after in second + 1..<max(size, second + 1) {
      unsafe swap(&base[first * size + after], &base[second * size + after])
    }
  }

  private func exchange(_ exchanges: [(Int, Int)], inRows rows: Range<Int>, of matrix: Matrix) {
    if exchanges.isEmpty { return }
    let size = matrix.columns
    let tasks = Division(rows.count, blocksOfAtMost: rowsPerTask)
    team.run(chunks: tasks.count) { task in
      for row in tasks[task] {
        let elements = unsafe matrix.pointer + row * size
        for (first, second) in exchanges { unsafe swap(&elements[first], &elements[second]) }
      }
    }
  }
}
