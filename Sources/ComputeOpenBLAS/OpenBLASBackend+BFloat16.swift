import CKernels
import Compute
import Tensors

/// Rows that one task packs, and rows and columns of a block that one task computes: what these take of both operands
/// stays in a core's second level of cache. Multiples of a panel.
private enum BlockSize {
  static let packedRows = 128
  static let rows = 256
  static let columns = 512
  /// Enough for several threads to share the work evenly.
  static let fewest = 8
}

/// Tokens that are packed at a time: as few as keep the threads busy.
private let tokensAtOnce = 1_024

extension OpenBLASBackend {
  public func operandType(for stored: DType) -> OperandType {
    stored == .bfloat16 && bfloat16 != nil ? .bfloat16 : .float32
  }

  /// OpenBLAS takes kernels by the shape, whose sums are not in one order.
  public func computesRowsAlike(for operands: OperandType) -> Bool { operands == .bfloat16 }

  public func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights {
    LinearWeights(
      outFeatures: outFeatures, inFeatures: inFeatures, operands: operands,
      values: operands == .float32
        ? Matrix(rows: outFeatures, columns: inFeatures)
        : PackedOperand(zerosOfRows: outFeatures, inner: inFeatures).values)
  }

  public func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights) {
    precondition(rows.columns == weights.inFeatures, "the rows have other features")
    precondition(firstRow >= 0 && firstRow + rows.rows <= weights.outFeatures, "rows outside the weights")
    if weights.operands == .float32 {
      return weights.values.rows(firstRow..<firstRow + rows.rows).copy(from: rows)
    }
    let packed = PackedOperand(weights)
    // A task has whole panels, so that no two write the same line of cache.
    let first = firstRow / PackedOperand.panel
    let panels = (firstRow + rows.rows).dividedRoundingUp(by: PackedOperand.panel) - first
    team.run(chunks: panels) { chunk in
      let start = (first + chunk) * PackedOperand.panel
      let range = max(start, firstRow)..<min(start + PackedOperand.panel, firstRow + rows.rows)
      let part = rows.rows(range.lowerBound - firstRow..<range.upperBound - firstRow)
      unsafe qe_bf16_pack_right(
        part.pointer, range.lowerBound - start, range.count, rows.columns, rows.columns,
        packed.pointer(row: start))
    }
  }

  /// Products of linears whose weights are packed; the inputs are packed once for all of them.
  func multiplyPacked(_ inputs: Matrix, _ products: [LinearProduct]) {
    if products.isEmpty { return }
    let kernels = packedKernels
    forEachPart(inputs.rows) { tokens in
      let left = PackedOperand(uninitializedRows: tokens.count, inner: inputs.columns)
      let parts = Division(
        tokens.count, blocksOfAtMost: BlockSize.packedRows, multipleOf: PackedOperand.panel)
      team.run(chunks: parts.count) { chunk in
        let rows = inputs.rows(tokens).rows(parts[chunk])
        unsafe qe_bf16_pack_left(
          rows.pointer, rows.rows, rows.columns, rows.columns, 1, left.pointer(row: parts[chunk].lowerBound))
      }
      let blocks = products.flatMap { product in
        Blocks(rows: tokens.count, columns: product.outputs.columns).ranges.map { (product, $0, $1) }
      }
      team.run(chunks: blocks.count) { chunk in
        let (product, rows, columns) = blocks[chunk]
        let block = product.outputs.rows(tokens).block(rows: rows, columns: columns)
        left.multiply(
          rows: rows, PackedOperand(product.weights), columns: columns, into: block,
          keeping: product.begin(block, columns: columns), by: kernels)
      }
    }
  }

  /// The blocks that the tiles of a Gram matrix are pairs of.
  func packedGramBlocks(order: Int) -> Division {
    Division(order, blocksOfAtMost: BlockSize.rows, multipleOf: PackedOperand.panel)
  }

  func accumulatePackedGram(_ inputs: Matrix, into gram: Matrix, tiles: [GramTile]) {
    let kernels = packedKernels
    forEachPart(inputs.rows) { tokens in
      let (left, right) = packTransposes(of: inputs.rows(tokens), [.left, .right])
      team.run(chunks: tiles.count) { chunk in
        let (columns, rows) = (tiles[chunk].columns, tiles[chunk].rows)
        left.multiply(
          rows: rows, right, columns: columns, into: gram.block(rows: rows, columns: columns), keeping: true,
          rows == columns ? qe_bf16_lower : qe_bf16_all, by: kernels)
      }
    }
  }

  func accumulatePackedCrossProduct(
    _ a: Matrix, _ b: Matrix, into product: Matrix, rows ranges: [Range<Int>]
  ) {
    let kernels = packedKernels
    forEachPart(a.rows) { tokens in
      let left = packTransposes(of: a.rows(tokens), [.left]).left
      let right = packTransposes(of: b.rows(tokens), [.right]).right
      let blocks = ranges.flatMap { range in
        precondition(range.lowerBound % PackedOperand.panel == 0, "a range of rows begins with a panel")
        return Blocks(rows: range.count, columns: product.columns).ranges.map { rows, columns in
          (range.lowerBound + rows.lowerBound..<range.lowerBound + rows.upperBound, columns)
        }
      }
      team.run(chunks: blocks.count) { chunk in
        let (rows, columns) = blocks[chunk]
        left.multiply(
          rows: rows, right, columns: columns, into: product.block(rows: rows, columns: columns),
          keeping: true, by: kernels)
      }
    }
  }

  private func forEachPart(_ tokens: Int, _ body: (Range<Int>) -> Void) {
    let parts = Division(tokens, blocksOfAtMost: tokensAtOnce, multipleOf: PackedOperand.panel)
    for part in 0..<parts.count { body(parts[part]) }
  }

  private struct Sides: OptionSet {
    let rawValue: Int
    static let left = Sides(rawValue: 1)
    static let right = Sides(rawValue: 2)
  }

  /// Xᵀ as a left and as a right operand; one that is not asked for is empty.
  private func packTransposes(of matrix: Matrix, _ sides: Sides) -> (
    left: PackedOperand, right: PackedOperand
  ) {
    func operand(_ side: Sides) -> PackedOperand {
      PackedOperand(uninitializedRows: sides.contains(side) ? matrix.columns : 0, inner: matrix.rows)
    }
    let (left, right) = (operand(.left), operand(.right))
    let parts = Division(matrix.rows, blocksOfAtMost: BlockSize.packedRows, multipleOf: PackedOperand.panel)
    team.run(chunks: parts.count) { chunk in
      let rows = matrix.rows(parts[chunk])
      let step = parts[chunk].lowerBound / PackedOperand.panel
      unsafe qe_bf16_pack_transposed(
        rows.pointer, rows.rows, rows.columns, rows.columns, left.steps,
        sides.contains(.left) ? left.pointer(row: 0, step: step) : nil,
        sides.contains(.right) ? right.pointer(row: 0, step: step) : nil)
    }
    return (left, right)
  }

  var packedKernels: BFloat16Kernels {
    guard let bfloat16 else { preconditionFailure("this backend multiplies in fp32 alone") }
    return bfloat16
  }
}

/// The blocks of a product; neighbours share rows.
private struct Blocks {
  let ranges: [(Range<Int>, Range<Int>)]

  init(rows: Int, columns: Int) {
    let columnBlocks = Division(
      columns, blocksOfAtMost: BlockSize.columns, multipleOf: PackedOperand.panel)
    let wanted = BlockSize.fewest.dividedRoundingUp(by: max(columnBlocks.count, 1))
    let fitting = rows.dividedRoundingUp(by: wanted * PackedOperand.panel) * PackedOperand.panel
    let rowBlocks = Division(
      rows, blocksOfAtMost: min(max(fitting, PackedOperand.panel), BlockSize.rows),
      multipleOf: PackedOperand.panel)
    ranges = (0..<rowBlocks.count).flatMap { row in
      (0..<columnBlocks.count).map { (rowBlocks[row], columnBlocks[$0]) }
    }
  }
}

extension PackedOperand {
  /// Weights that a backend has packed.
  init(_ weights: LinearWeights) {
    self.init(rows: weights.outFeatures, inner: weights.inFeatures, values: weights.values)
  }
}
