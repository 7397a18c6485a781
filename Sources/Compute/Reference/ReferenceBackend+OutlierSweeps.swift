import Quantization
import Tensors

extension ReferenceBackend: OutlierSweeps {
  public func roundToNearestPlane(
    _ weights: Matrix, outliers: SparseRows, factor: NearestPlaneFactor, grid: Grid,
    into codes: Matrix, remainders: Matrix
  ) {
    let columns = weights.columns
    for row in 0..<weights.rows {
      let held = outliers.columnSet(ofRow: row)
      var errors = [Double](repeating: 0, count: columns)
      for position in (0..<columns).reversed() {
        let column = factor.order[position]
        let feedback = sum(position + 1..<max(columns, position + 1)) {
          factor.unitFactor.value(position, $0) * errors[$0]
        }
        let target = weights.value(row, column) + feedback
        let code = grid.nearest(target, row, column)
        let remainder = target - grid.point(code, row, column)
        codes[row, column] = Float(code)
        remainders[row, column] = Float(remainder)
        errors[position] = held.contains(column) ? -feedback : remainder - feedback
      }
    }
  }

  public func roundingRemainders(_ weights: Matrix, grid: Grid, into remainders: Matrix) {
    remainders.setEach { row, column in
      let weight = weights.value(row, column)
      return weight - grid.point(grid.nearest(weight, row, column), row, column)
    }
  }

  public func descendSparsely(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float],
    grid: Grid
  ) -> Int {
    var moved = 0
    for row in 0..<codes.rows {
      func move(_ column: Int, by change: Double) {
        for other in 0..<codes.columns { gradient[row, other] -= Float(change * gram.value(column, other)) }
      }
      for entry in outliers.entries(ofRow: row) {
        let column = Int(outliers.columns[entry])
        let old = outliers.values.value(0, entry)
        let slope = gradient.value(row, column)
        let best = Float(old + slope * Double(inverseDiagonal[column])).storableOutlier
        let change = Double(best) - old
        guard change * (2 * slope - change * gram.value(column, column)) > 0 else { continue }
        outliers.values[0, entry] = best
        move(column, by: change)
      }
      let held = outliers.columnSet(ofRow: row)
      for column in 0..<codes.columns where !held.contains(column) {
        let old = codes.value(row, column)
        let best =
          grid.point(old, row, column) + gradient.value(row, column) * Double(inverseDiagonal[column])
        let code = grid.nearest(best, row, column)
        guard code != old else { continue }
        codes[row, column] = Float(code)
        moved += 1
        move(column, by: grid.point(code, row, column) - grid.point(old, row, column))
      }
    }
    return moved
  }

  public func descendInPairs(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours,
    grid: Grid
  ) -> Int {
    var moved = 0
    for row in 0..<codes.rows {
      let held = outliers.columnSet(ofRow: row)
      func scale(_ column: Int) -> Double { grid.scales.value(row, column / grid.columnsPerGroup) }
      func canMove(_ column: Int, _ step: Double) -> Bool {
        !held.contains(column)
          && (0...Double(grid.format.maximumCode)).contains(codes.value(row, column) + step)
      }
      func cost(_ column: Int, _ step: Double, _ gradient: Double) -> Double {
        let change = step * scale(column)
        return change * (change * gram.value(column, column) - 2 * gradient)
      }
      let largestScale = (0..<grid.groups).map { grid.scales.value(row, $0) }.max() ?? 0
      for column in 0..<codes.columns {
        let step: Double = gradient.value(row, column) > 0 ? 1 : -1
        guard canMove(column, step) else { continue }
        let alone = cost(column, step, gradient.value(row, column))
        var best: (cost: Double, column: Int, step: Double)?
        for place in 0..<neighbours.count {
          let other = Int(neighbours.columns[column * neighbours.count + place])
          // A partner that stands at its own minimum can gain no more than this, nor can those after it.
          guard alone < 2 * scale(column) * largestScale * abs(gram.value(column, other)) else { break }
          let residual = gradient.value(row, other) - step * scale(column) * gram.value(column, other)
          let otherStep: Double = residual > 0 ? 1 : -1
          let both = alone + cost(other, otherStep, residual)
          if canMove(other, otherStep) && both < best?.cost ?? (-1e-6 * alone) {
            best = (both, other, otherStep)
          }
        }
        guard let best else { continue }
        moved += 1
        for (mover, step) in [(column, step), (best.column, best.step)] {
          codes[row, mover] += Float(step)
          for other in 0..<codes.columns {
            gradient[row, other] -= Float(step * scale(mover) * gram.value(mover, other))
          }
        }
      }
    }
    return moved
  }

  public func multiplySampled(_ a: Matrix, symmetric b: Matrix, scale alpha: Float, into c: SparseRows) {
    c.forEach { row, column, entry in
      let product = sum(0..<a.columns) { a.value(row, $0) * b.value($0, column) }
      c.values[0, entry] += Float(Double(alpha) * product)
    }
  }

  public func weighSquares(_ matrix: Matrix, by weights: [Float]) {
    matrix.setEach { row, column in
      Double(weights[column]) * matrix.value(row, column) * matrix.value(row, column)
    }
  }

  public func elements(of matrix: Matrix, atLeast threshold: Float) -> [(place: Int, value: Float)] {
    matrix.elements.enumerated().filter { $0.element >= threshold }.map {
      (place: $0.offset, value: $0.element)
    }
  }
}

extension SparseRows {
  fileprivate func columnSet(ofRow row: Int) -> Set<Int> {
    Set(entries(ofRow: row).map { Int(columns[$0]) })
  }
}
