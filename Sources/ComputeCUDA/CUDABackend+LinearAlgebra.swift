import Compute
import Tensors

/// Rows and columns of a block of a symmetric sum; the blocks on the diagonal are summed up elsewhere.
private let gramBlock = 2_048
/// Rows that a kernel reorders in one launch, for grids that devices take.
private let rowsAtOnce = 4_096

extension CUDABackend: LinearAlgebra {
  public func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float
  ) {
    precondition(
      a.rows == c.rows && a.columns == (transposingB ? b.columns : b.rows), "the shapes do not fit")
    precondition((transposingB ? b.rows : b.columns) == c.columns, "the shapes do not fit")
    context.multiply(
      a.operand, transposingB ? b.operand.transposed : b.operand, into: c.operand, rows: a.rows,
      inner: a.columns,
      columns: c.columns, alpha: alpha, beta: beta, isTF32: isTF32)
  }

  public func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix) {
    let size = inputs.columns
    precondition(gram.rows == size && gram.columns == size, "the shapes do not fit")
    let x = rounded(inputs, to: operands)
    let corner = uninitialized(rows: min(size, gramBlock), columns: min(size, gramBlock))
    for start in stride(from: 0, to: size, by: gramBlock) {
      let width = min(gramBlock, size - start)
      let columns = x.operand.at(column: start)
      // On the diagonal: what is above it belongs to others.
      context.multiply(
        columns.transposed, columns, into: .init(address: corner.address, stride: width), rows: width,
        inner: inputs.rows, columns: width, isTF32: isTF32)
      context.launch(
        .add_lower, elements: width * width,
        [
          .address(gram.operand.at(row: start, column: start).address), .long(size), .address(corner.address),
          .long(width),
        ])
      let below = start + width
      context.multiply(
        x.operand.at(column: below).transposed, columns, into: gram.operand.at(row: below, column: start),
        rows: size - below, inner: inputs.rows, columns: width, beta: 1, isTF32: isTF32)
    }
  }

  public func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix) {
    precondition(a.rows == b.rows, "the shapes do not fit")
    precondition(product.rows == a.columns && product.columns == b.columns, "the shapes do not fit")
    let (left, right) = (rounded(a, to: operands), rounded(b, to: operands))
    context.multiply(
      left.operand.transposed, right.operand, into: product.operand, rows: a.columns, inner: a.rows,
      columns: b.columns, beta: 1, isTF32: isTF32)
  }

  public func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double] {
    precondition(matrix.rows == rows.columns && matrix.columns == rows.columns, "the shapes do not fit")
    let images = uninitialized(rows: rows.rows, columns: rows.columns)
    multiply(rows, matrix, transposingB: false, scale: 1, into: images, keeping: 0)
    return rowDots(rows, images)
  }

  // MARK: Two triangles of one square

  public func diagonal(of matrix: Matrix) -> [Float] {
    let size = matrix.squareSize
    let values = context.scratch(floats: size)
    context.launch(
      .get_diagonal, elements: size, [.address(values.address), .address(matrix.address), .long(size)])
    return context.downloaded(values, count: size, of: Float(0))
  }

  public func setDiagonal(_ values: [Float], of matrix: Matrix) {
    let size = matrix.squareSize
    precondition(values.count == size, "the diagonal has another length")
    let values = context.uploaded(values)
    context.launch(
      .set_diagonal, elements: size, [.address(matrix.address), .address(values.address), .long(size)])
  }

  public func symmetrize(_ matrix: Matrix) {
    let size = matrix.squareSize
    let tiles = (size + 31) / 32
    context.launch(
      .symmetrize, blocks: (tiles, tiles), threads: (32, 8), [.address(matrix.address), .long(size)])
  }

  public func fillUpperTriangle(of matrix: Matrix, inOrder order: [Int]) {
    let size = matrix.squareSize
    precondition(order.count == size, "the shapes do not fit")
    let order = context.uploaded(order.map(Int32.init))
    for first in stride(from: 0, to: size, by: rowsAtOnce) {
      fillUpper(matrix, order, first: first, rows: min(rowsAtOnce, size - first))
    }
  }

  func fillUpper(_ matrix: Matrix, _ order: DeviceMemory, first: Int, rows: Int) {
    context.launch(
      .fill_upper, elements: rows * matrix.columns,
      [
        .address(matrix.address), .address(order.address), .long(matrix.columns), .long(first), .long(rows),
      ])
  }

  public func divideUpperRowsByDiagonal(_ matrix: Matrix) {
    let size = matrix.squareSize
    for first in stride(from: 0, to: size, by: rowsAtOnce) {
      let rows = min(rowsAtOnce, size - first)
      context.launch(
        .divide_upper_rows, elements: rows * size,
        [.address(matrix.address), .long(size), .long(first), .long(rows)])
    }
  }

  // MARK: Operands

  /// Inputs as operands of a product.
  struct RoundedInputs {
    let operand: DeviceContext.Operand
    /// What holds them, if not the inputs themselves.
    let memory: DeviceMemory?
  }

  /// - Parameters:
  ///   - factor: what 16-bit operands are multiplied by before they are rounded; others stay as they are
  func rounded(_ inputs: Matrix, to operands: OperandType, factor: Float = 1) -> RoundedInputs {
    if operands == .float32 { return RoundedInputs(operand: inputs.operand, memory: nil) }
    let stride = inputs.columns.bfloat16Stride
    let memory = context.scratch(bytes: inputs.rows * stride * 2)
    round(inputs, factor: factor, to: memory.address, stride: stride)
    return RoundedInputs(
      operand: .init(address: memory.address, stride: stride, isBFloat16: true), memory: memory)
  }

  func round(_ inputs: Matrix, factor: Float, to address: UInt64, stride: Int) {
    context.launch(
      .to_bfloat16_rows, elements: inputs.rows * stride,
      [
        .address(address), .address(inputs.address), .float(factor), .long(inputs.columns), .long(stride),
        .long(inputs.rows),
      ])
  }
}

extension Int {
  /// Elements from row to row of a bfloat16 matrix with so many columns: products are at full rate where rows begin at
  /// multiples of 16 bytes.
  var bfloat16Stride: Int { (self + 7) / 8 * 8 }
}

extension Matrix {
  var squareSize: Int {
    precondition(rows == columns, "the matrix is not square")
    return rows
  }
}
