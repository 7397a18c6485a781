import Compute
import Quantization
import Tensors

/// Where fewer than one of so many codes move, each takes its row of Σ off the gradient; else products do, which cost the
/// same whatever moves.
private let leastElementsPerMove = 300

extension CUDABackend: OutlierSweeps {
  public func roundToNearestPlane(
    _ weights: Matrix, outliers: SparseRows, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix,
    remainders: Matrix
  ) {
    grid.checkShapes(weights, remainders)
    roundToNearestPlane(
      weights, factor: factor, grid: grid, into: codes, remainders: remainders,
      held: marks(outliers, among: weights))
  }

  public func roundingRemainders(_ weights: Matrix, grid: Grid, into remainders: Matrix) {
    grid.checkShapes(weights, remainders)
    context.launch(
      .rounding_remainders, elements: weights.count,
      [.address(remainders.address), .address(weights.address)] + grid.addresses
        + [.float(Float(grid.format.maximumCode))] + grid.extents + [.long(weights.count)])
  }

  public func descendSparsely(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid
  ) -> Int {
    grid.checkShapes(codes, gradient)
    precondition(inverseDiagonal.count == codes.columns, "the shapes differ")
    let entries = entries(of: outliers, among: codes)
    let inverse = context.uploaded(inverseDiagonal)
    if let entries {
      let offsets = context.uploaded(outliers.offsets.map(Int64.init))
      context.launch(
        .descend_outliers, rows: codes.rows, width: codes.columns,
        [
          .address(entries.values), .address(entries.places.address), .address(offsets.address),
          .address(gradient.address), .address(gram.address), .address(inverse.address), .long(codes.columns),
        ])
    }
    let held = marks(entries, among: codes)
    let arguments: [DeviceContext.Argument] = [
      .address(inverse.address), .address(grid.scales.address), .long(grid.groups),
      .long(grid.columnsPerGroup),
      .float(Float(grid.format.maximumCode)), .long(codes.columns),
    ]
    let counts = context.uploaded([UInt64(0), UInt64(0)])
    context.launch(
      .count_movers, elements: codes.count,
      [.address(codes.address), .address(held?.address ?? 0), .address(gradient.address)] + arguments + [
        .long(codes.count), .address(counts.address),
      ])
    guard context.downloaded(counts, count: 1, of: UInt64(0))[0] < codes.count / leastElementsPerMove else {
      return descend(
        codes, areCodes: true, isQuantizing: true, held: held, gradient: gradient, gram: gram,
        inverseDiagonal: inverse, grid: grid)
    }
    context.launch(
      .descend_singles, rows: codes.rows, width: codes.columns,
      [
        .address(codes.address), .address(held?.address ?? 0), .address(gradient.address),
        .address(gram.address),
      ] + arguments + [.address(counts.address + 8)])
    return Int(context.downloaded(counts.address + 8, count: 1, of: UInt64(0))[0])
  }

  public func descendInPairs(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours,
    grid: Grid
  ) -> Int {
    grid.checkShapes(codes, gradient)
    precondition(gram.rows == codes.columns && gram.columns == codes.columns, "the shapes differ")
    let held = marks(outliers, among: codes)
    let columns = context.uploaded(neighbours.columns)
    let moved = context.uploaded([UInt64(0)])
    context.launch(
      .descend_pairs, rows: codes.rows, width: codes.columns,
      [
        .address(codes.address), .address(held?.address ?? 0), .address(gradient.address),
        .address(gram.address),
        .address(columns.address), .address(neighbours.gram.address), .address(neighbours.diagonal.address),
        .int(neighbours.count), .address(grid.scales.address), .long(grid.groups),
        .long(grid.columnsPerGroup),
        .float(Float(grid.format.maximumCode)), .long(codes.columns), .address(moved.address),
      ])
    return Int(context.downloaded(moved, count: 1, of: UInt64(0))[0])
  }

  public func multiplySampled(_ a: Matrix, symmetric b: Matrix, scale alpha: Float, into c: SparseRows) {
    precondition(b.squareSize == a.columns && c.rowCount == a.rows, "the shapes differ")
    guard let entries = entries(of: c, among: a) else { return }
    context.launch(
      .multiply_sampled, rows: entries.count, width: a.columns,
      [
        .address(entries.values), .address(entries.places.address), .address(a.address), .address(b.address),
        .float(alpha), .long(a.columns),
      ])
  }

  public func weighSquares(_ matrix: Matrix, by weights: [Float]) {
    precondition(weights.count == matrix.columns, "there is a weight for every column")
    let weights = context.uploaded(weights)
    context.launch(
      .weigh_squares, elements: matrix.count,
      [.address(matrix.address), .address(weights.address), .long(matrix.columns), .long(matrix.count)])
  }

