import CKernels
import Tensors

/// A matrix in bfloat16, in the order in which the kernels of `bf16_products.h` read it: panels of 32 rows.
struct PackedOperand {
  static let panel = qe_bf16_panel
  private static let step = qe_bf16_step

  let rows: Int
  /// The dimension that a product sums over.
  let inner: Int
  /// The memory, `[panels, floats of a panel]`
  let values: Matrix

  /// A matrix of zeros, for rows that are stored some at a time.
  init(zerosOfRows rows: Int, inner: Int) {
    self.init(
      rows: rows, inner: inner, values: Matrix(rows: Self.panels(rows), columns: Self.floats(inner)))
  }

  /// A matrix that is packed whole before it is read.
  init(uninitializedRows rows: Int, inner: Int) {
    self.init(
      rows: rows, inner: inner,
      values: Matrix(uninitializedRows: Self.panels(rows), columns: Self.floats(inner)))
  }

  private static func panels(_ rows: Int) -> Int { rows.dividedRoundingUp(by: panel) }
  private static func floats(_ inner: Int) -> Int { steps(inner) * step / 2 }

  init(rows: Int, inner: Int, values: Matrix) {
    self.rows = rows
    self.inner = inner
    self.values = values
  }

  static func steps(_ inner: Int) -> Int { qe_bf16_steps(inner) }

  var steps: Int { Self.steps(inner) }

  /// A matrix in the first elements of some memory.
  init(rows: Int, inner: Int, memory: Matrix) {
    self.init(
      rows: rows, inner: inner,
      values: memory.prefix(rows: Self.panels(rows), columns: Self.floats(inner)))
  }

  /// The same memory for a matrix with fewer rows or a shorter inner dimension.
  func reshaped(rows: Int, inner: Int) -> PackedOperand {
    PackedOperand(rows: rows, inner: inner, memory: values)
  }

  /// The elements of a ``Matrix`` that a packed one takes.
  static func elements(rows: Int, inner: Int) -> Int { panels(rows) * floats(inner) }

  /// Where the panel begins that `row`, a whole number of panels, is the first of.
  /// - Parameter step: the step of the panel
  @unsafe func pointer(row: Int, step: Int = 0) -> UnsafeMutablePointer<UInt16> {
    precondition(row % Self.panel == 0 && row < max(rows, 1) && step < max(steps, 1), "no such panel")
    return unsafe UnsafeMutableRawPointer(values.pointer + row / Self.panel * values.columns)
      .assumingMemoryBound(to: UInt16.self) + step * Self.step
  }

  /// C ← A Bᵀ, or C + A Bᵀ, for this A and a block C.
  /// - Parameters:
  ///   - rows: those of A that C has; they begin a panel
  ///   - columns: the rows of B that are C's columns; they begin a panel
  ///   - inner: so many elements of the inner dimension; those of A that are beyond are zero
  ///   - part: with `qe_bf16_lower` what is above C's diagonal stays as it is
  func multiply(
    rows: Range<Int>, _ other: PackedOperand, columns: Range<Int>, inner: Int? = nil,
    into block: MatrixBlock, keeping: Bool, _ part: qe_bf16_part = qe_bf16_all, by kernels: BFloat16Kernels
  ) {
    let inner = inner ?? other.inner
    precondition(inner <= self.inner && inner <= other.inner, "A and B have fewer elements")
    precondition(block.rows == rows.count && block.columns == columns.count, "C has another shape")
    if rows.isEmpty || columns.isEmpty { return }
    unsafe qe_bf16_multiply(
      kernels.kind, rows.count, columns.count, Self.steps(inner), pointer(row: rows.lowerBound), steps,
      other.pointer(row: columns.lowerBound), other.steps, block.pointer, block.stride, keeping ? 1 : 0, part)
  }
}
