import CKernels
import COpenBLAS
import Compute
import Quantization
import Tensors

/// Rows that one chunk of a blocked sweep transposes and works on: small enough that a chunk's block of
/// columns stays in the first-level cache, large enough for its matrix products to run well.
private let rowsPerChunk = 96
/// Columns of a block: inside it a column's move reaches the others one by one, outside by a matrix product.
private let columnsPerBlock = 48
/// Rows of a scale refit's products.
private let rowsPerRefit = 192
/// Rows that one task of a row-wise operation takes.
private let rowsPerTask = 16

extension OpenBLASBackend: ComputeBackend {
  public func round(_ weights: Matrix, grid: Grid, into codes: Matrix) {
    let maximum = Float(grid.format.maximumCode)
    unsafe forEachGroup(of: weights, grid: grid, into: codes) { count, source, row, group, destination in
      unsafe qe_round(
        count, source, grid.scales[row, group], grid.zeroPoint(row, group), maximum, destination)
    }
  }

  public func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix) {
    unsafe forEachGroup(of: codes, grid: grid, into: weights) { count, source, row, group, destination in
      unsafe qe_dequantize(count, source, grid.line(row, group), destination)
    }
  }

  public func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int {
    let columns = weights.columns
    precondition(
      gram.rows == columns && gram.columns == columns && inverseDiagonal.count == columns
        && approximation.rows == weights.rows && approximation.columns == columns
        && grid.outFeatures == weights.rows, "the shapes differ")
    let groups = grid.groupIndices(order: Array(0..<columns))
    let moved = Counter()
    forEachChunk(of: weights.rows) { rows in
      let count = rows.count
      let chunkGrid = TransposedGrid(grid.rows(rows))
      let values = transposed(approximation.rows(rows))
      let errors = transposed(weights.rows(rows))
      unsafe qe_axpy(values.count, -1, values.pointer, errors.pointer)
      let gradient = Matrix(rows: columnsPerBlock, columns: count)
      var movedHere = 0
      for start in stride(from: 0, to: columns, by: columnsPerBlock) {
        let width = min(columnsPerBlock, columns - start)
        unsafe cblas_sgemm(
          CblasRowMajor, CblasNoTrans, CblasNoTrans, Int32(width), Int32(count), Int32(columns), 1,
          gram.pointer + start * columns, Int32(columns), errors.pointer, Int32(count), 0,
          gradient.pointer, Int32(count))
        unsafe inverseDiagonal.withUnsafeBufferPointer { inverse in
          unsafe groups.withUnsafeBufferPointer { group in
            guard let inverse = inverse.baseAddress, let group = group.baseAddress
            else { return }
            movedHere += unsafe qe_descend_block(
              count, width, gram.pointer + start * columns + start, columns, inverse + start,
              group + start, chunkGrid.kernelView, isQuantizing ? 1 : 0, gradient.pointer,
              values.pointer + start * count, errors.pointer + start * count)
          }
        }
      }
      moved.add(movedHere)
      transpose(values, into: approximation.rows(rows))
    }
    return moved.value
  }

  public func refitScales(codes: Matrix, images: Matrix?, gradient: Matrix, gram: Matrix, grid: Grid) {
    let columns = codes.columns
    precondition(
      gram.rows == columns && gram.columns == columns && gradient.rows == codes.rows
        && gradient.columns == columns && grid.outFeatures == codes.rows, "the shapes differ")
    let chunks = Division(codes.rows, blocksOfAtMost: rowsPerRefit)
    let scratch = {
      (
        steps: Matrix(rows: chunks.size, columns: grid.columnsPerGroup),
        stepImages: Matrix(rows: chunks.size, columns: columns),
        ones: Matrix(rows: 1, columns: columns)
      )
    }
    let hasOwnOffsets = grid.format.hasOwnOffsets
    team.run(chunks: chunks.count, scratch: scratch) { chunk, scratch in
      let rows = chunks[chunk]
      for group in 0..<grid.groups {
        let members = grid.columns(ofGroup: group)
        let steps = scratch.steps.prefix(rows: rows.count, columns: members.count)
        for (chunkRow, row) in rows.enumerated() {
          let zeroPoint = grid.line(row, group).zero_point
          for (index, column) in members.enumerated() {
            unsafe steps.pointer[chunkRow * members.count + index] =
              codes.pointer[row * columns + column] - zeroPoint
          }
        }
        let stepImages = scratch.stepImages.prefix(rows.count)
        let known = grid.groups == 1 && !hasOwnOffsets ? images?.rows(rows) : nil
        if let known {
          // W Σ − G = Ŵ Σ, the steps' image times the scale.
          stepImages.copy(from: known)
          unsafe qe_axpy(known.count, -1, gradient.rows(rows).pointer, stepImages.pointer)
        } else {
          stepImages.whole.multiply(steps.whole, gram.rows(members).whole, keeping: 0)
        }
        var offsetCurvature = 0.0
        if hasOwnOffsets {
          // The same for every row: what a step of the offset moves.
          scratch.ones.fill(0)
          for column in members {
            unsafe qe_axpy(columns, 1, gram.pointer + column * columns, scratch.ones.pointer)
          }
          offsetCurvature = unsafe qe_sum(members.count, scratch.ones.pointer + members.lowerBound)
        }
        for (chunkRow, row) in rows.enumerated() {
          let direction = unsafe steps.pointer + chunkRow * members.count
          let moved = unsafe stepImages.pointer + chunkRow * columns
          let residual = unsafe gradient.pointer + row * columns
          let unit = known == nil ? 1 : 1 / Double(grid.scales[row, group])
          var forms = RefitForms()
          forms.scaleSlope = unsafe qe_dot(members.count, direction, residual + members.lowerBound)
          forms.scaleCurvature =
            unit * (unsafe qe_dot(members.count, direction, moved + members.lowerBound))
          if hasOwnOffsets {
            forms.offsetSlope = unsafe qe_sum(members.count, residual + members.lowerBound)
            forms.offsetCurvature = offsetCurvature
            forms.mixedCurvature = unsafe qe_sum(members.count, moved + members.lowerBound)
          }
          guard let change = grid.refit(row, group, forms) else { continue }
          unsafe qe_axpy(columns, -Float(Double(change.scale) * unit), moved, residual)
          if change.offset != 0 { unsafe qe_axpy(columns, -change.offset, scratch.ones.pointer, residual) }
        }
      }
    }
  }

  public func refitUnits(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid) {
    guard let blocks = grid.format.superBlocks, let units = grid.units else { return }
    let (columns, perBlock) = (codes.columns, blocks.groups * grid.columnsPerGroup)
    let chunks = Division(codes.rows, blocksOfAtMost: rowsPerRefit)
    let scratch = {
      (0..<4).map { Matrix(rows: chunks.size, columns: $0 < 2 ? perBlock : columns) }
    }
    team.run(chunks: chunks.count, scratch: scratch) { chunk, scratch in
      let rows = chunks[chunk]
      for block in 0..<blocks.count(groups: grid.groups) {
        let members = block * perBlock..<min((block + 1) * perBlock, columns)
        /// What a step of the scales' unit moves, and one of the offsets'.
        let steps = scratch[..<2].map { $0.prefix(rows: rows.count, columns: members.count) }
        let images = scratch[2...].map { $0.prefix(rows.count) }
        for (chunkRow, row) in rows.enumerated() {
          let (unit, offsetUnit) = (units.scales[row, block], units.offsets?[row, block] ?? 0)
          for group in block * blocks.groups..<min((block + 1) * blocks.groups, grid.groups) {
            let line = grid.line(row, group)
            let (multiple, offset) = (line.scale / unit, offsetUnit == 0 ? 0 : line.offset / offsetUnit)
            for column in grid.columns(ofGroup: group) {
              let place = chunkRow * members.count + column - members.lowerBound
              unsafe steps[0].pointer[place] =
                multiple * (codes.pointer[row * columns + column] - line.zero_point)
              unsafe steps[1].pointer[place] = offset
            }
          }
        }
        let kinds = units.offsets == nil ? 1 : 2
        for kind in 0..<kinds {
          images[kind].whole.multiply(steps[kind].whole, gram.rows(members).whole, keeping: 0)
        }
        for (chunkRow, row) in rows.enumerated() {
          let residual = unsafe gradient.pointer + row * columns
          func dot(_ kind: Int, _ other: UnsafePointer<Float>) -> Double {
            unsafe qe_dot(members.count, steps[kind].pointer + chunkRow * members.count, other)
          }
          func image(_ kind: Int) -> UnsafeMutablePointer<Float> {
            unsafe images[kind].pointer + chunkRow * columns
          }
          var forms = RefitForms()
          forms.scaleSlope = unsafe dot(0, residual + members.lowerBound)
          forms.scaleCurvature = unsafe dot(0, image(0) + members.lowerBound)
          if kinds == 2 {
            forms.offsetSlope = unsafe dot(1, residual + members.lowerBound)
            forms.offsetCurvature = unsafe dot(1, image(1) + members.lowerBound)
            forms.mixedCurvature = unsafe dot(1, image(0) + members.lowerBound)
          }
          guard let change = grid.refitUnits(row, block, forms) else { continue }
          unsafe qe_axpy(columns, -change.scale, image(0), residual)
          if change.offset != 0 { unsafe qe_axpy(columns, -change.offset, image(1), residual) }
        }
      }
    }
  }

  public func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double] {
    precondition(
      weights.rows == codes.rows && weights.columns == codes.columns && gradient.rows == codes.rows
        && gradient.columns == codes.columns && grid.outFeatures == codes.rows
        && grid.inFeatures == codes.columns, "the shapes differ")
    return mapRows(codes.rows) { row in
      (0..<grid.groups).reduce(0) { sum, group in
        let columns = grid.columns(ofGroup: group)
        let start = row * codes.columns + columns.lowerBound
        let share = unsafe qe_row_objective(
          columns.count, weights.pointer + start, codes.pointer + start, grid.line(row, group),
          gradient.pointer + start)
        return sum + share
      }
    }
  }

  public func subtract(_ x: Matrix, from y: Matrix) {
    precondition(x.rows == y.rows && x.columns == y.columns, "the shapes differ")
    forEachTask(of: x.rows) { rows in
      unsafe qe_axpy(
        rows.count * x.columns, -1, x.pointer + rows.lowerBound * x.columns,
        y.pointer + rows.lowerBound * y.columns)
    }
  }

  public func rowDots(_ a: Matrix, _ b: Matrix) -> [Double] {
    precondition(a.rows == b.rows && a.columns == b.columns, "the shapes differ")
    return mapRows(a.rows) { row in
      unsafe qe_dot(a.columns, a.pointer + row * a.columns, b.pointer + row * b.columns)
    }
  }

  public func searchGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    let columns = weights.columns
    precondition(
      importance.count == columns && grid.inFeatures == columns && grid.outFeatures == weights.rows,
      "the shapes differ")
    let format = grid.format
    unsafe importance.withUnsafeBufferPointer { importance in
      guard let importance = importance.baseAddress else { return }
      forEachTask(of: weights.rows) { rows in
        for row in rows {
          for group in 0..<grid.groups {
            let start = group * grid.columnsPerGroup
            let width = min(grid.columnsPerGroup, columns - start)
            let values = unsafe weights.pointer + row * columns + start
            let range = unsafe UnsafeBufferPointer(start: values, count: width).range
            let best = candidates.best(for: range, format: format) { scale, zeroPoint, limit in
              unsafe qe_weighted_rounding_error(
                width, values, importance + start, scale, zeroPoint, Float(format.maximumCode), limit)
            }
            grid.scales[row, group] = best.scale
            grid.shifts[row, group] = best.shift
          }
        }
      }
    }
  }

  public func mostCorrelated(_ count: Int, gram: Matrix) -> ColumnNeighbours {
    ColumnNeighbours(mostCorrelated: count, gram: gram) { columns, body in forEachTask(of: columns, body) }
  }

  func forEachChunk(of rows: Int, _ body: (Range<Int>) -> Void) {
    forEachRange(of: rows, size: rowsPerChunk, body)
  }

  func forEachTask(of rows: Int, _ body: (Range<Int>) -> Void) {
    forEachRange(of: rows, size: rowsPerTask, body)
  }

  func forEachRange(of rows: Int, size: Int, _ body: (Range<Int>) -> Void) {
    team.run(chunks: (rows + size - 1) / size) { chunk in
      body(chunk * size..<min((chunk + 1) * size, rows))
    }
  }

  private func forEachGroup(
    of source: Matrix, grid: Grid, into destination: Matrix,
    _ body: (
      _ count: Int, _ source: UnsafePointer<Float>, _ row: Int, _ group: Int,
      _ destination: UnsafeMutablePointer<Float>
    ) -> Void
  ) {
    precondition(
      source.rows == destination.rows && source.columns == destination.columns
        && grid.outFeatures == source.rows && grid.inFeatures == source.columns,
      "the shapes differ")
    forEachTask(of: source.rows) { rows in
      for row in rows {
        for group in 0..<grid.groups {
          let columns = grid.columns(ofGroup: group)
          let start = row * source.columns + columns.lowerBound
          unsafe body(
            columns.count, source.pointer + start, row, group, destination.pointer + start)
        }
      }
    }
  }

  /// One value of every row.
  private func mapRows(_ rows: Int, _ value: (_ row: Int) -> Double) -> [Double] {
    unsafe [Double](unsafeUninitializedCapacity: rows) { values, count in
      let values = unsafe values
      forEachTask(of: rows) { task in
        for row in task { unsafe values[row] = value(row) }
      }
      count = rows
    }
  }

  func transposed(_ matrix: Matrix) -> Matrix {
    let result = Matrix(rows: matrix.columns, columns: matrix.rows)
    transpose(matrix, into: result)
    return result
  }

  func transpose(_ source: Matrix, into destination: Matrix) {
    unsafe qe_transpose(
      source.rows, source.columns, source.pointer, source.columns, destination.pointer,
      destination.columns)
  }
}

