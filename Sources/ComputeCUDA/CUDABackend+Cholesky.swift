import Compute
import Tensors

/// Rows of the factor that are made at a time.
private enum BlockRows {
  static let plain = 512
  /// Pivots that are chosen together, those smallest when the block begins: the more at a time, the worse the order. Up to
  /// 4,096 rows they come in 32 parts, as what a part costs is not its products; from 16,384 on in 64, as products of few
  /// rows are far from a device's rate.
  static func pivoted(_ size: Int) -> Int {
    min(max(min((size + 31) / 32, 128), size / 64 / 128 * 128), plain)
  }
  /// The first rows, whose products are taken off before all others.
  static let first = 128
  /// What one kernel factorizes.
  static let kernel = 64
  /// Rows whose products are taken off A together, at most.
  static let products = 4_096
  /// Columns that are solved for at a time.
  static let solve = 512
}

extension CUDABackend {
  public func factorizeCholesky(_ matrix: Matrix) throws(ComputeError) {
    let size = matrix.squareSize
    let steps = CholeskySteps(matrix, self, largestBlock: min(BlockRows.plain, size))
    for start in stride(from: 0, to: size, by: BlockRows.plain) {
      steps.finish(rows: start..<min(start + BlockRows.plain, size))
    }
    try steps.check()
  }

  public func factorizePivotedCholesky(
    _ matrix: Matrix, inOrder first: [Int], leading: Int
  ) throws(ComputeError) -> [Int] {
    let size = matrix.squareSize
    precondition(first.count == size && (0...size).contains(leading), "there are not as many rows")
    let blockRows = min(BlockRows.pivoted(size), size)
    let steps = CholeskySteps(matrix, self, largestBlock: blockRows)
    var order = first
    var variances = diagonal(of: matrix)
    let remaining = context.uploaded(variances)
    var start = 0
    while start < size {
      let end = start < leading ? leading : size
      let block = start..<min(start + blockRows, end)
      let left = context.downloaded(
        remaining.address + UInt64(start * 4), count: end - start, of: Float(0))
      guard context.failure == nil else { throw .notPositiveDefinite(pivot: start) }
      let chosen = left.indicesOfSmallest(block.count).map { $0 + start }
      let exchanges = block.exchanges(bringing: chosen)
      for (one, other) in exchanges {
        order.swapAt(one, other)
        variances.swapAt(one, other)
      }
      if !exchanges.isEmpty {
        let pairs = context.uploaded(exchanges.flatMap { [Int32($0.0), Int32($0.1)] })
        for (address, rows) in [(remaining.address, 1), (matrix.address, start)] {
          context.launch(
            .exchange_columns, elements: rows,
            [.address(address), .long(size), .long(rows), .address(pairs.address), .int(exchanges.count)])
        }
      }
      fillUpper(matrix, context.uploaded(order.map(Int32.init)), first: start, rows: block.count)
      steps.setDiagonal(Array(variances[block]), first: start)
      steps.finish(rows: block)
      let rest = size - block.upperBound
      context.launch(
        .subtract_squares, elements: rest,
        [
          .address(remaining.address + UInt64(block.upperBound * 4)),
          .address(matrix.operand.at(row: start, column: block.upperBound).address), .long(size),
          .long(block.count), .long(rest),
        ])
      start = block.upperBound
    }
    try steps.check()
    return order
  }

  public func solveCholesky(rows: Matrix, factor: Matrix) {
    let size = factor.squareSize
    precondition(rows.columns == size, "the shapes do not fit")
    let (x, r) = (rows.operand, factor.operand)
    let starts = Array(stride(from: 0, to: size, by: BlockRows.solve))
    for start in starts {
      let width = min(BlockRows.solve, size - start)
      context.multiply(
        x, r.at(column: start), into: x.at(column: start), rows: rows.rows, inner: start, columns: width,
        alpha: -1,
        beta: 1, isTF32: isTF32)
      context.solve(
        x.at(column: start), factor: r.at(row: start, column: start), rows: rows.rows, size: width,
        isTransposed: false)
    }
    for start in starts.reversed() {
      let width = min(BlockRows.solve, size - start)
      let end = start + width
      context.multiply(
        x.at(column: end), r.at(row: start, column: end).transposed, into: x.at(column: start),
        rows: rows.rows,
        inner: size - end, columns: width, alpha: -1, beta: 1, isTF32: isTF32)
      context.solve(
        x.at(column: start), factor: r.at(row: start, column: start), rows: rows.rows, size: width,
        isTransposed: true)
    }
  }
}

/// Rows of R after one another, each made of A and all rows before it.
///
/// What is left of a variance is a small difference of large numbers, and the first rows take most of it away. Products are
/// in fp32, and those of few rows at first: a sum over all rows would round each of its many terms to the size of the
/// largest, and at the widths of the largest models come out larger than the ridge.
private struct CholeskySteps {
  private let matrix: Matrix
  private let backend: CUDABackend
  /// The block on the diagonal while it is factorized: what is below it in the matrix belongs to others.
  private let corner: Matrix
  /// The first pivot that was not positive; −1 for none.
  private let status: DeviceMemory

