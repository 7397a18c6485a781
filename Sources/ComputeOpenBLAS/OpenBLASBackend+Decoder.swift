import CKernels
import Compute
import Tensors

/// Elements of a chunk of an elementwise operation: work enough to be worth a thread's attention.
private let elementsPerChunk = 1 << 15

extension OpenBLASBackend: DecoderOperations {
  public func linear(_ inputs: Matrix, _ products: [LinearProduct]) {
    for product in products {
      product.checkShapes(inputs: inputs)
      counter.add(.linear, inputs.rows * inputs.columns * product.outputs.columns)
    }
    multiplyPacked(inputs, products.filter { $0.weights.operands == .bfloat16 })
    for product in products where product.weights.operands == .float32 {
      runProduct(rows: inputs.rows, columns: product.outputs.columns) { rows, columns in
        let block = product.outputs.block(rows: rows, columns: columns)
        block.multiply(
          inputs.rows(rows).whole, product.weights.values.rows(columns).whole, transposingB: true,
          keeping: product.begin(block, columns: columns) ? 1 : 0)
      }
    }
  }

  public func normalize(
    _ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix
  ) {
    let features = inputs.columns
    precondition(outputs.rows == inputs.rows && outputs.columns == features, "the shapes differ")
    let groups = normalization.groups(of: inputs)
    runRows(of: inputs) { rows in
      guard groups > 1 else {
        return normalize(inputs, normalization, rows: rows, firstWeight: 0, into: outputs)
      }
      for row in rows {
        normalize(
          inputs, normalization, rows: row..<row + 1, firstWeight: row % groups * features, into: outputs)
      }
    }
  }

  private func normalize(
    _ inputs: Matrix, _ normalization: NormalizationParameters, rows: Range<Int>, firstWeight: Int,
    into outputs: Matrix
  ) {
    let x = inputs.rows(rows)
    let y = outputs.rows(rows)
    unsafe normalization.weight.withUnsafeBufferPointer { weights in
      guard let weights = weights.baseAddress else { return }
      let weight = unsafe weights + firstWeight
      switch normalization.kind {
      case .rootMeanSquare:
        unsafe qe_rms_norm(x.pointer, y.pointer, rows.count, x.columns, weight, normalization.epsilon)
      case .layer:
        unsafe (normalization.bias ?? []).withUnsafeBufferPointer { biases in
          let bias = unsafe biases.isEmpty ? nil : biases.baseAddress.map { unsafe $0 + firstWeight }
          unsafe qe_layer_norm(
            x.pointer, y.pointer, rows.count, x.columns, weight, bias, normalization.epsilon)
        }
      }
    }
  }

