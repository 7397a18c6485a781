import CKernels
import Compute
import Tensors

extension OpenBLASBackend {
  /// Attention in bfloat16: keys and values are packed once for all query heads that read them; every task then packs its
  /// queries, and the probabilities that come of them.
  func attendPacked(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix
  ) {
    let kernels = packedKernels
    let (length, dimension) = (parameters.sequenceLength, parameters.headDimension)
    let width = parameters.valueDimension
    let sequences = queries.rows / length
    let packed = PackedHeads(
      count: sequences * parameters.keyValueHeads, sequenceLength: length, headDimension: dimension,
      valueDimension: width)
    team.run(chunks: packed.count) { chunk in
      let (sequence, head) = chunk.quotientAndRemainder(dividingBy: parameters.keyValueHeads)
      let rows = sequence * length..<(sequence + 1) * length
      packed.store(
        keys: keys.block(rows: rows, columns: parameters.columns(ofHead: head)),
        values: values.block(rows: rows, columns: parameters.valueColumns(ofHead: head)), at: chunk)
    }
    let chunks = AttentionChunks(parameters, tokens: queries.rows, multipleOf: PackedOperand.panel)
    let scratch = { Scratch(rows: chunks.largestBlock, sequenceLength: length, headDimension: dimension) }
    team.run(chunks: chunks.count, scratch: scratch) { chunk, scratch in
      let chunk = chunks[chunk]
      let (block, head, rows, columns) = (chunk.block, chunk.head, chunk.rows, chunk.columns)
      let place = chunk.sequence * parameters.keyValueHeads + chunk.keyHead

      let query = scratch.queries.reshaped(rows: block.count, inner: dimension)
      query.pack(queries.block(rows: rows, columns: columns), scale: parameters.scale)
      let scores = scratch.scores.block(rows: 0..<block.count, columns: 0..<block.upperBound)
      query.multiply(
        rows: 0..<block.count, packed.keys(place), columns: 0..<block.upperBound, into: scores,
        keeping: false, by: kernels)
      let bias = parameters.positionBias?.block(rows: head..<head + 1, columns: 0..<block.upperBound)
      parameters.applySoftmax(scores, firstCount: block.lowerBound + 1, head: head, bias: bias)
      let probabilities = scratch.probabilities.reshaped(rows: block.count, inner: block.upperBound)
      probabilities.pack(scores)
      probabilities.multiply(
        rows: 0..<block.count, packed.values(place), columns: 0..<width, inner: block.upperBound,
        into: outputs.block(rows: rows, columns: parameters.valueColumns(ofHead: head)), keeping: false,
        by: kernels)
    }
  }
}

/// Keys, `[sequenceLength, headDimension]`, and transposed values, `[valueDimension, sequenceLength]`, of some heads as right operands.
private struct PackedHeads {
  let count: Int
  private let sequenceLength: Int
  private let headDimension: Int
  private let valueDimension: Int
  private let keyPanels: Matrix
  private let valuePanels: Matrix

  init(count: Int, sequenceLength: Int, headDimension: Int, valueDimension: Int) {
    self.count = count
    self.sequenceLength = sequenceLength
    self.headDimension = headDimension
    self.valueDimension = valueDimension
    func panels(rows: Int, inner: Int) -> Matrix {
      Matrix(uninitializedRows: count, columns: PackedOperand.elements(rows: rows, inner: inner))
    }
    keyPanels = panels(rows: sequenceLength, inner: headDimension)
    valuePanels = panels(rows: valueDimension, inner: sequenceLength)
  }

  func keys(_ place: Int) -> PackedOperand {
    PackedOperand(rows: sequenceLength, inner: headDimension, memory: keyPanels.rows(place..<place + 1))
  }

  func values(_ place: Int) -> PackedOperand {
    PackedOperand(rows: valueDimension, inner: sequenceLength, memory: valuePanels.rows(place..<place + 1))
  }

  func store(keys: MatrixBlock, values: MatrixBlock, at place: Int) {
    keyPanels.rows(place..<place + 1).fill(0)
    unsafe qe_bf16_pack_right(
      keys.pointer, 0, keys.rows, keys.columns, keys.stride, self.keys(place).pointer(row: 0))
    let panels = self.values(place)
    unsafe qe_bf16_pack_transposed(
      values.pointer, values.rows, values.columns, values.stride, panels.steps, nil, panels.pointer(row: 0))
  }
}

/// What a thread works in.
private struct Scratch {
  let queries: PackedOperand
  let scores: Matrix
  let probabilities: PackedOperand

  init(rows: Int, sequenceLength: Int, headDimension: Int) {
    queries = PackedOperand(uninitializedRows: rows, inner: headDimension)
    scores = Matrix(rows: rows, columns: sequenceLength)
    probabilities = PackedOperand(uninitializedRows: rows, inner: sequenceLength)
  }
}

extension PackedOperand {
  /// Packs a block of the same shape, times `scale`, as a left operand.
  func pack(_ block: MatrixBlock, scale: Float = 1) {
    precondition(block.rows == rows && block.columns == inner, "the block has another shape")
    unsafe qe_bf16_pack_left(
      block.pointer, block.rows, block.columns, block.stride, scale, pointer(row: 0))
  }
}
