import Calibration
import Compute
import Decoder
import Tensors

/// A sequence's first token, which all others attend to: an error of its key or value is everybody's, and among hundreds of
/// others it has next to no part in what a layer is solved for.
struct FirstTokens {
  /// How often it counts in the problems of linears that make keys and values.
  let weight: Float
  let sequenceLength: Int

  /// Adds what a stage reads of whole sequences to the stage's Gram matrix.
  /// - Parameter input: `[tokens, inFeatures]`; the same afterwards but for rounding
  func add(_ input: Matrix, to gram: GramMatrix, of stage: Stage, _ backend: any ComputeBackend) {
    let isWeighted = weight != 1 && stage.makesKeys
    if isWeighted { scale(input, by: weight.squareRoot(), backend) }
    gram.accumulate(input)
    if isWeighted { scale(input, by: 1 / weight.squareRoot(), backend) }
  }

  private func scale(_ states: Matrix, by factor: Float, _ backend: any ComputeBackend) {
    for row in Swift.stride(from: 0, to: states.rows, by: sequenceLength) {
      backend.scale(states.rows(row..<row + 1), by: factor)
    }
  }
}