  public func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable) {
    precondition(headDimension > 0 && headDimension >= 2 * table.pairs, "the table is wider than a head")
    precondition(states.columns % headDimension == 0, "the states are no whole number of heads")
    precondition(table.sines.columns == table.pairs, "the table has another width")
    precondition(table.sines.rows == table.sequenceLength, "the table has fewer sines than cosines")
    precondition(table.sequenceLength > 0, "the table is empty")
    runRows(of: states) { rows in
      for row in rows {
        let angles = row % table.sequenceLength * table.pairs
        unsafe qe_rotate_row(
          states.pointer + row * states.columns, states.columns / headDimension, headDimension, table.pairs,
          table.isInterleaved ? 1 : 0,
          table.cosines.pointer + angles, table.sines.pointer + angles)
      }
    }
  }

  public func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix
  ) {
    parameters.checkShapes(queries: queries, keys: keys, values: values, outputs: outputs)
    if parameters.operands == .bfloat16 {
      return attendPacked(queries: queries, keys: keys, values: values, parameters, into: outputs)
    }
    let chunks = AttentionChunks(parameters, tokens: queries.rows)
    let scratch = { Matrix(rows: chunks.largestBlock, columns: parameters.sequenceLength) }
    team.run(chunks: chunks.count, scratch: scratch) { chunk, scratch in
      let chunk = chunks[chunk]
      let (block, head) = (chunk.block, chunk.head)
      let (queryRows, queryColumns) = (chunk.rows, chunk.columns)
      let first = chunk.sequence * parameters.sequenceLength
      let keyRows = first..<first + block.upperBound
      let keyColumns = parameters.columns(ofHead: chunk.keyHead)
      let valueColumns = parameters.valueColumns(ofHead: chunk.keyHead)

      let scores = scratch.block(rows: 0..<block.count, columns: 0..<block.upperBound)
      scores.multiply(
        queries.block(rows: queryRows, columns: queryColumns),
        keys.block(rows: keyRows, columns: keyColumns), transposingB: true, scale: parameters.scale,
        keeping: 0)
      let bias = parameters.positionBias?.block(rows: head..<head + 1, columns: 0..<block.upperBound)
      parameters.applySoftmax(scores, firstCount: block.lowerBound + 1, head: head, bias: bias)
      outputs.block(rows: queryRows, columns: parameters.valueColumns(ofHead: head)).multiply(
        scores, values.block(rows: keyRows, columns: valueColumns), keeping: 0)
    }
  }

  public func setHeads(
    of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool
  ) {
    let heads = states.columns / headDimension
    precondition(states.columns == heads * headDimension, "the states are no whole number of heads")
    precondition(part.lowerBound >= 0 && part.upperBound <= headDimension, "the part lies outside a head")
    precondition(
      source.rows == states.rows && source.columns == part.count * (isShared ? 1 : heads),
      "the source has another shape")
    runRows(of: states) { rows in
      for row in rows {
        for head in 0..<heads {
          let target = unsafe states.pointer + row * states.columns + head * headDimension + part.lowerBound
          let start = unsafe source.pointer + row * source.columns + (isShared ? 0 : head * part.count)
          unsafe target.update(from: start, count: part.count)
        }
      }
    }
  }

  public func activate(_ states: Matrix, _ function: ActivationFunction) {
    runElements(of: states) { elements in
      let x = unsafe states.pointer + elements.lowerBound
      switch function {
      case .relu: unsafe qe_relu(x, elements.count)
      case .silu: unsafe qe_silu(x, elements.count)
      case .gelu: unsafe qe_gelu(x, elements.count)
      case .geluTanh: unsafe qe_gelu_tanh(x, elements.count)
      case .reluSquared: unsafe qe_relu_squared(x, elements.count)
      case .sigmoid: unsafe qe_sigmoid(x, elements.count)
      }
    }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction) {
    precondition(gate.rows == up.rows && gate.columns == up.columns, "the shapes differ")
    runElements(of: gate) { elements in
      let x = unsafe gate.pointer + elements.lowerBound
      let factor = unsafe up.pointer + elements.lowerBound
      switch function {
      case .relu: unsafe qe_relu_gate(x, factor, elements.count)
      case .silu: unsafe qe_silu_gate(x, factor, elements.count)
      case .gelu: unsafe qe_gelu_gate(x, factor, elements.count)
      case .geluTanh: unsafe qe_gelu_tanh_gate(x, factor, elements.count)
      case .reluSquared: unsafe qe_relu_squared_gate(x, factor, elements.count)
      case .sigmoid: unsafe qe_sigmoid_gate(x, factor, elements.count)
      }
    }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU) {
    precondition(gate.rows == up.rows && gate.columns == up.columns, "the shapes differ")
    runElements(of: gate) { elements in
      unsafe qe_clamped_swiglu(
        gate.pointer + elements.lowerBound, up.pointer + elements.lowerBound, elements.count, function.alpha,
        function.limit)
    }
  }

  public func activate(_ states: Matrix, _ function: XIELU) {
    runElements(of: states) { elements in
      unsafe qe_xielu(
        states.pointer + elements.lowerBound, elements.count, function.positive, function.negative,
        function.linear)
    }
  }

  public func add(_ x: Matrix, into y: Matrix) {
    precondition(x.rows == y.rows && x.columns == y.columns, "the shapes differ")
    runElements(of: y) { elements in
      unsafe qe_add(x.pointer + elements.lowerBound, y.pointer + elements.lowerBound, elements.count)
    }
  }

  public func scale(_ x: Matrix, by factor: Float) {
    runElements(of: x) { unsafe qe_scale(x.pointer + $0.lowerBound, $0.count, factor) }
  }

  public func softcap(_ x: Matrix, at cap: Float) {
    precondition(cap > 0, "nothing is capped at \(cap)")
    runElements(of: x) { unsafe qe_softcap(x.pointer + $0.lowerBound, $0.count, cap) }
  }

  public func clamp(_ x: Matrix, to limit: Float) {
    precondition(limit > 0, "nothing is left within \(limit)")
    runElements(of: x) { unsafe qe_clamp(x.pointer + $0.lowerBound, $0.count, limit) }
  }

  public func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float] {
    precondition(targets.count == logits.rows, "every row of logits has one target")
    precondition(
      targets.allSatisfy { $0 >= 0 && $0 < logits.columns }, "a target lies outside the vocabulary")
    let losses = Matrix(rows: logits.rows, columns: 1)
    runRows(of: logits) { rows in
      for row in rows {
        let logSum = unsafe qe_log_sum_exp(logits.pointer + row * logits.columns, logits.columns)
        losses[row, 0] = logSum - logits[row, Int(targets[row])]
      }
    }
    return losses.elements
  }

  public func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence] {
    precondition(logits.rows == reference.rows && logits.columns == reference.columns, "the shapes differ")
    let found = Matrix(rows: logits.rows, columns: 2)
    let count = logits.columns
    runRows(of: logits) { rows in
      for row in rows {
        let (own, other) = unsafe (logits.pointer + row * count, reference.pointer + row * count)
        found[row, 0] = unsafe qe_divergence(
          other, qe_log_sum_exp(other, count), own, qe_log_sum_exp(own, count), count)
        found[row, 1] = unsafe qe_index_of_maximum(own, count) == qe_index_of_maximum(other, count) ? 1 : 0
      }
    }
    return (0..<logits.rows).map {
      PredictionDivergence(divergence: found[$0, 0], hasSameChoice: found[$0, 1] == 1)
    }
  }

  /// Calls `body` for ranges that cover the rows.
  private func runRows(of matrix: Matrix, _ body: (Range<Int>) -> Void) {
    let rows = max(1, elementsPerChunk / max(matrix.columns, 1))
    let blocks = Division(matrix.rows, blocksOfAtMost: rows)
    team.run(chunks: blocks.count) { body(blocks[$0]) }
  }

  /// Calls `body` for ranges that cover the elements.
  private func runElements(of matrix: Matrix, _ body: (Range<Int>) -> Void) {
    let blocks = Division(matrix.count, blocksOfAtMost: elementsPerChunk, multipleOf: 16)
    team.run(chunks: blocks.count) { body(blocks[$0]) }
  }
}

