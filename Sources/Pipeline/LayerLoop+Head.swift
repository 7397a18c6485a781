import Calibration
import Collective
import Decoder
import Solvers

// What comes behind the last layer.
extension LayerLoop {
  /// Takes every batch through the last stage, and adds up the Gram matrix of what the head reads.
  ///
  /// The head is solved for its own outputs on the quantized model's states: what moves its target otherwise would take a
  /// matrix of its size, the vocabulary's.
  func headProblem(behind last: Position) throws -> LayerProblem {
    let model = quantized.model
    let head = try times.measure(.loading) { try model.headInput() }
    let gram = makeGramMatrix(inFeatures: model.description.head.width, owning: ranks.owns)
    try shareEach(
      Array(batches.indices), columns: model.description.hiddenSize, as: .float32, label
    ) { batch in
      let state = try run(
        quantized, last.stage, last.quantized, reading: last.stage.reads.union([.residual]), batch,
        batches[batch])
      return state.residual
    } take: { _, residual in
      let input = times.measure(.forward) { head(residual) }
      times.measure(.gram) { gram.accumulate(input) }
      try backend.checkDevice()
    }
    try exchange(gram, label(0))
    leave(last)
    return try backend.problem(gram.values, of: "the head", layer: model.description.layerCount)
  }

  private func label(_ number: Int) -> MessageLabel {
    MessageLabel(.input, layer: quantized.model.description.layerCount, number: number)
  }
}
