import Compute
import Tensors

/// Bytes of the scores that are computed at a time: about what a device's cache holds.
private let scoreBytes = 64 << 20

extension CUDABackend {
  /// Scores of some heads of a sequence at a time by one product, their softmax, and the product with the values.
  public func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix
  ) {
    let (heads, keyHeads) = (parameters.heads, parameters.keyValueHeads)
    let (dimension, width, length) = (
      parameters.headDimension, parameters.valueDimension, parameters.sequenceLength
    )
    precondition(queries.columns == heads * dimension, "the shapes do not fit")
    precondition(keys.columns == keyHeads * dimension, "the shapes do not fit")
    precondition(values.columns == keyHeads * width, "the shapes do not fit")
    precondition(outputs.columns == heads * width && queries.rows % length == 0, "the shapes do not fit")
    precondition(heads % keyHeads == 0, "heads do not share keys evenly")
    let isRounded = parameters.operands == .bfloat16
    let q = rounded(queries, to: parameters.operands, factor: parameters.scale)
    let k = rounded(keys, to: parameters.operands)
    let v = rounded(values, to: parameters.operands)
    let shared = heads / keyHeads
    // Heads of one product: those that share a key head, or, if each has its own, any.
    let run = shared > 1 ? shared : heads
    let batch = max(1, min(run, scoreBytes / (length * length * MemoryLayout<Float>.stride), 65_535))
    let scores = context.scratch(floats: batch * length * length)
    let probabilities =
      isRounded ? context.scratch(bytes: batch * length * length.bfloat16Stride * 2) : scores
    let sinks = parameters.sinks.map(context.uploaded)
    let stride = isRounded ? length.bfloat16Stride : length
    let p = DeviceContext.Operand(address: probabilities.address, stride: stride, isBFloat16: isRounded)
    for first in Swift.stride(from: 0, to: queries.rows, by: length) {
      for runStart in Swift.stride(from: 0, to: heads, by: run) {
        for head in Swift.stride(from: runStart, to: runStart + run, by: batch) {
          let count = min(batch, runStart + run - head)
          let keyHead = head / shared
          context.multiplyBatch(
            count, q.operand.at(row: first, column: head * dimension), step: dimension,
            k.operand.at(row: first, column: keyHead * dimension).transposed,
            step: shared > 1 ? 0 : dimension,
            into: .init(address: scores.address, stride: length), step: length * length, rows: length,
            inner: dimension, columns: length, alpha: isRounded ? 1 : parameters.scale, isTF32: isTF32)
          context.launch(
            .causal_softmax, blocks: (length, count), threads: (length <= 128 ? 32 : 256, 1),
            [
              .address(scores.address), .address(isRounded ? 0 : scores.address),
              .address(isRounded ? probabilities.address : 0), .long(length), .long(stride),
              .long(parameters.window ?? length), .float(parameters.softcap ?? 0),
              .address(parameters.positionBias?.address ?? 0), .address(sinks?.address ?? 0), .long(head),
            ])
          context.multiplyBatch(
            count, p, step: length * stride, v.operand.at(row: first, column: keyHead * width),
            step: shared > 1 ? 0 : width, into: outputs.operand.at(row: first, column: head * width),
            step: width,
            rows: length, inner: length, columns: width, alpha: 1, isTF32: isTF32)
        }
      }
    }
  }

  public func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix
  ) {
    parameters.checkShapes(mixed, decays, gates, outputs)
    precondition(parameters.keyDimension <= 256, "a head has more key features than the kernel has room for")
    let inputs = copy(of: mixed)
    let weights = context.uploaded(parameters.convolution)
    context.launch(
      .causal_convolution, elements: mixed.count,
      [
        .address(mixed.address), .address(inputs.address), .address(weights.address), .long(parameters.taps),
        .long(mixed.columns), .long(parameters.sequenceLength), .long(mixed.count),
      ])
    let sequences = mixed.rows / parameters.sequenceLength
    let state = makeMatrix(
      rows: sequences * parameters.valueHeads, columns: parameters.keyDimension * parameters.valueDimension)
    let logarithms = context.uploaded(parameters.decayLogarithms)
    let biases = context.uploaded(parameters.decayBiases)
    context.launch(
      .gated_delta_rule, blocks: (parameters.valueHeads, sequences),
      threads: (parameters.valueDimension <= 32 ? 32 : 128, 1),
      [
        .address(outputs.address), .address(mixed.address), .address(decays.address), .address(gates.address),
        .address(logarithms.address), .address(biases.address), .address(state.address),
        .long(parameters.keyHeads),
        .long(parameters.valueHeads), .long(parameters.keyDimension), .long(parameters.valueDimension),
        .long(parameters.sequenceLength), .int(parameters.areValueHeadsTiled ? 1 : 0),
      ])
  }
}
