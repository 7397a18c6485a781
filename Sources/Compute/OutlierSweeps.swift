import Quantization
import Tensors

/// The sweeps of solvers that keep outliers: entries whose weight is a code's value and a 16-bit float Ĥ more.
///
/// Matrices are those of ``GridSweeps``, and the outliers are those of the panel's rows.
public protocol OutlierSweeps: MatrixStorage {
  /// Nearest plane as in ``GridSweeps/roundToNearestPlane(_:factor:grid:into:)``, but an outlier keeps what
  /// rounding leaves of it, and so moves no other column's target.
  /// - Parameters:
  ///   - outliers: their places; values are not read
  ///   - remainders: for every entry, outlier or not, its moved target less the nearest grid point; written
  func roundToNearestPlane(
    _ weights: Matrix, outliers: SparseRows, factor: NearestPlaneFactor, grid: Grid,
    into codes: Matrix, remainders: Matrix)

  /// W − Q(W): what rounding every weight to its nearest grid point leaves.
  func roundingRemainders(_ weights: Matrix, grid: Grid, into remainders: Matrix)

  /// One pass of coordinate descent that pays for the coordinates that move, exact in the same order: over outliers,
  /// which move to the nearest float16 value, and then over all other codes. The codes of outliers stay.
  /// - Parameters:
  ///   - codes: changed
  ///   - outliers: Ĥ, float16 values; changed
  ///   - gradient: (W − Ŵ − Ĥ) Σ, kept up to date
  ///   - inverseDiagonal: 1 / Σ_jj, 0 for a dead column
  /// - Returns: the number of codes that changed.
  func descendSparsely(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float],
    grid: Grid
  ) -> Int

  /// One pass of pair moves over the codes that are no outliers': a column takes its second nearest code where a step
  /// of a neighbour makes up for more than that costs. Reaches codes that no single move does.
  /// - Parameters: as for the single moves
  /// - Returns: the number of pairs that moved.
  func descendInPairs(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours,
    grid: Grid
  ) -> Int

  /// Adds α·A·B to C at the places of C alone: the sampled product.
  /// - Parameters:
  ///   - a: `[m, k]`
  ///   - b: `[k, k]`, symmetric
  ///   - c: `m` rows
  func multiplySampled(_ a: Matrix, symmetric b: Matrix, scale alpha: Float, into c: SparseRows)

  /// x ← weights_j x² for every element x, j its column.
  func weighSquares(_ matrix: Matrix, by weights: [Float])

  /// The elements that are at least `threshold`, by their places, counted row after row, in rising order.
  func elements(of matrix: Matrix, atLeast threshold: Float) -> [(place: Int, value: Float)]

  /// Adds the sum of every column to `sums`.
  func addColumnSums(of matrix: Matrix, to sums: inout [Double])

  /// Y ← Y + αX.
  func add(_ x: SparseRows, scale alpha: Float, to y: Matrix)

  /// X ← Y at the places of X.
  func gather(_ y: Matrix, into x: SparseRows)

  /// Y ← 0 at the places of X.
  func clear(_ y: Matrix, at x: SparseRows)

  /// Rounds every value to the nearest finite float16: what the outputs store.
  func roundOutliers(_ x: SparseRows)
}

/// What outliers alone need, in its plain form: by the host.
extension OutlierSweeps {
  public func addColumnSums(of matrix: Matrix, to sums: inout [Double]) {
    precondition(sums.count == matrix.columns, "there is a sum for every column")
    withHostMatrix(matrix, for: .reading) { host in
      host.withSpan { span in
        for row in 0..<host.rows {
          for column in sums.indices { sums[column] += Double(span[row * host.columns + column]) }
        }
      }
    }
  }

  public func add(_ x: SparseRows, scale alpha: Float = 1, to y: Matrix) {
    withHostMatrix(x.values, for: .reading) { values in
      withHostMatrix(y, for: .changing) { y in
        x.forEach { row, column, entry in y[row, column] += alpha * values[0, entry] }
      }
    }
  }

  public func gather(_ y: Matrix, into x: SparseRows) {
    withHostMatrix(x.values, for: .changing) { values in
      withHostMatrix(y, for: .reading) { y in
        x.forEach { row, column, entry in values[0, entry] = y[row, column] }
      }
    }
  }

