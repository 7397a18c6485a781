import Calibration
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
    let gram = GramMatrix(
      inFeatures: model.description.head.width, operands: model.operands, backend: backend)
    for (batch, samples) in batches.enumerated() {
      advanced()
      let state = try run(
        quantized, last.stage, last.quantized, reading: last.stage.reads.union([.residual]), batch, samples)
      let input = times.measure(.forward) { head(state.residual) }
      times.measure(.gram) { gram.accumulate(input) }
      try backend.checkDevice()
    }
    leave(last)
    return try backend.problem(gram.values, of: "the head", layer: model.description.layerCount)
  }
}
