import COpenBLAS
import Compute
import Tensors

/// A rectangle of a matrix, in place: what one call of OpenBLAS reads or writes.
///
/// The calls check their shapes, so that everything above works without a pointer.
struct MatrixBlock {
  private let matrix: Matrix
  private let firstRow: Int
  private let firstColumn: Int
  let rows: Int
  let columns: Int

  init(_ matrix: Matrix, rows: Range<Int>, columns: Range<Int>) {
    precondition(rows.lowerBound >= 0 && rows.upperBound <= matrix.rows, "rows outside the matrix")
    precondition(
      columns.lowerBound >= 0 && columns.upperBound <= matrix.columns, "columns outside the matrix")
    self.matrix = matrix
    firstRow = rows.lowerBound
    firstColumn = columns.lowerBound
    self.rows = rows.count
    self.columns = columns.count
  }

  /// The first element; rows are `stride` elements apart.
  @unsafe var pointer: UnsafeMutablePointer<Float> {
    unsafe matrix.pointer + (firstRow * matrix.columns + firstColumn)
  }

  var stride: Int { matrix.columns }

  // OpenBLAS asks for a leading dimension of at least 1 of empty matrices, too.
  private var leadingDimension: Int32 { Int32(max(stride, 1)) }

  /// C ← α·op(A)·op(B) + β·C for this block C.
  func multiply(
    _ a: MatrixBlock, transposingA: Bool = false, _ b: MatrixBlock, transposingB: Bool = false,
    scale alpha: Float = 1, keeping beta: Float
  ) {
    let inner = transposingA ? a.rows : a.columns
    precondition((transposingA ? a.columns : a.rows) == rows, "A and C differ in their rows")
    precondition((transposingB ? b.rows : b.columns) == columns, "B and C differ in their columns")
    precondition((transposingB ? b.columns : b.rows) == inner, "A and B differ in their inner dimension")
    unsafe cblas_sgemm(
      CblasRowMajor, transposingA ? CblasTrans : CblasNoTrans, transposingB ? CblasTrans : CblasNoTrans,
      Int32(rows), Int32(columns), Int32(inner), alpha, a.pointer, a.leadingDimension, b.pointer,
      b.leadingDimension, beta, pointer, leadingDimension)
  }

  /// Adds α·AᵀA to one triangle of this square block.
  func addGram(_ a: MatrixBlock, scale alpha: Float = 1, to triangle: Triangle) {
    precondition(rows == columns && a.columns == rows, "a Gram matrix has the columns of A")
    unsafe cblas_ssyrk(
      CblasRowMajor, triangle == .upper ? CblasUpper : CblasLower, CblasTrans, Int32(rows), Int32(a.rows),
      alpha,
      a.pointer, a.leadingDimension, 1, pointer, leadingDimension)
  }

  enum Triangle { case upper, lower }

  /// X ← R⁻ᵀ·X for this block X and an upper triangular R.
  func divideFromLeft(byTransposeOf factor: MatrixBlock) {
    precondition(factor.rows == rows && factor.columns == rows, "the factor has another order")
    unsafe cblas_strsm(
      CblasRowMajor, CblasLeft, CblasUpper, CblasTrans, CblasNonUnit, Int32(rows), Int32(columns), 1,
      factor.pointer, factor.leadingDimension, pointer, leadingDimension)
  }

  /// X ← X·R⁻¹, or X·R⁻ᵀ, for this block X and an upper triangular R.
  func divide(by factor: MatrixBlock, transposed: Bool) {
    precondition(factor.rows == columns && factor.columns == columns, "the factor has another order")
    unsafe cblas_strsm(
      CblasRowMajor, CblasRight, CblasUpper, transposed ? CblasTrans : CblasNoTrans, CblasNonUnit,
      Int32(rows), Int32(columns), 1, factor.pointer, factor.leadingDimension, pointer,
      leadingDimension)
  }

  /// R of A = RᵀR, in place of the upper triangle of this square block A.
  /// - Throws: the pivot, counted from this block's first row
  func factorizeCholesky() throws(ComputeError) {
    precondition(rows == columns, "only a square block has a Cholesky factor")
    var order = Int32(rows)
    var leading = leadingDimension
    var info: Int32 = 0
    // To LAPACK, which counts in columns, the rows of an upper triangle are the columns of a lower one.
    unsafe spotrf_("L", &order, pointer, &leading, &info)
    if info > 0 { throw .notPositiveDefinite(pivot: Int(info) - 1) }
    // A NaN passes LAPACK's test of the pivots.
    for pivot in 0..<rows where !(unsafe pointer[pivot * stride + pivot] > 0) {
      throw .notPositiveDefinite(pivot: pivot)
    }
  }
}

extension Matrix {
  /// All of the matrix.
  var whole: MatrixBlock { MatrixBlock(self, rows: 0..<rows, columns: 0..<columns) }

  func block(rows: Range<Int>, columns: Range<Int>) -> MatrixBlock {
    MatrixBlock(self, rows: rows, columns: columns)
  }
}
