import CKernels
import Compute
import Quantization
import Tensors

extension OpenBLASBackend: OutlierSweeps {
  public func roundingRemainders(_ weights: Matrix, grid: Grid, into remainders: Matrix) {
    let columns = weights.columns
    precondition(
      remainders.rows == weights.rows && remainders.columns == columns
        && grid.outFeatures == weights.rows && grid.inFeatures == columns, "the shapes differ")
    forEachTask(of: weights.rows) { rows in
      for row in rows {
        for group in 0..<grid.groups {
          let start = group * grid.columnsPerGroup
          let first = row * columns + start
          unsafe qe_rounding_remainders(
            min(grid.columnsPerGroup, columns - start), weights.pointer + first,
            grid.line(row, group), grid.zeroPoint(row, group), Float(grid.format.maximumCode),
            remainders.pointer + first)
        }
      }
    }
  }

  public func descendSparsely(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float],
    grid: Grid
  ) -> Int {
    let columns = codes.columns
    precondition(
      gram.rows == columns && gram.columns == columns && inverseDiagonal.count == columns
        && gradient.rows == codes.rows && gradient.columns == columns
        && outliers.rowCount == codes.rows && grid.outFeatures == codes.rows, "the shapes differ")
    let moved = Counter()
    forEachTask(of: codes.rows) { rows in
      var movedHere = 0
      let steps = Matrix(rows: 1, columns: columns)
      let scales = Matrix(rows: 1, columns: columns)
      for row in rows {
        let residual = gradient.rows(row..<row + 1)
        descend(outliers, row: row, gradient: residual, gram: gram, inverseDiagonal: inverseDiagonal)
        grid.expandScales(ofRow: row, holding: outliers, into: scales)
        for column in 0..<columns {
          unsafe steps.pointer[column] = inverseDiagonal[column] / scales.pointer[column]
        }
        movedHere += unsafe qe_descend_row(
          columns, gram.pointer, steps.pointer, scales.pointer, Float(grid.format.maximumCode),
          codes.pointer + row * columns, residual.pointer)
      }
      moved.add(movedHere)
    }
    return moved.value
  }

  /// Moves the outliers of a row, one after the other, to the storable value nearest to the minimiser.
  private func descend(
    _ outliers: SparseRows, row: Int, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float]
  ) {
    let width = gradient.columns
    for entry in outliers.entries(ofRow: row) {
      let column = Int(outliers.columns[entry])
      let old = outliers.values[0, entry]
      let slope = gradient[0, column]
      let new = (old + slope * inverseDiagonal[column]).storableOutlier
      let change = new - old
      // Rounding may carry a value past the minimiser, to where the objective is higher than before.
      guard change * (2 * slope - change * gram[column, column]) > 0 else { continue }
      outliers.values[0, entry] = new
      unsafe qe_axpy(width, -change, gram.pointer + column * width, gradient.pointer)
    }
  }

  public func descendInPairs(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours,
    grid: Grid
  ) -> Int {
    let columns = codes.columns
    precondition(
      gram.rows == columns && gram.columns == columns && neighbours.gram.rows == columns
        && gradient.rows == codes.rows && gradient.columns == columns
        && outliers.rowCount == codes.rows && grid.outFeatures == codes.rows, "the shapes differ")
    guard neighbours.count > 0 else { return 0 }
    let moved = Counter()
    unsafe neighbours.withKernelView { view in
      forEachTask(of: codes.rows) { rows in
        var movedHere = 0
        let scales = Matrix(rows: 1, columns: columns)
        for row in rows {
          grid.expandScales(ofRow: row, holding: outliers, into: scales)
          movedHere += unsafe qe_descend_pairs_row(
            columns, view, gram.pointer, scales.pointer, grid.largestScale(ofRow: row),
            Float(grid.format.maximumCode), codes.pointer + row * columns,
            gradient.pointer + row * columns)
        }
        moved.add(movedHere)
      }
    }
    return moved.value
  }

  public func multiplySampled(_ a: Matrix, symmetric b: Matrix, scale alpha: Float, into c: SparseRows) {
    let width = a.columns
    precondition(b.rows == width && b.columns == width && c.rowCount == a.rows, "the shapes differ")
    forEachTask(of: a.rows) { rows in
      for row in rows {
        for entry in c.entries(ofRow: row) {
          let column = b.rows(Int(c.columns[entry])..<Int(c.columns[entry]) + 1)
          let product = unsafe qe_dot(width, a.pointer + row * width, column.pointer)
          c.values[0, entry] += alpha * Float(product)
        }
      }
    }
  }

  public func weighSquares(_ matrix: Matrix, by weights: [Float]) {
    precondition(weights.count == matrix.columns, "every column has one weight")
    forEachTask(of: matrix.rows) { rows in
      for row in rows {
        unsafe qe_weigh_squares(matrix.columns, weights, matrix.pointer + row * matrix.columns)
      }
    }
  }

  public func elements(of matrix: Matrix, atLeast threshold: Float) -> [(place: Int, value: Float)] {
    let indices = unsafe [UInt32](unsafeUninitializedCapacity: matrix.count) { buffer, count in
      guard let first = buffer.baseAddress else { return }
      count = unsafe qe_indices_at_least(matrix.count, matrix.pointer, threshold, first)
    }
    return matrix.withSpan { span in indices.map { (place: Int($0), value: span[Int($0)]) } }
  }
}

extension Grid {
  /// The scale of every column of a row, infinite for its outliers: a step of that size never pays, so their
  /// codes stay where they are in every sweep.
  fileprivate func expandScales(ofRow row: Int, holding outliers: SparseRows, into expanded: Matrix) {
    expandScales(ofRow: row, into: expanded)
    for entry in outliers.entries(ofRow: row) {
      expanded[0, Int(outliers.columns[entry])] = .infinity
    }
  }
}
