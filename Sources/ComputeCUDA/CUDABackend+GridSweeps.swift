import Compute
import Quantization
import Tensors

/// Columns of a block: inside it a column's move reaches the others one by one, outside by a matrix product.
let sweepColumns = 128
/// Columns whose moves are taken to all others by one product; those between them by smaller ones.
let sweepWindow = 1_024
/// Rows of a block of threads.
let sweepRows = 32

extension CUDABackend: GridSweeps {
  public func round(_ weights: Matrix, grid: Grid, into codes: Matrix) {
    grid.checkShapes(weights, codes)
    context.launch(
      .round_to_grid, elements: weights.count,
      [.address(codes.address), .address(weights.address)] + grid.addresses
        + [.float(Float(grid.format.maximumCode))] + grid.extents + [.long(weights.count)])
  }

  public func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix) {
    grid.checkShapes(codes, weights)
    context.launch(
      .dequantize, elements: codes.count,
      [.address(weights.address), .address(codes.address)] + grid.addresses + grid.extents + [
        .long(codes.count)
      ])
  }

  public func subtract(_ x: Matrix, from y: Matrix) { add(x, factor: -1, into: y) }

  public func rowDots(_ a: Matrix, _ b: Matrix) -> [Double] {
    precondition(a.rows == b.rows && a.columns == b.columns, "the shapes differ")
    let sums = context.scratch(bytes: a.rows * MemoryLayout<Double>.stride)
    context.launch(
      .row_dots, rows: a.rows, width: a.columns,
      [.address(sums.address), .address(a.address), .address(b.address), .long(a.columns)])
    return context.downloaded(sums, count: a.rows, of: Double(0))
  }

  public func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double] {
    grid.checkShapes(codes, weights)
    grid.checkShapes(codes, gradient)
    let sums = context.scratch(bytes: codes.rows * MemoryLayout<Double>.stride)
    context.launch(
      .row_objectives, rows: codes.rows, width: codes.columns,
      [
        .address(sums.address), .address(codes.address), .address(weights.address),
        .address(gradient.address),
      ]
        + grid.addresses + grid.extents)
    return context.downloaded(sums, count: codes.rows, of: Double(0))
  }

  public func searchGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    grid.checkShapes(weights, weights)
    precondition(importance.count == weights.columns, "there is a weight for every column")
    let format = grid.format
    let importance = context.uploaded(importance)
    let shrinks = context.uploaded(candidates.shrinks)
    context.launch(
      .search_grid, rows: weights.rows * grid.groups, width: grid.columnsPerGroup,
      grid.addresses + [
        .address(weights.address), .address(importance.address), .address(shrinks.address),
        .int(candidates.shrinks.count), .int(candidates.isIndependent ? 1 : 0),
        .float(Float(format.maximumCode)),
        .float(Float(format.middleCode)), .int(format.isSymmetric ? 1 : 0),
        .int(format.hasSignedScales ? 1 : 0), .int(format.superBlocks == nil ? 0 : 1),
        .int(format.scaleTypeNumbers),
      ] + grid.extents)
  }

  public func mostCorrelated(_ count: Int, gram: Matrix) -> ColumnNeighbours {
    let size = gram.squareSize
    let count = max(0, min(count, size - 1))
    let values = makeMatrix(rows: size, columns: count)
    let diagonals = makeMatrix(rows: size, columns: count)
    let found = context.scratch(bytes: size * count * MemoryLayout<Int32>.stride)
    let roots = context.uploaded(diagonal(of: gram).map { $0 > 0 ? 1 / $0.squareRoot() : 0 })
    context.launch(
      .most_correlated, rows: count == 0 ? 0 : size, width: size,
      [
        .address(found.address), .address(values.address), .address(diagonals.address),
        .address(gram.address),
        .address(roots.address), .long(size), .int(count),
      ])
    return ColumnNeighbours(
      count: count, columns: context.downloaded(found, count: size * count, of: Int32(0)), gram: values,
      diagonal: diagonals)
  }

  public func refitScales(codes: Matrix, images: Matrix?, gradient: Matrix, gram: Matrix, grid: Grid) {
    grid.checkShapes(codes, gradient)
    precondition(gram.rows == codes.columns && gram.columns == codes.columns, "the shapes differ")
    let format = grid.format
    let types = format.scaleTypeNumbers
    if let images, grid.groups == 1, !format.hasOwnOffsets, grid.units == nil {
      return context.launch(
        .refit_row, rows: codes.rows, width: codes.columns,
        [.address(codes.address), .address(images.address), .address(gradient.address)]
          + grid.addresses.dropLast()
          + [.int(types), .long(codes.columns)])
    }
    let (columns, perGroup) = (codes.columns, grid.columnsPerGroup)
    let groupImages = uninitialized(rows: codes.rows, columns: min(perGroup, columns))
    let blocks = format.superBlocks
    let stored: [DeviceContext.Argument] = [
      .address(grid.units?.scales.address ?? 0), .address(grid.units?.offsets?.address ?? 0), .int(types),
      .int(blocks?.scaleMultiples.lowerBound ?? 0), .int(blocks?.scaleMultiples.upperBound ?? 0),
      .int(blocks?.offsetMultiples?.upperBound ?? 0), .float(Float(format.middleCode)),
    ]
    forEachWindow(of: columns, blocks: min(perGroup, columns), gradient: gradient, gram: gram) {
      block, changes in
      let group = block.lowerBound / perGroup
      context.launch(
        .group_steps, elements: codes.rows * block.count,
        [.address(changes.address), .long(changes.stride), .address(codes.address)]
          + grid.addresses.dropFirst() + [
            .long(group), .long(grid.groups), .long(block.lowerBound), .long(block.count),
            .long(columns), .long(codes.rows),
          ])
      context.multiply(
        changes, gram.operand.at(row: block.lowerBound, column: block.lowerBound),
        into: .init(address: groupImages.address, stride: block.count), rows: codes.rows, inner: block.count,
        columns: block.count, isTF32: isTF32)
      context.launch(
        .refit_group, rows: codes.rows, width: block.count,
        [
          .address(changes.address), .long(changes.stride), .address(groupImages.address),
          .address(gradient.address), .address(gram.address),
        ] + grid.addresses + stored + [
          .long(group / (blocks?.groups ?? 1)), .long(grid.units?.scales.columns ?? 0), .long(group),
          .long(grid.groups), .long(block.lowerBound), .long(block.count), .long(columns),
        ])
    }
  }

  public func refitUnits(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid) {
    guard let blocks = grid.format.superBlocks, let units = grid.units else { return }
    grid.checkShapes(codes, gradient)
    let (rows, columns) = (codes.rows, codes.columns)
    let perBlock = min(blocks.groups * grid.columnsPerGroup, columns)
    let images = uninitialized(rows: rows, columns: perBlock)
    let ofOffsets = units.offsets.map { _ in
      (
        steps: uninitialized(rows: rows, columns: perBlock),
        images: uninitialized(rows: rows, columns: perBlock)
      )
    }
    forEachWindow(of: columns, blocks: perBlock, gradient: gradient, gram: gram) { block, changes in
      let place: [DeviceContext.Argument] = [
        .long(block.lowerBound / perBlock), .long(units.scales.columns), .long(grid.columnsPerGroup),
        .long(grid.groups), .long(block.lowerBound), .long(block.count), .long(columns),
      ]
      let storedUnits: [DeviceContext.Argument] = [
        .address(units.scales.address), .address(units.offsets?.address ?? 0),
      ]
      context.launch(
        .unit_steps, elements: rows * block.count,
        [
          .address(changes.address), .long(changes.stride), .address(ofOffsets?.steps.address ?? 0),
          .address(codes.address),
        ] + grid.addresses + storedUnits + place + [.long(rows)])
      let gramBlock = gram.operand.at(row: block.lowerBound, column: block.lowerBound)
      context.multiply(
        changes, gramBlock, into: .init(address: images.address, stride: block.count), rows: rows,
        inner: block.count, columns: block.count, isTF32: isTF32)
      if let ofOffsets {
        context.multiply(
          .init(address: ofOffsets.steps.address, stride: block.count), gramBlock,
          into: .init(address: ofOffsets.images.address, stride: block.count), rows: rows,
          inner: block.count, columns: block.count, isTF32: isTF32)
      }
      context.launch(
        .refit_unit, rows: rows, width: block.count,
        [
          .address(changes.address), .long(changes.stride), .address(images.address),
          .address(ofOffsets?.steps.address ?? 0), .address(ofOffsets?.images.address ?? 0),
          .address(gradient.address),
        ] + grid.addresses + storedUnits + place)
    }
  }

  public func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int {
    grid.checkShapes(weights, approximation)
    let gradient = uninitialized(rows: weights.rows, columns: weights.columns)
    let errors = copy(of: weights)
    subtract(approximation, from: errors)
    multiply(errors, gram, transposingB: false, scale: 1, into: gradient, keeping: 0)
    precondition(inverseDiagonal.count == weights.columns, "the shapes differ")
    return descend(
      approximation, areCodes: false, isQuantizing: isQuantizing, held: nil, gradient: gradient, gram: gram,
      inverseDiagonal: context.uploaded(inverseDiagonal), grid: grid)
  }

  /// One pass over the columns, block after block.
  /// - Parameters:
  ///   - values: what moves: codes, or Ŵ
  ///   - held: a byte an entry, 1 for those that stay
  ///   - gradient: kept up to date
  /// - Returns: the number of values that changed
  func descend(
    _ values: Matrix, areCodes: Bool, isQuantizing: Bool, held: DeviceMemory?, gradient: Matrix, gram: Matrix,
    inverseDiagonal: DeviceMemory, grid: Grid
  ) -> Int {
    let (rows, columns) = (values.rows, values.columns)
    precondition(gram.rows == columns && gram.columns == columns, "the shapes differ")
    let moved = context.uploaded([UInt64(0)])
    forEachWindow(of: columns, blocks: sweepColumns, gradient: gradient, gram: gram) { block, changes in
      let start = block.lowerBound
      context.launch(
        .descend_block, blocks: ((rows + sweepRows - 1) / sweepRows, 1), threads: (sweepRows, 1),
        [
          .address(values.operand.at(column: start).address),
          .address(held.map { $0.address + UInt64(start) } ?? 0),
          .address(gradient.operand.at(column: start).address), .long(columns),
          .address(gram.operand.at(row: start, column: start).address), .long(columns),
          .address(inverseDiagonal.address + UInt64(start * 4)),
        ] + grid.addresses + [
          .long(grid.groups), .int(start), .int(grid.columnsPerGroup), .float(Float(grid.format.maximumCode)),
          .int(areCodes ? 1 : 0), .int(isQuantizing ? 1 : 0), .address(changes.address),
          .long(changes.stride),
          .int(block.count), .long(rows), .address(moved.address),
        ])
    }
    return Int(context.downloaded(moved, count: 1, of: UInt64(0))[0])
  }

  /// Calls `body` with block after block of columns and has it write the changes of Ŵ there, `[rows, block]`; then takes
  /// them off the gradient: at once where the next blocks of the same window need it, everywhere else when the window is
  /// done, so that few products read and write the whole of it.
  private func forEachWindow(
    of columns: Int, blocks width: Int, gradient: Matrix, gram: Matrix,
    _ body: (_ block: Range<Int>, _ changes: DeviceContext.Operand) -> Void
  ) {
    let rows = gradient.rows
    let window = max(1, sweepWindow / width) * width
    let changes = uninitialized(rows: rows, columns: min(window, columns))
    for start in stride(from: 0, to: columns, by: window) {
      let end = min(start + window, columns)
      for first in stride(from: start, to: end, by: width) {
        let block = first..<min(first + width, end)
        let own = changes.operand.at(column: first - start)
        body(block, own)
        context.multiply(
          own, gram.operand.at(row: first, column: start), into: gradient.operand.at(column: start),
          rows: rows,
          inner: block.count, columns: end - start, alpha: -1, beta: 1, isTF32: isTF32)
      }
      for rest in [0..<start, end..<columns] {
        context.multiply(
          changes.operand, gram.operand.at(row: start, column: rest.lowerBound),
          into: gradient.operand.at(column: rest.lowerBound), rows: rows, inner: end - start,
          columns: rest.count,
          alpha: -1, beta: 1, isTF32: isTF32)
      }
    }
  }

  public func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    roundToNearestPlane(weights, factor: factor, grid: grid, into: codes, remainders: nil, held: nil)
  }

  /// The same blocks and windows, last to first.
  func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix, remainders: Matrix?,
    held: DeviceMemory?
  ) {
    let (rows, columns) = (weights.rows, weights.columns)
    grid.checkShapes(weights, codes)
    precondition(factor.order.count == columns, "the shapes differ")
    let order = context.uploaded(factor.order.map(Int32.init))
    let unit = factor.unitFactor.operand
    let feedback = makeMatrix(rows: rows, columns: columns)
    let errors = uninitialized(rows: rows, columns: min(sweepWindow, columns))
    for windowEnd in stride(from: columns, to: 0, by: -sweepWindow) {
      let start = max(0, windowEnd - sweepWindow)
      for end in stride(from: windowEnd, to: start, by: -sweepColumns) {
        let first = max(start, end - sweepColumns)
        let own = errors.operand.at(column: first - start)
        context.launch(
          .nearest_plane_block, blocks: ((rows + sweepRows - 1) / sweepRows, 1), threads: (sweepRows, 1),
          [
            .address(weights.address), .address(codes.address), .address(remainders?.address ?? 0),
            .address(held?.address ?? 0), .long(columns), .address(order.address + UInt64(first * 4)),
            .address(unit.at(row: first, column: first).address), .long(columns),
          ] + grid.addresses + [
            .long(grid.groups), .int(grid.columnsPerGroup), .float(Float(grid.format.maximumCode)),
            .address(feedback.operand.at(column: first).address), .long(columns), .address(own.address),
            .long(own.stride), .int(end - first), .long(rows),
          ])
        // What the block's errors ask of the positions before it in the window.
        context.multiply(
          own, unit.at(row: start, column: first).transposed, into: feedback.operand.at(column: start),
          rows: rows,
          inner: end - first, columns: first - start, beta: 1, isTF32: isTF32)
      }
      context.multiply(
        errors.operand, unit.at(column: start).transposed, into: feedback.operand, rows: rows,
        inner: windowEnd - start, columns: start, beta: 1, isTF32: isTF32)
    }
  }
}

extension Grid {
  /// Scales, shifts, and whether those are offsets.
  var addresses: [DeviceContext.Argument] {
    [.address(scales.address), .address(shifts.address), .int(format.hasOwnOffsets ? 1 : 0)]
  }

  /// Columns, columns of a group, and groups.
  var extents: [DeviceContext.Argument] { [.long(inFeatures), .long(columnsPerGroup), .long(groups)] }

  func checkShapes(_ one: Matrix, _ other: Matrix) {
    precondition(
      one.rows == other.rows && one.columns == other.columns && outFeatures == one.rows
        && inFeatures == one.columns,
      "the shapes differ")
  }
}

extension GridFormat {
  /// The types that scales are rounded through, as kernels count them.
  var scaleTypeNumbers: Int {
    scaleTypes.reversed().reduce(0) { numbers, type in
      switch type {
      case .float16: numbers << 4 | 1
      case .bfloat16: numbers << 4 | 2
      default: numbers
      }
    }
  }
}