  public func elements(of matrix: Matrix, atLeast threshold: Float) -> [(place: Int, value: Float)] {
    let found = context.scratch(bytes: matrix.rows * MemoryLayout<Int32>.stride)
    context.launch(
      .count_at_least, blocks: (matrix.rows, 1), threads: (32, 1),
      [.address(found.address), .address(matrix.address), .float(threshold), .long(matrix.columns)])
    let counts = context.downloaded(found, count: matrix.rows, of: Int32(0)).map(Int.init)
    var offsets: [Int64] = [0]
    for count in counts { offsets.append(offsets[offsets.count - 1] + Int64(count)) }
    let total = Int(offsets[counts.count])
    if total == 0 { return [] }
    let columns = context.scratch(bytes: total * MemoryLayout<Int32>.stride)
    let values = context.scratch(floats: total)
    let starts = context.uploaded(offsets)
    context.launch(
      .collect_at_least, blocks: (matrix.rows, 1), threads: (32, 1),
      [
        .address(columns.address), .address(values.address), .address(starts.address),
        .address(matrix.address),
        .float(threshold), .long(matrix.columns),
      ])
    let places = context.downloaded(columns, count: total, of: Int32(0))
    let elements = context.downloaded(values, count: total, of: Float(0))
    return counts.indices.flatMap { row in
      (Int(offsets[row])..<Int(offsets[row + 1])).map {
        (place: row * matrix.columns + Int(places[$0]), value: elements[$0])
      }
    }
  }

  public func addColumnSums(of matrix: Matrix, to sums: inout [Double]) {
    precondition(sums.count == matrix.columns, "there is a sum for every column")
    let memory = context.uploaded(sums)
    context.launch(
      .add_column_sums, elements: matrix.columns,
      [.address(memory.address), .address(matrix.address), .long(matrix.rows), .long(matrix.columns)])
    sums = context.downloaded(memory, count: sums.count, of: Double(0))
  }

  public func add(_ x: SparseRows, scale alpha: Float, to y: Matrix) {
    guard let entries = entries(of: x, among: y) else { return }
    context.launch(
      .add_sparse, elements: entries.count,
      [
        .address(y.address), .address(entries.values), .address(entries.places.address), .float(alpha),
        .long(entries.count),
      ])
  }

  public func gather(_ y: Matrix, into x: SparseRows) {
    guard let entries = entries(of: x, among: y) else { return }
    context.launch(
      .gather_sparse, elements: entries.count,
      [.address(entries.values), .address(y.address), .address(entries.places.address), .long(entries.count)])
  }

  public func clear(_ y: Matrix, at x: SparseRows) {
    guard let entries = entries(of: x, among: y) else { return }
    context.launch(
      .clear_sparse, elements: entries.count,
      [.address(y.address), .address(entries.places.address), .long(entries.count)])
  }

  public func roundOutliers(_ x: SparseRows) {
    let range = x.entryRange
    context.launch(
      .round_outliers, elements: range.count,
      [.address(x.values.address + UInt64(range.lowerBound * 4)), .long(range.count)])
  }

  // MARK: Entries

  /// The entries of some rows in the device's memory.
  private struct Entries {
    let places: DeviceMemory
    /// The address of the first one's value.
    let values: UInt64
    let count: Int
  }

  /// - Returns: nil where there are none
  private func entries(of rows: SparseRows, among matrix: Matrix) -> Entries? {
    precondition(rows.rowCount == matrix.rows, "the shapes differ")
    let range = rows.entryRange
    if range.isEmpty { return nil }
    var places: [Int64] = []
    places.reserveCapacity(range.count)
    rows.forEach { row, column, _ in places.append(Int64(row * matrix.columns + column)) }
    return Entries(
      places: context.uploaded(places), values: rows.values.address + UInt64(range.lowerBound * 4),
      count: range.count)
  }

  private func marks(_ rows: SparseRows, among matrix: Matrix) -> DeviceMemory? {
    marks(entries(of: rows, among: matrix), among: matrix)
  }

  /// A byte for every element of a matrix, 1 at the entries.
  private func marks(_ entries: Entries?, among matrix: Matrix) -> DeviceMemory? {
    guard let entries else { return nil }
    let words = (matrix.count + 3) / 4
    let marks = context.scratch(floats: words)
    context.fill(marks.address, with: 0, count: words)
    context.launch(
      .mark_places, elements: entries.count,
      [.address(marks.address), .address(entries.places.address), .long(entries.count)])
    return marks
  }
}

extension SparseRows {
  /// The indices of all entries.
  fileprivate var entryRange: Range<Int> {
    rowCount == 0 ? 0..<0 : entries(ofRow: 0).lowerBound..<entries(ofRow: rowCount - 1).upperBound
  }

  /// Where every row's entries begin, counted from the first one's, and where the last one's end.
  fileprivate var offsets: [Int] {
    let first = entryRange.lowerBound
    return [0] + (0..<rowCount).map { entries(ofRow: $0).upperBound - first }
  }
}
