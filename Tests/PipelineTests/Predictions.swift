import ComputeOpenBLAS
import Decoder
import Export
import Tensors

/// The logits that a checkpoint gives of whole sequences, `[tokens, vocabularySize]`.
func logits(ofModel path: String, _ tokens: [Int32], sequenceLength: Int) throws -> Matrix {
  let opened = try openWeights(path)
  let description = try ModelDescription(checking: opened.reader, source: opened.weights)
  let model = try DecoderModel(
    description, source: opened.weights, backend: OpenBLASBackend(threads: 2), sequenceLength: sequenceLength)
  let states = try model.embed(tokens)
  for index in 0..<description.layerCount {
    try model.layer(index).run(states, sequenceLength: sequenceLength)
  }
  return try model.head().logits(states)
}