/// The grids of a chunk of rows with rows side by side, as the blocked kernels read them.
struct TransposedGrid {
  private let scales: Matrix
  private let inverseScales: Matrix
  private let offsets: Matrix
  private let zeroPoints: Matrix
  private let zeroCodes: Matrix
  private let maximumCode: Float

  init(_ grid: Grid) {
    scales = Matrix(rows: grid.groups, columns: grid.outFeatures)
    inverseScales = Matrix(rows: grid.groups, columns: grid.outFeatures)
    offsets = Matrix(rows: grid.groups, columns: grid.outFeatures)
    zeroCodes = Matrix(rows: grid.groups, columns: grid.outFeatures)
    zeroPoints = Matrix(rows: grid.groups, columns: grid.outFeatures)
    maximumCode = Float(grid.format.maximumCode)
    for row in 0..<grid.outFeatures {
      for group in 0..<grid.groups {
        let line = grid.line(row, group)
        scales[group, row] = line.scale
        inverseScales[group, row] = 1 / line.scale
        zeroPoints[group, row] = line.zero_point
        offsets[group, row] = line.offset
        zeroCodes[group, row] = grid.zeroPoint(row, group)
      }
    }
  }

  @unsafe var kernelView: qe_grid {
    unsafe qe_grid(
      scales: scales.pointer, inverse_scales: inverseScales.pointer, zero_points: zeroPoints.pointer,
      offsets: offsets.pointer, zero_codes: zeroCodes.pointer, maximum_code: maximumCode)
  }
}