extension AttentionParameters {
  fileprivate func checkShapes(queries: Matrix, keys: Matrix, values: Matrix, outputs: Matrix) {
    precondition(heads > 0 && keyValueHeads > 0, "attention has heads")
    precondition(heads % keyValueHeads == 0, "heads do not share keys evenly")
    precondition(sequenceLength > 0 && headDimension > 0, "a sequence and a head have a size")
    precondition(window ?? 1 > 0 && softcap ?? 1 > 0, "a window and a cap are positive")
    precondition(queries.rows % sequenceLength == 0, "the tokens are no whole number of sequences")
    precondition(queries.columns == heads * headDimension, "queries have another width")
    precondition(keys.columns == keyValueHeads * headDimension, "keys have another width")
    precondition(values.columns == keyValueHeads * valueDimension, "values have another width")
    precondition(keys.rows == queries.rows && values.rows == queries.rows, "the tokens differ")
    precondition(
      outputs.rows == queries.rows && outputs.columns == heads * valueDimension, "outputs have another shape")
    precondition(sinks == nil || sinks?.count == heads, "there is a sink for every head")
    if let positionBias {
      precondition(
        positionBias.rows == heads && positionBias.columns == sequenceLength, "the bias has another shape")
    }
  }
}

/// The chunks of an attention: a block of the query rows of a sequence for one head each.
struct AttentionChunks {
  struct Chunk {
    let sequence: Int
    let head: Int
    /// The key head that it reads.
    let keyHead: Int
    /// The rows, counted from the sequence's first.
    let block: Range<Int>
    /// The rows and columns of the queries, and of the outputs.
    let rows: Range<Int>
    let columns: Range<Int>
  }

