import Quantization
import Tensors

/// The sweeps over the columns of a panel of rows with which solvers move weights onto their grids.
///
/// Matrices of a panel are `[panelRows, inFeatures]`, and its grid has as many rows; rows are independent of
/// one another. Codes are whole numbers, kept as fp32 while a solver works. Σ is `[inFeatures, inFeatures]`
/// with both triangles filled.
public protocol GridSweeps: MatrixStorage {
  /// The nearest code of every weight.
  func round(_ weights: Matrix, grid: Grid, into codes: Matrix)

  /// Ŵ = s·(q − z), or s·q + o.
  func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix)

  /// Babai's nearest plane, which is GPTQ in the reverse of the factor's order: columns take their nearest
  /// code one after the other, each target moved by what the errors of earlier columns ask of it.
  func roundToNearestPlane(_ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix)

  /// One dense pass of coordinate descent: every column of Ŵ moves to the minimiser of the objective, or to
  /// the grid point nearest to it.
  /// - Parameters:
  ///   - weights: W
  ///   - approximation: Ŵ, changed
  ///   - isQuantizing: false leaves the columns off the grid
  /// - Returns: the number of values that changed.
  func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int

  /// Moves every scale, and every offset, to the least-squares optimum for its codes, group after
  /// group, rounded to what the outputs store, wherever that lowers the objective.
  /// - Parameters:
  ///   - images: W Σ if it is known and Ŵ is all on the grid: where a group is a whole row, it saves a product with Σ
  ///   - gradient: (W − Ŵ) Σ, kept up to date
  func refitScales(codes: Matrix, images: Matrix?, gradient: Matrix, gram: Matrix, grid: Grid)

  /// The same for the units that the scales, and the offsets, of a super-block are multiples of, super-block after
  /// super-block; the multiples stay.
  func refitUnits(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid)

  /// What every row costs, by its gradient: Σ_j (w_j − ŵ_j) G_j.
  /// - Parameters:
  ///   - weights: W
  ///   - gradient: G = (W − Ŵ) Σ
  func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double]

  /// y ← y − x.
  func subtract(_ x: Matrix, from y: Matrix)

  /// The dot product of every row of `a` with the same row of `b`.
  func rowDots(_ a: Matrix, _ b: Matrix) -> [Double]

  /// For every row and group the candidate grid with the least Σ_j importance_j (w_j − ŵ_j)². Scales and offsets of
  /// super-blocks are no multiples of anything yet: see ``chooseGrid(_:importance:candidates:into:)``.
  /// - Parameters:
  ///   - importance: one weight a column
  ///   - candidates: shrink factors of the group's range
  func searchGrid(_ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid)

  /// For every column the `count` columns of largest correlation with it, or all others if there are fewer.
  func mostCorrelated(_ count: Int, gram: Matrix) -> ColumnNeighbours
}

extension GridSweeps {
  /// Grids to be chosen, in the backend's memory.
  public func makeGrid(_ format: GridFormat, outFeatures: Int, inFeatures: Int) -> Grid {
    Grid(format: format, outFeatures: outFeatures, inFeatures: inFeatures) {
      makeMatrix(rows: $0, columns: $1)
    }
  }

  /// A copy of grids in the host's memory.
  public func download(_ grid: Grid) -> Grid { grid.map { download($0) } }

  /// A copy in the backend's memory of grids in the host's.
  public func upload(_ grid: Grid) -> Grid { grid.map { upload($0) } }
}

/// The triangular factor that nearest-plane rounding works with.
public struct NearestPlaneFactor: Sendable {
  /// `order[k]` is the column at position k; positions are rounded last to first.
  public let order: [Int]
  /// R with every row divided by its diagonal, `[inFeatures, inFeatures]`, in that order; what is not above the diagonal
  /// is not its own.
  public let unitFactor: Matrix
  /// R_kk² by column of the linear: the variance of an input given those that are rounded after it.
  public let conditionalVariances: [Float]

  public init(order: [Int], unitFactor: Matrix, conditionalVariances: [Float]) {
    self.order = order
    self.unitFactor = unitFactor
    self.conditionalVariances = conditionalVariances
  }
}

/// For every column the other columns that pair moves try with it.
public struct ColumnNeighbours: Sendable {
  /// Neighbours of a column.
  public let count: Int
  /// `[inFeatures, count]`
  public let columns: [Int32]
  /// Σ_jk at the same places, `[inFeatures, count]`, in falling magnitude.
  public let gram: Matrix
  /// Σ_kk at the same places, `[inFeatures, count]`.
  public let diagonal: Matrix

  public init(count: Int, columns: [Int32], gram: Matrix, diagonal: Matrix) {
    self.count = count
    self.columns = columns
    self.gram = gram
    self.diagonal = diagonal
  }

  /// The `count` columns of largest correlation with each, found in the host's memory.
  /// - Parameter forEach: calls its second argument with parts of `0 ..< columns`, several at a time if it likes
  public init(
    mostCorrelated count: Int, gram: Matrix,
    forEach: (_ columns: Int, _ body: (Range<Int>) -> Void) -> Void = { $1(0..<$0) }
  ) {
    let size = gram.rows
    let count = min(count, size - 1)
    let inverseRoots = (0..<size).map { gram[$0, $0] > 0 ? 1 / gram[$0, $0].squareRoot() : 0 }
    let values = Matrix(rows: size, columns: count)
    let diagonal = Matrix(rows: size, columns: count)
    columns = unsafe [Int32](unsafeUninitializedCapacity: size * count) { columns, filled in
      let columns = unsafe columns
      forEach(size) { part in
        var largest = LargestElements(count: count)
        for column in part {
          largest.clear()
          gram.rows(column..<column + 1).withSpan { row in
            for other in 0..<size where other != column {
              largest.offer(abs(row[other]) * inverseRoots[other], at: other)
            }
          }
          let others = largest.indices.sorted { (abs(gram[column, $1]), $0) < (abs(gram[column, $0]), $1) }
          for (place, other) in others.enumerated() {
            unsafe columns[column * count + place] = Int32(other)
            values[column, place] = gram[column, other]
            diagonal[column, place] = gram[other, other]
          }
        }
      }
      filled = size * count
    }
    self.count = count
    self.gram = values
    self.diagonal = diagonal
  }
}

/// The largest of the elements that have been offered, in falling order; of equal elements the first.
private struct LargestElements {
  let count: Int
  private(set) var indices: [Int] = []
  private var values: [Float] = []
  /// What an element has to exceed.
  private var bound = -Float.infinity

  init(count: Int) { self.count = count }

  mutating func clear() {
    indices.removeAll(keepingCapacity: true)
    values.removeAll(keepingCapacity: true)
    bound = count > 0 ? -.infinity : .infinity
  }

  mutating func offer(_ value: Float, at index: Int) {
    guard value > bound else { return }
    let place = values.firstIndex { $0 < value } ?? values.count
    values.insert(value, at: place)
    indices.insert(index, at: place)
    if values.count > count {
      values.removeLast()
      indices.removeLast()
    }
    if values.count == count { bound = values[count - 1] }
  }
}