  private var context: DeviceContext { backend.context }

  init(_ matrix: Matrix, _ backend: CUDABackend, largestBlock: Int) {
    self.matrix = matrix
    self.backend = backend
    corner = backend.makeMatrix(rows: largestBlock, columns: largestBlock)
    status = backend.context.uploaded([Int32(-1)])
  }

  func setDiagonal(_ values: [Float], first: Int) {
    let uploaded = context.uploaded(values)
    // The diagonal of a block is a column of a matrix whose rows are one element longer.
    context.launch(
      .copy_block, elements: values.count,
      [
        .address(matrix.operand.at(row: first, column: first).address), .long(matrix.columns + 1),
        .address(uploaded.address), .long(1), .long(values.count), .long(1), .int(0),
      ])
  }

  /// Makes rows of R of the same rows of A, given those before.
  func finish(rows: Range<Int>) {
    let (start, end, size) = (rows.lowerBound, rows.upperBound, matrix.columns)
    let a = matrix.operand
    let own = DeviceContext.Operand(address: corner.address, stride: rows.count)
    copyUpper(from: a.at(row: start, column: start), to: own, rows.count)
    subtractProducts(
      rowsAbove: start, a.at(column: start), rows.count, from: own, a.at(column: start), rows.count)
    factorize(own, size: rows.count, first: start)
    copyUpper(from: own, to: a.at(row: start, column: start), rows.count)
    subtractProducts(
      rowsAbove: start, a.at(column: start), rows.count, from: a.at(row: start, column: end),
      a.at(column: end),
      size - end)
    context.solveTransposed(own, a.at(row: start, column: end), size: rows.count, columns: size - end)
  }

  /// C ← C − LᵀR for so many rows of L and R, the first ones of the factor.
  private func subtractProducts(
    rowsAbove count: Int, _ left: DeviceContext.Operand, _ rows: Int, from c: DeviceContext.Operand,
    _ right: DeviceContext.Operand, _ columns: Int
  ) {
    var start = 0
    while start < count {
      let part = min(max(BlockRows.first, start), BlockRows.products, count - start)
      context.multiply(
        left.at(row: start).transposed, right.at(row: start), into: c, rows: rows, inner: part,
        columns: columns,
        alpha: -1, beta: 1, isTF32: false)
      start += part
    }
  }

  /// R of a block that stands alone.
  private func factorize(_ block: DeviceContext.Operand, size: Int, first: Int) {
    for start in stride(from: 0, to: size, by: BlockRows.kernel) {
      let width = min(BlockRows.kernel, size - start)
      let end = start + width
      let corner = block.at(row: start, column: start)
      context.launch(
        .factorize_block, blocks: (1, 1), threads: (256, 1),
        [
          .address(corner.address), .long(block.stride), .int(width), .address(status.address),
          .int(first + start),
        ])
      let right = block.at(row: start, column: end)
      context.solveTransposed(corner, right, size: width, columns: size - end)
      context.multiply(
        right.transposed, right, into: block.at(row: end, column: end), rows: size - end, inner: width,
        columns: size - end, alpha: -1, beta: 1, isTF32: false)
    }
  }

  private func copyUpper(from: DeviceContext.Operand, to: DeviceContext.Operand, _ size: Int) {
    context.launch(
      .copy_block, elements: size * size,
      [
        .address(to.address), .long(to.stride), .address(from.address), .long(from.stride), .long(size),
        .long(size),
        .int(1),
      ])
  }

  func check() throws(ComputeError) {
    let pivot = context.downloaded(status, count: 1, of: Int32(-1))[0]
    if pivot >= 0 { throw .notPositiveDefinite(pivot: Int(pivot)) }
  }
}

extension [Float] {
  /// The places of the smallest elements, smallest first; of equal ones the first.
  func indicesOfSmallest(_ wanted: Int) -> [Int] {
    var found: [Int] = []
    found.reserveCapacity(wanted + 1)
    for index in indices {
      let value = self[index]
      if found.count == wanted, let last = found.last, !(value < self[last]) { continue }
      var (low, high) = (0, found.count)
      while low < high {
        let middle = (low + high) / 2
        if value < self[found[middle]] { high = middle } else { low = middle + 1 }
      }
      found.insert(index, at: low)
      if found.count > wanted { found.removeLast() }
    }
    return found
  }
}

extension Range<Int> {
  /// The exchanges of pairs, one after the other, that bring the given places here in their order.
  func exchanges(bringing chosen: [Int]) -> [(Int, Int)] {
    // Where what stood at a place has gone.
    var moved: [Int: Int] = [:]
    var standing: [Int: Int] = [:]
    var result: [(Int, Int)] = []
    for (place, wanted) in zip(self, chosen) {
      let at = moved[wanted] ?? wanted
      if at == place { continue }
      let here = standing[place] ?? place
      result.append((place, at))
      (moved[here], standing[at]) = (at, here)
      (moved[wanted], standing[place]) = (place, wanted)
    }
    return result
  }
}
