import Compute
import Tensors

extension CUDABackend: DecoderOperations {
  public func operandType(for stored: DType) -> OperandType {
    stored == .bfloat16 && !isExact ? .bfloat16 : .float32
  }

  public func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights {
    LinearWeights(
      outFeatures: outFeatures, inFeatures: inFeatures, operands: operands,
      values: operands == .float32
        ? makeMatrix(rows: outFeatures, columns: inFeatures)
        // Two values of bfloat16 in the place of one of fp32.
        : makeMatrix(rows: outFeatures, columns: inFeatures.bfloat16Stride / 2))
  }

  public func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights) {
    precondition(rows.columns == weights.inFeatures, "the rows have other features")
    precondition(firstRow >= 0 && firstRow + rows.rows <= weights.outFeatures, "rows outside the weights")
    let place = weights.values.operand.at(row: firstRow).address
    if weights.operands == .float32 { return upload(rows, to: place) }
    let memory = context.scratch(floats: rows.count)
    upload(rows, to: memory.address)
    set(weights, firstRow: firstRow, to: Matrix(rows: rows.rows, columns: rows.columns, memory: memory))
  }

  public func set(_ weights: LinearWeights, firstRow: Int, to rows: Matrix) {
    precondition(rows.columns == weights.inFeatures, "the rows have other features")
    precondition(firstRow >= 0 && firstRow + rows.rows <= weights.outFeatures, "rows outside the weights")
    let place = weights.values.operand.at(row: firstRow).address
    if weights.operands == .float32 {
      return context.copy(rows.address, to: place, bytes: rows.count * MemoryLayout<Float>.stride)
    }
    round(rows, factor: 1, to: place, stride: rows.columns.bfloat16Stride)
  }

  /// Copies a matrix of the host's, from pinned memory, so that the device copies while the host goes on.
  private func upload(_ host: Matrix, to address: UInt64) {
    let (pinned, buffer) = context.lend(rows: host.rows, columns: host.columns)
    pinned.copy(from: host)
    unsafe context.upload(buffer.memory, to: address, bytes: host.count * MemoryLayout<Float>.stride)
    context.give(buffer)
  }

  public func linear(_ inputs: Matrix, _ products: [LinearProduct]) {
    var left: [OperandType: RoundedInputs] = [:]
    for product in products {
      product.checkShapes(inputs: inputs)
      let weights = product.weights
      let x = left[weights.operands] ?? rounded(inputs, to: weights.operands)
      left[weights.operands] = x
      let w =
        weights.operands == .float32
        ? weights.values.operand
        : DeviceContext.Operand(
          address: weights.values.address, stride: weights.inFeatures.bfloat16Stride, isBFloat16: true)
      let outputs = product.outputs
      context.multiply(
        x.operand, w.transposed, into: outputs.operand, rows: inputs.rows, inner: inputs.columns,
        columns: outputs.columns, beta: product.isAdded ? 1 : 0, isTF32: isTF32)
      guard let bias = product.bias else { continue }
      let values = context.uploaded(bias)
      context.launch(
        .add_bias, elements: outputs.count,
        [.address(outputs.address), .address(values.address), .long(outputs.columns), .long(outputs.count)])
    }
  }

  public func normalize(
    _ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix
  ) {
    precondition(outputs.rows == inputs.rows && outputs.columns == inputs.columns, "the shapes do not fit")
    let groups = normalization.groups(of: inputs)
    let weight = context.uploaded(normalization.weight)
    let bias = normalization.bias.map(context.uploaded)
    context.launch(
      .normalize, rows: inputs.rows, width: inputs.columns,
      [
        .address(outputs.address), .address(inputs.address), .address(weight.address),
        .address(bias?.address ?? 0),
        .float(normalization.epsilon), .int(normalization.kind == .layer ? 1 : 0), .long(groups),
        .long(inputs.columns),
      ])
  }

  public func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable) {
    precondition(headDimension >= 2 * table.pairs, "the shapes do not fit")
    precondition(states.columns % headDimension == 0, "the shapes do not fit")
    precondition(table.sines.columns == table.pairs, "the shapes do not fit")
    if table.pairs == 0 { return }
    let heads = states.columns / headDimension
    let count = states.rows * heads * table.pairs
    context.launch(
      .rotate, elements: count,
      [
        .address(states.address), .address(table.cosines.address), .address(table.sines.address),
        .long(heads),
        .long(headDimension), .long(table.pairs), .long(table.sequenceLength),
        .int(table.isInterleaved ? 1 : 0),
        .long(count),
      ])
  }

  public func setHeads(
    of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool
  ) {
    let heads = states.columns / headDimension
    precondition(source.columns == part.count * (isShared ? 1 : heads), "the shapes do not fit")
    precondition(source.rows == states.rows && part.upperBound <= headDimension, "the shapes do not fit")
    let count = states.rows * heads * part.count
    context.launch(
      .set_heads, elements: count,
      [
        .address(states.address), .address(source.address), .long(heads), .long(headDimension),
        .long(part.lowerBound), .long(part.count), .int(isShared ? 1 : 0), .long(count),
      ])
  }

  public func activate(_ states: Matrix, _ function: ActivationFunction) {
    context.launch(
      .activate, elements: states.count,
      [.address(states.address), .int(function.number), .long(states.count)])
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction) {
    precondition(gate.rows == up.rows && gate.columns == up.columns, "the shapes do not fit")
    context.launch(
      .activate_gate, elements: gate.count,
      [.address(gate.address), .address(up.address), .int(function.number), .long(gate.count)])
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU) {
    precondition(gate.rows == up.rows && gate.columns == up.columns, "the shapes do not fit")
    context.launch(
      .clamped_swiglu, elements: gate.count,
      [
        .address(gate.address), .address(up.address), .float(function.alpha), .float(function.limit),
        .long(gate.count),
      ])
  }

  public func activate(_ states: Matrix, _ function: XIELU) {
    context.launch(
      .xielu, elements: states.count,
      [
        .address(states.address), .float(function.positive), .float(function.negative),
        .float(function.linear),
        .long(states.count),
      ])
  }

  public func add(_ x: Matrix, into y: Matrix) { add(x, factor: 1, into: y) }

  func add(_ x: Matrix, factor: Float, into y: Matrix) {
    precondition(x.rows == y.rows && x.columns == y.columns, "the shapes do not fit")
    context.launch(
      .add, elements: y.count, [.address(y.address), .address(x.address), .float(factor), .long(y.count)])
  }

  public func scale(_ x: Matrix, by factor: Float) {
    context.launch(.scale, elements: x.count, [.address(x.address), .float(factor), .long(x.count)])
  }

  public func softcap(_ x: Matrix, at cap: Float) {
    context.launch(.softcap, elements: x.count, [.address(x.address), .float(cap), .long(x.count)])
  }

  public func clamp(_ x: Matrix, to limit: Float) {
    context.launch(.clamp, elements: x.count, [.address(x.address), .float(limit), .long(x.count)])
  }

  public func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float] {
    precondition(targets.count == logits.rows, "the shapes do not fit")
    precondition(targets.allSatisfy { (0..<logits.columns).contains(Int($0)) }, "a target is no token")
    let result = context.scratch(floats: logits.rows)
    let targets = context.uploaded(targets)
    context.launch(
      .negative_log_likelihood, rows: logits.rows, width: logits.columns,
      [.address(result.address), .address(logits.address), .address(targets.address), .long(logits.columns)])
    return context.downloaded(result, count: logits.rows, of: Float(0))
  }

  public func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence] {
    precondition(logits.rows == reference.rows && logits.columns == reference.columns, "the shapes differ")
    let result = context.scratch(floats: 2 * logits.rows)
    context.launch(
      .divergence, rows: logits.rows, width: logits.columns,
      [
        .address(result.address), .address(logits.address), .address(reference.address),
        .long(logits.columns),
      ])
    let found = context.downloaded(result, count: 2 * logits.rows, of: Float(0))
    return (0..<logits.rows).map {
      PredictionDivergence(divergence: found[2 * $0], hasSameChoice: found[2 * $0 + 1] == 1)
    }
  }
}

extension ActivationFunction {
  /// What kernels call it.
  fileprivate var number: Int {
    switch self {
    case .relu: 0
    case .silu: 1
    case .gelu: 2
    case .geluTanh: 3
    case .reluSquared: 4
    case .sigmoid: 5
    }
  }
}
