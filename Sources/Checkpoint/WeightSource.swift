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
}

extension WeightSource {
  /// The whole of a tensor, `[out, in]`; a vector gives one row.
  /// - Throws: ``CheckpointError/wrongShape(tensor:found:expected:)`` if its extents are not
  ///   `expected`, and what ``read(_:rows:into:)`` throws.
  public func matrix(_ tensor: String, shape expected: [Int]) throws -> Matrix {
    guard let found = shape(of: tensor) else { throw CheckpointError.unknownTensor(tensor) }
    guard found == expected else {
      throw CheckpointError.wrongShape(tensor: tensor, found: found, expected: expected)
    }
    let rows = found.count > 1 ? found[0] : 1
    let columns = (found.count > 1 ? found.dropFirst() : found[...]).reduce(1, *)
    let matrix = Matrix(rows: rows, columns: columns)
    // In panels of about four megabytes, as the source holds a panel in its own type meanwhile.
    let panelRows = max(1, 1_048_576 / max(columns, 1))
    for start in stride(from: 0, to: rows, by: panelRows) {
      let range = start..<min(start + panelRows, rows)
      try read(tensor, rows: range, into: matrix.rows(range))
    }
    return matrix
  }

  /// A vector of `count` elements.
  /// - Throws: As ``matrix(_:shape:)`` does.
  public func vector(_ tensor: String, count: Int) throws -> [Float] {
    try matrix(tensor, shape: [count]).elements
  }
}
