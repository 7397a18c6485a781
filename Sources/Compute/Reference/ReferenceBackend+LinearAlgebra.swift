import Tensors

extension ReferenceBackend: LinearAlgebra {
  public func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float
  ) {
    precondition(
      a.rows == c.rows && a.columns == (transposingB ? b.columns : b.rows), "the shapes do not fit")
    precondition((transposingB ? b.rows : b.columns) == c.columns, "the shapes do not fit")
    c.setEach { row, column in
      let product = sum(0..<a.columns) { inner in
        a.value(row, inner) * (transposingB ? b.value(column, inner) : b.value(inner, column))
      }
      // A factor of 0 overwrites whatever stood there, NaN too.
      return Double(alpha) * product + (beta == 0 ? 0 : Double(beta) * c.value(row, column))
    }
  }

  public func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix) {
    precondition(gram.rows == inputs.columns && gram.columns == inputs.columns, "the shapes do not fit")
    let inputs = inputs.rounded(to: operands)
    gram.setEach { row, column in
      if column > row { return gram.value(row, column) }
      return gram.value(row, column)
        + sum(0..<inputs.rows) { inputs.value($0, row) * inputs.value($0, column) }
    }
  }

  public func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix) {
    precondition(a.rows == b.rows, "the shapes do not fit")
    precondition(product.rows == a.columns && product.columns == b.columns, "the shapes do not fit")
    let (a, b) = (a.rounded(to: operands), b.rounded(to: operands))
    product.setEach { row, column in
      product.value(row, column) + sum(0..<a.rows) { a.value($0, row) * b.value($0, column) }
    }
  }

  public func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double] {
    precondition(matrix.rows == rows.columns && matrix.columns == rows.columns, "the shapes do not fit")
    return (0..<rows.rows).map { row in
      sum(0..<rows.columns) { column in
        sum(0..<rows.columns) { rows.value(row, $0) * matrix.value($0, column) } * rows.value(row, column)
      }
    }
  }

  public func symmetrize(_ matrix: Matrix) {
    precondition(matrix.rows == matrix.columns, "the matrix is not square")
    matrix.setEach { row, column in matrix.value(max(row, column), min(row, column)) }
  }

  public func fillUpperTriangle(of matrix: Matrix, inOrder order: [Int]) {
    precondition(matrix.rows == matrix.columns && order.count == matrix.rows, "the shapes do not fit")
    matrix.setEach { row, column in
      column > row
        ? matrix.value(max(order[row], order[column]), min(order[row], order[column]))
        : matrix.value(row, column)
    }
  }

  public func divideUpperRowsByDiagonal(_ matrix: Matrix) {
    precondition(matrix.rows == matrix.columns, "the matrix is not square")
    matrix.setEach { row, column in
      column > row ? matrix.value(row, column) / matrix.value(row, row) : matrix.value(row, column)
    }
  }

  public func factorizeCholesky(_ matrix: Matrix) throws(ComputeError) {
    let (_, lower) = try factorize(matrix) { column, _ in column }
    matrix.setEach { row, column in column < row ? matrix.value(row, column) : lower[column][row] }
  }

  public func factorizePivotedCholesky(
    _ matrix: Matrix, inOrder order: [Int], leading: Int
  ) throws(ComputeError) -> [Int] {
    fillUpperTriangle(of: matrix, inOrder: order)
    let (permutation, lower) = try factorize(matrix) { column, remaining in
      let candidates = column..<(column < leading ? leading : remaining.count)
      return candidates.reduce(column) { remaining[$1][$1] < remaining[$0][$0] ? $1 : $0 }
    }
    matrix.setEach { row, column in column < row ? matrix.value(row, column) : lower[column][row] }
    return permutation.map { order[$0] }
  }

  /// L of P A Pᵀ = L Lᵀ, column by column.
  /// - Parameter choose: the row that comes next, from the column and what remains of P A Pᵀ there
  private func factorize(
    _ matrix: Matrix, choose: (Int, [[Double]]) -> Int
  ) throws(ComputeError) -> (permutation: [Int], lower: [[Double]]) {
    let order = matrix.rows
    precondition(matrix.columns == order, "the matrix is not square")
    var permutation = Array(0..<order)
    // Left of the column at hand the factor, from there on A less the products of the factor so far.
    var a = (0..<order).map { row in
      (0..<order).map { matrix.value(min(row, $0), max(row, $0)) }
    }
    for column in 0..<order {
      let chosen = choose(column, a)
      a.swapAt(column, chosen)
      for row in 0..<order { a[row].swapAt(column, chosen) }
      permutation.swapAt(column, chosen)
      guard a[column][column] > 0 else { throw .notPositiveDefinite(pivot: column) }
      let pivot = a[column][column].squareRoot()
      let entries = (0..<order).map { row in row < column ? 0 : a[row][column] / pivot }
      for row in column..<order {
        for other in column + 1..<max(order, column + 1) { a[row][other] -= entries[row] * entries[other] }
        a[row][column] = entries[row]
      }
    }
    for row in 0..<order {
      for column in row + 1..<max(order, row + 1) { a[row][column] = 0 }
    }
    return (permutation, a)
  }

  public func solveCholesky(rows: Matrix, factor: Matrix) {
    let order = factor.rows
    precondition(factor.columns == order && rows.columns == order, "the shapes do not fit")
    for row in 0..<rows.rows {
      // x = b·R⁻¹·R⁻ᵀ: y·R = b from the first column on, then x·Rᵀ = y from the last one back.
      var x = (0..<order).map { rows.value(row, $0) }
      for column in 0..<order {
        x[column] -= sum(0..<column) { x[$0] * factor.value($0, column) }
        x[column] /= factor.value(column, column)
      }
      for column in (0..<order).reversed() {
        x[column] -= sum(column + 1..<max(order, column + 1)) { x[$0] * factor.value(column, $0) }
        x[column] /= factor.value(column, column)
      }
      for column in 0..<order { rows[row, column] = Float(x[column]) }
    }
  }
}
