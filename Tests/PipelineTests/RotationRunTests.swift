import Calibration
import Checkpoint
import ComputeOpenBLAS
import Decoder
import Export
import Tensors
import TestSupport
import Testing

@testable import Pipeline

/// What a run with a rotation publishes.
struct RotationRunTests {
  /// In 8 bits next to nothing is lost, unless some tensor is not what the others take it for: those that are not
  /// quantized, too, and biases.
  @Test(arguments: [
    ResumeCase("llama-tied", "all linears") { _ in },
    ResumeCase("llama-tied", "no MLP") { $0.rules = ["mlp=skip"] },
    ResumeCase("llama-bias", "no attention") { $0.rules = ["self_attn=skip"] },
    ResumeCase("qwen3", "dense") { $0.formats = [.dense] },
  ])
  func `the result is the model, and a checkpoint as others are`(_ test: ResumeCase) throws {
    var test = test
    (test.settings.bits, test.settings.rotate) = (8, .residual)
    let bench = try ResumeBench(test)
    _ = try bench.uninterrupted()
    let (source, result) = (try openWeights(test.path), try openWeights(bench.directory.file("expected")))
    func logits(_ opened: (reader: CheckpointReader, weights: any WeightSource)) throws -> [Float] {
      let description = try ModelDescription(checking: opened.reader, source: opened.weights)
      let backend = OpenBLASBackend(threads: 2)
      let model = try DecoderModel(description, source: opened.weights, backend: backend, sequenceLength: 16)
      let states = try model.embed((0..<32).map { Int32($0 + 3) })
      for index in 0..<description.layerCount { try model.layer(index).run(states, sequenceLength: 16) }
      return try model.head().logits(states).elements
    }
    let (expected, found) = (try logits(source), try logits(result))
    let energy = expected.reduce(0) { $0 + $1 * $1 }
    let error = zip(expected, found).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
    #expect(error < 0.002 * energy, "\(error / energy)")
    #expect(result.reader.configuration["tie_word_embeddings"]?.bool == false)
    #expect(result.reader.shape(of: "lm_head.weight") != nil)
    let norm = try result.weights.matrix("model.norm.weight", shape: [width(source)])
    #expect(norm.elements.allSatisfy { $0 == 1 })
  }

  private func width(_ opened: (reader: CheckpointReader, weights: any WeightSource)) -> Int {
    opened.reader.configuration["hidden_size"]?.int ?? 0
  }
}
