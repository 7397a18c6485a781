import CKernels
import Compute
import Quantization
import Tensors

/// Rows that one task transposes and rounds: small enough that a task's block of columns stays in the
/// first-level cache, large enough for its matrix products to run well.
private let rowsPerTask = 96
/// Columns of a block: inside it a column's error reaches the others one by one, outside by a matrix product.
private let columnsPerBlock = 48

extension OpenBLASBackend {
  public func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    roundToNearestPlane(weights, holding: nil, factor: factor, grid: grid, into: codes)
  }

  public func roundToNearestPlane(
    _ weights: Matrix, outliers: SparseRows, factor: NearestPlaneFactor, grid: Grid,
    into codes: Matrix, remainders: Matrix
  ) {
    precondition(
      remainders.columns == weights.columns && remainders.rows == weights.rows
        && outliers.rowCount == weights.rows, "the shapes differ")
    roundToNearestPlane(
      weights, holding: (outliers, remainders), factor: factor, grid: grid, into: codes)
  }

  private func roundToNearestPlane(
    _ weights: Matrix, holding held: (outliers: SparseRows, remainders: Matrix)?,
    factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    let columns = weights.columns
    precondition(
      factor.order.count == columns && codes.columns == columns && codes.rows == weights.rows
        && grid.outFeatures == weights.rows && grid.inFeatures == columns, "the shapes differ")
    let order = factor.order.map(Int32.init)
    var positions = order
    for (position, column) in factor.order.enumerated() { positions[column] = Int32(position) }
    let groups = grid.groupIndices(order: factor.order)
    let tasks = Division(weights.rows, blocksOfAtMost: rowsPerTask, multipleOf: 8)
    let scratch = { Scratch(rows: tasks.size, columns: columns, holdsOutliers: held != nil) }
    team.run(chunks: tasks.count, scratch: scratch) { task, scratch in
      let rows = tasks[task]
      let scratch = scratch.rows(rows.count)
      transpose(weights.rows(rows), into: scratch.stored)
      reorder(scratch.stored, by: order, into: scratch.targets)
      if let held, let isOutlier = scratch.isOutlier {
        isOutlier.fill(0)
        held.outliers.rows(rows).forEach { row, column, _ in isOutlier[Int(positions[column]), row] = 1 }
      }
      round(scratch, factor: factor.unitFactor, groups: groups, grid: TransposedGrid(grid.rows(rows)))
      reorder(scratch.codes, by: positions, into: scratch.stored)
      transpose(scratch.stored, into: codes.rows(rows))
      if let held, let remainders = scratch.remainders {
        reorder(remainders, by: positions, into: scratch.stored)
        transpose(scratch.stored, into: held.remainders.rows(rows))
      }
    }
  }

  /// Rounds a task's targets, block after block from the last position to the first.
  private func round(_ scratch: Scratch, factor: Matrix, groups: [Int32], grid: TransposedGrid) {
    let (columns, count) = (scratch.targets.rows, scratch.targets.columns)
    for end in stride(from: columns, to: 0, by: -columnsPerBlock) {
      let block = max(0, end - columnsPerBlock)..<end
      let feedback = scratch.feedback.prefix(block.count)
      feedback.whole.multiply(
        factor.block(rows: block, columns: end..<columns), scratch.errors.rows(end..<columns).whole,
        keeping: 0)
      let corner = factor.block(rows: block, columns: block)
      let targets = scratch.targets.rows(block)
      let errors = scratch.errors.rows(block)
      let codes = scratch.codes.rows(block)
      unsafe groups[block].withUnsafeBufferPointer { groups in
        guard let groups = groups.baseAddress else { return }
        if let isOutlier = scratch.isOutlier?.rows(block), let remainders = scratch.remainders?.rows(block) {
          unsafe qe_nearest_plane_outliers_block(
            count, block.count, corner.pointer, columns, groups, grid.kernelView, targets.pointer,
            isOutlier.pointer, feedback.pointer, errors.pointer, codes.pointer, remainders.pointer)
        } else {
          unsafe qe_nearest_plane_block(
            count, block.count, corner.pointer, columns, groups, grid.kernelView, targets.pointer,
            feedback.pointer, errors.pointer, codes.pointer)
        }
      }
    }
  }

  /// Row k of the result is row `order[k]` of the source.
  private func reorder(_ source: Matrix, by order: [Int32], into destination: Matrix) {
    unsafe qe_reorder_rows(source.rows, source.columns, source.pointer, order, destination.pointer)
  }
}

/// What a thread works in, `[columns, rows]` throughout and made once: a task's fresh memory would cost more in
/// page faults than the rounding itself.
private struct Scratch {
  /// By column as stored: weights, then results.
  let stored: Matrix
  // By position.
  let targets: Matrix
  let errors: Matrix
  let codes: Matrix
  let feedback: Matrix
  let isOutlier: Matrix?
  let remainders: Matrix?

  init(rows: Int, columns: Int, holdsOutliers: Bool) {
    func matrix() -> Matrix { Matrix(rows: columns, columns: rows) }
    stored = matrix()
    targets = matrix()
    errors = matrix()
    codes = matrix()
    feedback = Matrix(rows: columnsPerBlock, columns: rows)
    isOutlier = holdsOutliers ? matrix() : nil
    remainders = holdsOutliers ? matrix() : nil
  }

  private init(of whole: Scratch, rows: Int) {
    func part(_ matrix: Matrix) -> Matrix { matrix.prefix(rows: matrix.rows, columns: rows) }
    stored = part(whole.stored)
    targets = part(whole.targets)
    errors = part(whole.errors)
    codes = part(whole.codes)
    feedback = part(whole.feedback)
    isOutlier = whole.isOutlier.map(part)
    remainders = whole.remainders.map(part)
  }

  /// The same memory for so many rows.
  func rows(_ count: Int) -> Scratch { Scratch(of: self, rows: count) }
}
