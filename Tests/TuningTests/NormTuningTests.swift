import Checkpoint
import Compute
import ComputeOpenBLAS
import Decoder
import Tensors
import TestSupport
import Testing

@testable import Tuning

@Suite struct NormTuningTests {
  /// A model whose matrices are rounded as coarsely as two bits do.
  private final class CoarseWeights: WeightSource {
    private let base: CheckpointReader

    init(_ base: CheckpointReader) { self.base = base }

    func shape(of tensor: String) -> [Int]? { base.shape(of: tensor) }

    func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
      try base.read(tensor, rows: rows, into: panel)
      guard tensor.hasSuffix(".weight"), base.shape(of: tensor)?.count == 2, !tensor.contains("emb") else {
        return
      }
      let step = 1.5 * panel.elements.map(abs).reduce(0, +) / Float(panel.count)
      panel.withMutableSpan { span in
        for index in 0..<span.count { span[index] = (span[index] / step).rounded() * step }
      }
    }
  }

  private static func outcome(
    _ name: String, backend: any ComputeBackend = OpenBLASBackend(threads: 2), keepsLayers: Bool = true,
    rate: Double = 0.01
  ) throws -> NormTuning.Outcome {
    let reader = try CheckpointReader(directory: TestFiles.model(name))
    let description = try ModelDescription(configuration: reader.configuration) {
      reader.shape(of: $0) != nil
    }
    var generator = SeededGenerator(seed: 5)
    let sequence = (0..<24).map { _ in Int32.random(in: 0..<64, using: &generator) }
    var schedule = NormTuning.Schedule()
    (schedule.batchTokens, schedule.rate) = (24, rate)
    var tuning = try NormTuning(
      model: (description, CoarseWeights(reader)), original: (description, reader), sequenceLength: 24,
      operands: .float32, backend: backend, schedule: schedule, keepsLayers: keepsLayers)
    return try tuning.run(on: Array(repeating: sequence, count: 8), storedAs: { _ in .float32 })
  }

  /// What is learnt is what is judged by here, so that nothing but a wrong gradient can be in the way.
  @Test(arguments: GradientTests.models)
  func `predictions come closer to the original's`(_ name: String) throws {
    let outcome = try Self.outcome(name)
    #expect(outcome.after < 0.95 * outcome.before, "\(outcome.after) for \(outcome.before)")
    #expect(!outcome.weights.isEmpty)
  }

  @Test func `weights that are no better are not kept`() throws {
    let outcome = try Self.outcome("llama", rate: 5)
    #expect(outcome.after > outcome.before && outcome.weights.isEmpty)
  }

  @Test func `threads and memory change nothing`() throws {
    let outcome = try Self.outcome("llama")
    #expect(try Self.outcome("llama", backend: OpenBLASBackend(threads: 1)) == outcome)
    #expect(try Self.outcome("llama", keepsLayers: false) == outcome)
  }

  @Test func `sequences to learn of and to judge by are others`() {
    let schedule = NormTuning.Schedule()
    for (samples, length) in [(2, 512), (8, 16), (32, 512), (128, 2_048), (128, 512), (1_000, 64)] {
      let (learnt, judged) = schedule.parts(of: samples, length: length)
      #expect(!learnt.isEmpty && !judged.isEmpty && !learnt.overlaps(judged))
      #expect(learnt.upperBound <= samples && judged.upperBound == samples)
    }
    #expect(schedule.parts(of: 128, length: 2_048).learnt.count == 16)
    #expect(schedule.parts(of: 128, length: 512).learnt.count == 32)
  }
}
