import Tensors

/// Where weights come from, in fp32, some rows at a time.
///
/// A vector counts as one row; a tensor of more than two extents is a matrix whose rows its first
/// extent counts.
public protocol WeightSource: Sendable {
  /// The extents of a tensor, or nil if there is none of that name.
  func shape(of tensor: String) -> [Int]?

  /// Fills `panel`, `[rows.count, columns]`, with the given rows of a tensor.
  /// - Throws: If there is no such tensor, or if a value is NaN or infinite.
  func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws

  /// Lends the given rows as they are stored, if they lie together in a float type that a device converts by itself.
  /// Whether every value is finite is left to the reader.
  /// - Returns: whether `body` was called
  /// - Throws: If there is no such tensor
  func lend(_ tensor: String, rows: Range<Int>, _ body: (DType, RawSpan) -> Void) throws -> Bool

  /// Has the operating system begin to read a tensor that will soon be asked for.
  func willNeed(_ tensor: String)

  /// Has the operating system forget what it keeps of a tensor that has been read for the last time in a while.
  func forget(_ tensor: String)
}

extension WeightSource {
  public func lend(_ tensor: String, rows: Range<Int>, _ body: (DType, RawSpan) -> Void) throws -> Bool {
    false
  }

  public func willNeed(_ tensor: String) {}

  public func forget(_ tensor: String) {}

  /// Reads a tensor, `[out, in]`, in panels of about four megabytes; a vector gives one row.
  /// - Parameter body: called with every panel and its rows, in order; the panel's memory is used again for the next
  /// - Throws: ``CheckpointError/wrongShape(tensor:found:expected:)`` if its extents are not
  ///   `expected`, and what ``read(_:rows:into:)`` throws.
  public func forEachPanel(
    of tensor: String, shape expected: [Int], _ body: (_ rows: Range<Int>, _ panel: Matrix) throws -> Void
  ) throws {
    let (columns, panels) = try panels(of: tensor, shape: expected)
    let panel = Matrix(rows: panels.first?.count ?? 0, columns: columns)
    for range in panels {
      try read(tensor, rows: range, into: panel.prefix(range.count))
      try body(range, panel.prefix(range.count))
    }
  }

  /// The whole of a tensor, `[out, in]`; a vector gives one row.
  /// - Throws: ``CheckpointError/wrongShape(tensor:found:expected:)`` if its extents are not
  ///   `expected`, and what ``read(_:rows:into:)`` throws.
  public func matrix(_ tensor: String, shape expected: [Int]) throws -> Matrix {
    let (columns, panels) = try panels(of: tensor, shape: expected)
    let matrix = Matrix(rows: panels.last?.upperBound ?? 0, columns: columns)
    for range in panels {
      try read(tensor, rows: range, into: matrix.rows(range))
    }
    return matrix
  }

  /// How a tensor, `[out, in]`, is best read: a source holds a panel in its own type meanwhile.
  /// - Returns: the columns, and the rows of panels of about four megabytes in fp32
  /// - Throws: ``CheckpointError/wrongShape(tensor:found:expected:)`` if its extents are not `expected`
  public func panels(
    of tensor: String, shape expected: [Int]
  ) throws -> (columns: Int, rows: [Range<Int>]) {
    guard let found = shape(of: tensor) else { throw CheckpointError.unknownTensor(tensor) }
    guard found == expected else {
      throw CheckpointError.wrongShape(tensor: tensor, found: found, expected: expected)
    }
    let rows = found.count > 1 ? found[0] : 1
    let columns = (found.count > 1 ? found.dropFirst() : found[...]).reduce(1, *)
    let panelRows = max(1, 1_048_576 / max(columns, 1))
    return (columns, (0..<rows).parts(of: panelRows))
  }

  /// A vector of `count` elements.
  /// - Throws: As ``matrix(_:shape:)`` does.
  public func vector(_ tensor: String, count: Int) throws -> [Float] {
    try matrix(tensor, shape: [count]).elements
  }
}
