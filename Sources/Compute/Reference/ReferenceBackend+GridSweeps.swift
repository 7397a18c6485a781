import Quantization
import Tensors

extension ReferenceBackend: GridSweeps {
  public func round(_ weights: Matrix, grid: Grid, into codes: Matrix) {
    codes.setEach { row, column in Double(grid.nearestCode(weights.value(row, column), row, column)) }
  }

  public func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix) {
    weights.setEach { row, column in grid.value(Float(codes.value(row, column)), row, column) }
  }

  public func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    let columns = weights.columns
    for row in 0..<weights.rows {
      var errors = [Double](repeating: 0, count: columns)
      for position in (0..<columns).reversed() {
        let column = factor.order[position]
        let feedback = sum(position + 1..<max(columns, position + 1)) {
          factor.unitFactor.value(position, $0) * errors[$0]
        }
        let code = grid.nearestCode(weights.value(row, column) + feedback, row, column)
        errors[position] = weights.value(row, column) - grid.value(code, row, column)
        codes[row, column] = code
      }
    }
  }

  public func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int {
    var moved = 0
    for row in 0..<weights.rows {
      for column in 0..<weights.columns {
        let gradient = sum(0..<weights.columns) {
          (weights.value(row, $0) - approximation.value(row, $0)) * gram.value($0, column)
        }
        var best = approximation.value(row, column) + gradient * Double(inverseDiagonal[column])
        if isQuantizing { best = grid.value(grid.nearestCode(best, row, column), row, column) }
        if Float(best) != approximation[row, column] { moved += 1 }
        approximation[row, column] = Float(best)
      }
    }
    return moved
  }

  public func descendSparsely(
    codes: Matrix, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid
  ) -> Int {
    var moved = 0
    for row in 0..<codes.rows {
      for column in 0..<codes.columns {
        let old = grid.value(codes[row, column], row, column)
        let best = old + gradient.value(row, column) * Double(inverseDiagonal[column])
        let code = grid.nearestCode(best, row, column)
        guard code != codes[row, column] else { continue }
        codes[row, column] = code
        moved += 1
        let change = grid.value(code, row, column) - old
        for other in 0..<codes.columns {
          gradient[row, other] -= Float(change * gram.value(column, other))
        }
      }
    }
    return moved
  }

  public func descendInPairs(
    codes: Matrix, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours, grid: Grid
  ) -> Int {
    var moved = 0
    for row in 0..<codes.rows {
      func scale(_ column: Int) -> Double { grid.scales.value(row, column / grid.columnsPerGroup) }
      func fits(_ column: Int, _ step: Double) -> Bool {
        (0...Double(grid.format.maximumCode)).contains(codes.value(row, column) + step)
      }
      func cost(_ column: Int, _ step: Double, _ gradient: Double) -> Double {
        let change = step * scale(column)
        return change * (change * gram.value(column, column) - 2 * gradient)
      }
      let largestScale = (0..<grid.groups).map { grid.scales.value(row, $0) }.max() ?? 0
      for column in 0..<codes.columns {
        let step: Double = gradient.value(row, column) > 0 ? 1 : -1
        guard fits(column, step) else { continue }
        let alone = cost(column, step, gradient.value(row, column))
        guard alone < 2 * scale(column) * largestScale * Double(neighbours.reach[column]) else { continue }
        var best: (cost: Double, column: Int, step: Double)?
        for place in 0..<neighbours.count {
          let other = Int(neighbours.columns[column * neighbours.count + place])
          let residual =
            gradient.value(row, other) - step * scale(column) * gram.value(column, other)
          let otherStep: Double = residual > 0 ? 1 : -1
          let both = alone + cost(other, otherStep, residual)
          if fits(other, otherStep) && both < best?.cost ?? (-1e-6 * alone) {
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

  public func refitScales(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid) {
    for row in 0..<codes.rows {
      for group in 0..<grid.groups {
        let start = group * grid.columnsPerGroup
        let columns = start..<min(start + grid.columnsPerGroup, codes.columns)
        func step(_ column: Int) -> Double { codes.value(row, column) - grid.zeroPoints.value(row, group) }
        let image = (0..<codes.columns).map { other in
          sum(columns) { step($0) * gram.value($0, other) }
        }
        let slope = sum(columns) { step($0) * gradient.value(row, $0) }
        let curvature = sum(columns) { step($0) * image[$0] }
        guard curvature > 0 else { continue }
        let present = grid.scales.value(row, group)
        let optimum = present + slope / curvature
        let scale = optimum > 0 ? Double(grid.format.storable(Float(optimum))) : present
        let change = scale - present
        guard change * (2 * slope - change * curvature) > 0 else { continue }
        for other in 0..<codes.columns { gradient[row, other] -= Float(change * image[other]) }
        grid.scales[row, group] = Float(scale)
      }
    }
  }

  public func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double] {
    (0..<codes.rows).map { row in
      sum(0..<codes.columns) { column in
        let error = weights.value(row, column) - grid.value(codes[row, column], row, column)
        return error * gradient.value(row, column)
      }
    }
  }

  public func subtract(_ x: Matrix, from y: Matrix) {
    y.setEach { row, column in y.value(row, column) - x.value(row, column) }
  }

  public func rowDots(_ a: Matrix, _ b: Matrix) -> [Double] {
    (0..<a.rows).map { row in sum(0..<a.columns) { a.value(row, $0) * b.value(row, $0) } }
  }

  public func searchGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    for row in 0..<weights.rows {
      for group in 0..<grid.groups {
        let start = group * grid.columnsPerGroup
        let columns = start..<min(start + grid.columnsPerGroup, weights.columns)
        let values = columns.map { weights[row, $0] }
        let range = (low: min(values.min() ?? 0, 0), high: max(values.max() ?? 0, 0))
        let best = candidates.best(for: range, format: grid.format) { scale, zeroPoint in
          Float(
            sum(columns) { column in
              let weight = weights.value(row, column)
              let code = min(
                max((weight / Double(scale) + Double(zeroPoint)).rounded(.toNearestOrEven), 0),
                Double(grid.format.maximumCode))
              let error = weight - Double(scale) * (code - Double(zeroPoint))
              return Double(importance[column]) * error * error
            })
        }
        grid.scales[row, group] = best.scale
        grid.zeroPoints[row, group] = best.zeroPoint
      }
    }
  }
}

extension ReferenceBackend: ComputeBackend {}

extension Grid {
  fileprivate func nearestCode(_ value: Double, _ row: Int, _ column: Int) -> Float {
    let group = column / columnsPerGroup
    let code = value / Double(scales[row, group]) + Double(zeroPoints[row, group])
    return Float(min(max(code.rounded(.toNearestOrEven), 0), Double(format.maximumCode)))
  }

  fileprivate func value(_ code: Float, _ row: Int, _ column: Int) -> Double {
    let group = column / columnsPerGroup
    return Double(scales[row, group]) * (Double(code) - Double(zeroPoints[row, group]))
  }
}
