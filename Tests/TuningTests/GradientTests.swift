import Checkpoint
import Compute
import ComputeOpenBLAS
import Decoder
import Tensors
import TestSupport
import Testing

@testable import Tuning

/// Gradients against differences of what is computed with other weights.
@Suite struct GradientTests {
  /// The families among the fixtures whose layers have gradients.
  static let models = TestFiles.models.filter { name in
    (try? Bench(name))?.description.hasGradients ?? false
  }

  /// A model, the weights of its norms, and a sum of its logits, each times a number.
  final class Bench {
    let description: ModelDescription
    let norms: TunedNorms
    private let base: CheckpointReader
    private let backend = OpenBLASBackend(threads: 2)
    private let tokens: [Int32]
    private static let length = 24

    init(_ name: String) throws {
      base = try CheckpointReader(directory: TestFiles.model(name))
      description = try ModelDescription(configuration: base.configuration) { [base] in
        base.shape(of: $0) != nil
      }
      norms = TunedNorms(base)
      var generator = SeededGenerator(seed: 3)
      let vocabulary = Int32(description.vocabularySize)
      tokens = (0..<2 * Self.length).map { _ in Int32.random(in: 0..<vocabulary, using: &generator) }
    }

    private func factors(_ logits: Matrix) -> Matrix {
      var generator = SeededGenerator(seed: 4)
      return Matrix(
        rows: logits.rows, columns: logits.columns, (0..<logits.count).map { _ in generator.normal() })
    }

    private func logits(by backend: any DecoderOperations, begun: () -> Void = {}) throws -> Matrix {
      let model = try DecoderModel(
        description, source: norms, backend: backend, sequenceLength: Self.length)
      let states = try model.embed(tokens).copy()
      begun()
      for index in 0..<description.layerCount {
        try model.layer(index).run(states, sequenceLength: Self.length)
      }
      return try model.head().logits(states)
    }

    func sum() throws -> Double {
      let logits = try logits(by: backend)
      return zip(logits.elements, factors(logits).elements).reduce(0) { $0 + Double($1.0) * Double($1.1) }
    }

    func gradients() throws -> [NormalizationParameters.Origin: [Double]] {
      let tape = GradientTape(backend)
      let logits = try logits(by: tape) { tape.isRecording = true }
      tape.setGradient(of: logits, to: factors(logits))
      tape.runBackward()
      return tape.weightGradients
    }

    /// How the sum changes for weights that move by a step along a direction, either way.
    func change(along direction: [NormalizationParameters.Origin: [Double]], step: Double) throws -> Double {
      func sum(_ step: Double) throws -> Double {
        for (origin, direction) in direction {
          let stored = try base.vector(origin.tensor, count: direction.count)
          norms.stored[origin.tensor] = zip(stored, direction).map { Float(Double($0) + step * $1) }
        }
        defer { norms.stored = [:] }
        return try self.sum()
      }
      return (try sum(step) - sum(-step)) / (2 * step)
    }
  }

  @Test(arguments: GradientTests.models)
  func `a model's logits change with its norms as the gradients say`(_ name: String) throws {
    let bench = try Bench(name)
    let gradients = try bench.gradients()
    #expect(gradients.count >= bench.description.layerCount)
    // Along the gradient itself, of one norm after the other: what is wrong with one layer shows there.
    for (origin, gradient) in gradients {
      let size = gradient.reduce(0) { $0 + $1 * $1 }.squareRoot()
      let found = try bench.change(along: [origin: gradient.map { $0 / size }], step: 0.002)
      #expect(abs(found - size) <= 0.02 * size, "\(origin.tensor): \(found) for \(size)")
    }
  }

  @Test func `most families have gradients`() { #expect(Self.models.count > 50) }
}