extension ColumnNeighbours {
  func withKernelView(_ body: (qe_neighbours) -> Void) {
    unsafe columns.withUnsafeBufferPointer { columns in
      unsafe body(
        qe_neighbours(
          count: count, columns: columns.baseAddress, gram: gram.pointer, diagonal: diagonal.pointer))
    }
  }
}

extension Grid {
  /// What the codes of a row and group stand for.
  func line(_ row: Int, _ group: Int) -> qe_line {
    let shift = shifts[row, group]
    return qe_line(
      scale: scales[row, group], zero_point: format.hasOwnOffsets ? 0 : shift,
      offset: format.hasOwnOffsets ? shift : 0)
  }

  func largestScale(ofRow row: Int) -> Float {
    (0..<groups).reduce(0) { max($0, scales[row, $1]) }
  }

  /// The scale of every column of a row.
  func expandScales(ofRow row: Int, into expanded: Matrix) {
    for group in 0..<groups {
      let columns = columns(ofGroup: group)
      unsafe (expanded.pointer + columns.lowerBound).update(
        repeating: scales[row, group], count: columns.count)
    }
  }

  /// The group of the column at every position of `order`.
  func groupIndices(order: [Int]) -> [Int32] {
    order.map { Int32($0 / columnsPerGroup) }
  }
}
