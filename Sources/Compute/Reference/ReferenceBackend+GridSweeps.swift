import Quantization
import Tensors

extension ReferenceBackend: GridSweeps {
  public func round(_ weights: Matrix, grid: Grid, into codes: Matrix) {
    codes.setEach { row, column in grid.nearest(weights.value(row, column), row, column) }
  }

  public func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix) {
    weights.setEach { row, column in grid.point(codes.value(row, column), row, column) }
  }

  public func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    roundToNearestPlane(
      weights, outliers: SparseRows(rows: weights.rows, everyRow: [], of: self), factor: factor, grid: grid,
      into: codes, remainders: Matrix(rows: weights.rows, columns: weights.columns))
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
        if isQuantizing { best = grid.point(grid.nearest(best, row, column), row, column) }
        if Float(best) != approximation[row, column] { moved += 1 }
        approximation[row, column] = Float(best)
      }
    }
    return moved
  }

  public func refitScales(codes: Matrix, images: Matrix?, gradient: Matrix, gram: Matrix, grid: Grid) {
    for row in 0..<codes.rows {
      for group in 0..<grid.groups {
        let columns = grid.columns(ofGroup: group)
        let zeroPoint = grid.format.hasOwnOffsets ? 0 : grid.shifts.value(row, group)
        refit(
          columns, scaleSteps: columns.map { codes.value(row, $0) - zeroPoint },
          offsetSteps: columns.map { _ in 1 }, row: row, gradient: gradient, gram: gram
        ) { grid.refit(row, group, $0) }
      }
    }
  }

  public func refitUnits(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid) {
    guard let blocks = grid.format.superBlocks, let units = grid.units else { return }
    let perBlock = blocks.groups * grid.columnsPerGroup
    for row in 0..<codes.rows {
      for block in 0..<blocks.count(groups: grid.groups) {
        let columns = block * perBlock..<min((block + 1) * perBlock, codes.columns)
        let (unit, offsetUnit) = (units.scales.value(row, block), units.offsets?.value(row, block) ?? 0)
        refit(
          columns,
          scaleSteps: columns.map { column in
            let group = column / grid.columnsPerGroup
            let zeroPoint = grid.format.hasOwnOffsets ? 0 : grid.shifts.value(row, group)
            return grid.scales.value(row, group) * (codes.value(row, column) - zeroPoint) / unit
          },
          offsetSteps: columns.map { column in
            offsetUnit == 0 ? 0 : grid.shifts.value(row, column / grid.columnsPerGroup) / offsetUnit
          }, row: row, gradient: gradient, gram: gram
        ) { grid.refitUnits(row, block, $0) }
      }
    }
  }

  /// Moves a scale and an offset of some columns of a row, and the gradient with them.
  /// - Parameters:
  ///   - scaleSteps: what a step of the scale moves in each column, and `offsetSteps` what one of the offset does
  ///   - move: changes both by what the objective is around them, or neither
  private func refit(
    _ columns: Range<Int>, scaleSteps: [Double], offsetSteps: [Double], row: Int, gradient: Matrix,
    gram: Matrix, _ move: (RefitForms) -> (scale: Float, offset: Float)?
  ) {
    func image(_ direction: [Double]) -> [Double] {
      (0..<gradient.columns).map { other in
        sum(columns) { direction[$0 - columns.lowerBound] * gram.value($0, other) }
      }
    }
    let (scaleImage, offsetImage) = (image(scaleSteps), image(offsetSteps))
    var forms = RefitForms()
    for (index, column) in columns.enumerated() {
      forms.scaleSlope += scaleSteps[index] * gradient.value(row, column)
      forms.scaleCurvature += scaleSteps[index] * scaleImage[column]
      forms.offsetSlope += offsetSteps[index] * gradient.value(row, column)
      forms.offsetCurvature += offsetSteps[index] * offsetImage[column]
      forms.mixedCurvature += scaleSteps[index] * offsetImage[column]
    }
    guard let change = move(forms) else { return }
    for other in 0..<gradient.columns {
      gradient[row, other] -= Float(
        Double(change.scale) * scaleImage[other] + Double(change.offset) * offsetImage[other])
    }
  }

  public func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double] {
    (0..<codes.rows).map { row in
      sum(0..<codes.columns) { column in
        let error = weights.value(row, column) - grid.point(codes.value(row, column), row, column)
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

  public func mostCorrelated(_ count: Int, gram: Matrix) -> ColumnNeighbours {
    ColumnNeighbours(mostCorrelated: count, gram: gram)
  }

  public func searchGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    for row in 0..<weights.rows {
      for group in 0..<grid.groups {
        let columns = grid.columns(ofGroup: group)
        let values = columns.map { weights[row, $0] }
        let range = (low: values.min() ?? 0, high: values.max() ?? 0)
        let best = candidates.best(for: range, format: grid.format) { scale, zeroPoint, _ in
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
        grid.shifts[row, group] = best.shift
      }
    }
  }
}

extension ReferenceBackend: ComputeBackend {}

extension Grid {
  /// The code nearest to a weight.
  func nearest(_ value: Double, _ row: Int, _ column: Int) -> Double {
    let group = column / columnsPerGroup
    let (scale, shift) = (scales.value(row, group), shifts.value(row, group))
    let code = format.hasOwnOffsets ? (value - shift) / scale : value / scale + shift
    return min(max(code.rounded(.toNearestOrEven), 0), Double(format.maximumCode))
  }

  /// The weight that a code stands for.
  func point(_ code: Double, _ row: Int, _ column: Int) -> Double {
    let group = column / columnsPerGroup
    let (scale, shift) = (scales.value(row, group), shifts.value(row, group))
    return format.hasOwnOffsets ? scale * code + shift : scale * (code - shift)
  }
}
