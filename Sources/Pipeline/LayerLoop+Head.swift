import Calibration
import Collective
import Compute
import Decoder
import Solvers
import Tensors

// What comes behind the last layer.
extension LayerLoop {
  /// Takes every batch through the last stage, and adds up the Gram matrix of what the head reads.
  ///
  /// The head is solved for its own outputs on the quantized model's states.
  func headProblem(behind last: Position) throws -> LayerProblem {
    let model = quantized.model
    let head = try times.measure(.loading) { try model.headInput() }
    let gram = makeGramMatrix(inFeatures: model.description.head.width, owning: ranks.owns)
    try shareEach(
      Array(batches.indices), columns: model.description.hiddenSize, as: .float32, label(.input)
    ) { batch in
      try residual(quantized, behind: last, last.quantized, batch)
    } take: { _, residual in
      let input = times.measure(.forward) { head(residual) }
      times.measure(.gram) { gram.accumulate(input) }
      try backend.checkDevice()
    }
    try exchange(gram, label(.gram)(0))
    return try backend.problem(gram.values, of: "the head", layer: model.description.layerCount)
  }

  /// What brings the head's outputs back to the original model's, whose last states the quantized model has not: the C with
  /// the least ‖C X − (X° − X)‖² + λ‖C‖² over the batches that both run, X and X° being what the head reads of each. With
  /// W + W C in the place of W it gives of X about what it gave of X°.
  /// - Returns: `[width, width]`, on the first rank; nil where the original does not run, or the head reads nothing but zeros
  func headCorrection(behind last: Position) throws -> Matrix? {
    guard let original, let layer = last.original else { return nil }
    let model = quantized.model
    let width = model.description.head.width
    let head = try times.measure(.loading) { try model.headInput() }
    if last.stage.experts.isEmpty { try load(last.stage, in: layer) }
    // Summed up by the first rank alone.
    let gram = makeGramMatrix(inFeatures: width)
    let sum = backend.makeMatrix(rows: width, columns: width)
    try shareEach(
      Array(original.batches.indices), columns: model.description.hiddenSize, matrices: 2, as: .float32,
      label(.drift)
    ) { batch in
      let both = [
        try residual(quantized, behind: last, last.quantized, batch),
        try residual(original, behind: last, layer, batch),
      ]
      let tokens = both[0].rows
      let result = backend.makeMatrix(rows: 2 * tokens, columns: both[0].columns)
      for (matrix, start) in zip(both, [0, tokens]) {
        backend.copy(matrix, into: result.rows(start..<start + tokens))
      }
      return result
    } take: { _, both in
      guard ranks.isChief else { return }
      let tokens = both.rows / 2
      // What the head makes is there until it makes the next.
      let input = times.measure(.forward) { backend.copy(of: head(both.prefix(tokens))) }
      let drift = times.measure(.forward) { head(both.rows(tokens..<2 * tokens)) }
      times.measure(.gram) {
        gram.accumulate(input)
        backend.subtract(input, from: drift)
        backend.accumulateCrossProduct(drift, input, operands: model.operands, into: sum)
      }
      try backend.checkDevice()
    }
    guard ranks.isChief else { return nil }
    return try times.measure(.gram) {
      try backend.requireFinite(gram.values, of: "the head", layer: model.description.layerCount)
      let tokens = original.batches.reduce(0) { $0 + $1.count } * calibration.sequenceLength
      return try TargetDrift.correction(
        sum: sum, gram: gram.values, rows: [0..<width],
        damping: TargetDrift.headDamping(width: width, tokens: tokens), backend: backend)
    }
  }

  /// What the last stage leaves of a batch in the residual stream.
  private func residual(
    _ stream: Stream, behind last: Position, _ layer: DecoderLayer, _ batch: Int
  ) throws -> Matrix {
    try run(
      stream, last.stage, layer, reading: last.stage.reads.union([.residual]), batch, batches[batch]
    ).residual
  }

  private func label(_ kind: MessageLabel.Kind) -> (_ number: Int) -> MessageLabel {
    { [layer = quantized.model.description.layerCount] number in
      MessageLabel(kind, layer: layer, number: number)
    }
  }
}