  public func clear(_ y: Matrix, at x: SparseRows) {
    withHostMatrix(y, for: .changing) { y in x.forEach { row, column, _ in y[row, column] = 0 } }
  }

  public func roundOutliers(_ x: SparseRows) {
    withHostMatrix(x.values, for: .changing) { values in
      x.forEach { _, _, entry in values[0, entry] = values[0, entry].storableOutlier }
    }
  }
}

/// The same passes without outliers.
extension OutlierSweeps {
  public func descendSparsely(
    codes: Matrix, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid
  ) -> Int {
    descendSparsely(
      codes: codes, outliers: SparseRows(rows: codes.rows, everyRow: [], of: self), gradient: gradient,
      gram: gram, inverseDiagonal: inverseDiagonal, grid: grid)
  }

  public func descendInPairs(
    codes: Matrix, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours, grid: Grid
  ) -> Int {
    descendInPairs(
      codes: codes, outliers: SparseRows(rows: codes.rows, everyRow: [], of: self), gradient: gradient,
      gram: gram, neighbours: neighbours, grid: grid)
  }
}

/// A matrix of few entries a row. Like a ``Matrix`` it refers to its values: a copy shares them.
public struct SparseRows: Sendable {
  /// The column of every entry, rising within a row.
  public let columns: [Int32]
  /// The value of every entry, `[1, count]`.
  public let values: Matrix
  /// Row r holds the entries `rowOffsets[r] ..< rowOffsets[r + 1]`, counted from the slice's start.
  private let rowOffsets: ArraySlice<Int>

  /// Zeros at given places.
  /// - Parameters:
  ///   - rowOffsets: one more than there are rows, from 0 to the number of entries
  ///   - storage: where the values are
  public init(columns: [Int32], rowOffsets: [Int], of storage: some MatrixStorage) {
    precondition(rowOffsets.first == 0 && rowOffsets.last == columns.count, "offsets do not fit the entries")
    self.columns = columns
    values = storage.makeMatrix(rows: 1, columns: columns.count)
    self.rowOffsets = rowOffsets[...]
  }

  /// Zeros in the same columns of every row.
  public init(rows: Int, everyRow columns: [Int32], of storage: some MatrixStorage) {
    self.init(
      columns: (0..<rows).flatMap { _ in columns }, rowOffsets: (0...rows).map { $0 * columns.count },
      of: storage)
  }

  /// Zeros at places counted row after row, in rising order.
  public init(rows: Int, width: Int, places: [Int], of storage: some MatrixStorage) {
    var rowOffsets = [Int](repeating: 0, count: rows + 1)
    for place in places { rowOffsets[place / width + 1] += 1 }
    for row in 0..<rows { rowOffsets[row + 1] += rowOffsets[row] }
    self.init(columns: places.map { Int32($0 % width) }, rowOffsets: rowOffsets, of: storage)
  }

  private init(columns: [Int32], values: Matrix, rowOffsets: ArraySlice<Int>) {
    self.columns = columns
    self.values = values
    self.rowOffsets = rowOffsets
  }

  public var rowCount: Int { rowOffsets.count - 1 }

  /// The indices of a row's entries in `columns` and `values`.
  public func entries(ofRow row: Int) -> Range<Int> {
    let index = rowOffsets.startIndex + row
    return rowOffsets[index]..<rowOffsets[index + 1]
  }

  /// The values of a row's entries, `[1, count]`.
  public func values(ofRow row: Int) -> Matrix {
    let entries = entries(ofRow: row)
    return values.reshaped(rows: values.columns, columns: 1).rows(entries)
      .reshaped(rows: 1, columns: entries.count)
  }

  /// Some rows, over the same values.
  public func rows(_ range: Range<Int>) -> SparseRows {
    let start = rowOffsets.startIndex
    return SparseRows(
      columns: columns, values: values,
      rowOffsets: rowOffsets[start + range.lowerBound...start + range.upperBound])
  }

  /// Calls `body` with the row, the column and the index of every entry.
  public func forEach(_ body: (_ row: Int, _ column: Int, _ entry: Int) -> Void) {
    for row in 0..<rowCount {
      for entry in entries(ofRow: row) { body(row, Int(columns[entry]), entry) }
    }
  }
}

extension Float {
  /// The nearest finite float16 value: what the outputs store of an outlier.
  public var storableOutlier: Float {
    min(max(self, -65_504), 65_504).rounded(to: .float16)
  }
}