  /// Query rows of a chunk: scores take this many rows of one sequence length each, per thread. More rows make better
  /// products of them, and more scores that the mask then throws away.
  private static let queryRows = 64

  private let parameters: AttentionParameters
  private let blocks: Division
  private let heads: Int

  /// - Parameters:
  ///   - tokens: of all sequences
  ///   - unit: blocks are multiples of it
  init(_ parameters: AttentionParameters, tokens: Int, multipleOf unit: Int = 1) {
    self.parameters = parameters
    blocks = Division(parameters.sequenceLength, blocksOfAtMost: Self.queryRows, multipleOf: unit)
    heads = tokens / parameters.sequenceLength * parameters.heads
  }

  var count: Int { heads * blocks.count }
  /// The most rows of a block.
  var largestBlock: Int { blocks.size }

  subscript(chunk: Int) -> Chunk {
    // A block of queries sees the keys up to its last row: the last blocks, with the most work, come first.
    let block = blocks[blocks.count - 1 - chunk / heads]
    let (sequence, head) = (chunk % heads).quotientAndRemainder(dividingBy: parameters.heads)
    let first = sequence * parameters.sequenceLength
    return Chunk(
      sequence: sequence, head: head, keyHead: head / (parameters.heads / parameters.keyValueHeads),
      block: block, rows: first + block.lowerBound..<first + block.upperBound,
      columns: parameters.columns(ofHead: head))
  }
}

extension AttentionParameters {
  /// The columns of a head, or of a key head.
  func columns(ofHead head: Int) -> Range<Int> { head * headDimension..<(head + 1) * headDimension }

  /// The same of values, and of what is gathered of them.
  func valueColumns(ofHead head: Int) -> Range<Int> { head * valueDimension..<(head + 1) * valueDimension }

  /// Makes probabilities of a block of scores.
  /// - Parameters:
  ///   - firstCount: the keys that the first row may see
  ///   - bias: of the head
  func applySoftmax(_ scores: MatrixBlock, firstCount: Int, head: Int, bias: MatrixBlock?) {
    unsafe qe_causal_softmax(
      scores.pointer, scores.rows, scores.columns, scores.stride, firstCount, window ?? .max, softcap ?? 0,
      bias?.pointer, sinks?[head] ?? -.infinity)
  }
}

extension LinearProduct {
  /// Brings the bias into a block of the outputs.
  /// - Parameter columns: the block's, of the outputs
  /// - Returns: whether the block holds something that the product is to be added to
  func begin(_ block: MatrixBlock, columns: Range<Int>) -> Bool {
    guard let bias else { return isAdded }
    unsafe bias[columns].withUnsafeBufferPointer { values in
      guard let values = values.baseAddress else { return }
      if isAdded {
        for row in 0..<block.rows {
          unsafe qe_add(values, block.pointer + row * block.stride, block.columns)
        }
      } else {
        unsafe qe_fill_rows(values, block.pointer, block.rows, block.columns, block.stride)
      }
    }
    return true
  }
}
