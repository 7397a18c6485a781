import Calibration
import Collective
import Decoder
import Solvers
import Tensors

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
    func add(_ residual: Matrix) {
      let input = times.measure(.forward) { head(residual) }
      times.measure(.gram) { gram.accumulate(input) }
    }
    // So many are under way at a time.
    for round in Array(batches.indices).ranges(of: ranks.count) {
      var own: [UInt8]?
      if let batch = round.first(where: ranks.owns) {
        advanced()
        let state = try run(
          quantized, last.stage, last.quantized, reading: last.stage.reads.union([.residual]), batch,
          batches[batch])
        if ranks.isAlone {
          add(state.residual)
        } else {
          own = post(state.residual, label(batch), as: .float32)
        }
        try backend.checkDevice()
      }
      for batch in round where !ranks.isAlone {
        let source = ranks.owner(of: batch)
        add(
          try receive(
            source == ranks.rank ? own : nil, label(batch), from: source,
            rows: batches[batch].count * calibration.sequenceLength,
            columns: model.description.hiddenSize, .float32))
      }
    }
    try exchange(gram, label(0))
    leave(last)
    return try backend.problem(gram.values, of: "the head", layer: model.description.layerCount)
  }

  private func label(_ number: Int) -> MessageLabel {
    MessageLabel(.input, layer: quantized.model.description.layerCount, number: number)
  }
}
