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
    rate: Double = 0.01, isJudgeSolved: Bool = false
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
    let text = NormTuning.Text(learnt: [sequence], judged: [sequence], isJudgeSolved: isJudgeSolved)
    return try tuning.run(on: text, storedAs: { _ in .float32 })
  }

  /// What is learnt is what is judged by here, so that nothing but a wrong gradient can be in the way.
  @Test(arguments: GradientTests.models)
  func `predictions come closer to the original's`(_ name: String) throws {
    let outcome = try Self.outcome(name)
    #expect(outcome.after < 0.95 * outcome.before, "\(outcome.after) for \(outcome.before)")
    #expect(!outcome.weights.isEmpty)
  }

  @Test func `weights that are no better are not kept`() throws {
    for isJudgeSolved in [false, true] {
      let outcome = try Self.outcome("llama", rate: 5, isJudgeSolved: isJudgeSolved)
      #expect(outcome.after > outcome.before && outcome.weights.isEmpty)
    }
  }

  /// Steps that are right go up there as well: the model was fitted to that text.
  @Test func `text that layers were solved for may be a little farther away`() {
    func limit(_ isJudgeSolved: Bool) -> Double {
      NormTuning.Text(learnt: [[0]], judged: [[0]], isJudgeSolved: isJudgeSolved).limit(0.04)
    }
    #expect(limit(false) == 0.04 && limit(true) > 0.041 && limit(true) < 0.05)
  }

  @Test func `threads and memory change nothing`() throws {
    let outcome = try Self.outcome("llama")
    #expect(try Self.outcome("llama", backend: OpenBLASBackend(threads: 1)) == outcome)
    #expect(try Self.outcome("llama", keepsLayers: false) == outcome)
  }

  @Test func `spare sequences judge, and are learnt of first`() {
    let schedule = NormTuning.Schedule()
    func sequences(_ ids: Range<Int32>) -> [[Int32]] { ids.map { [$0] } }
    // Of 512 tokens 32 are learnt of, and 4 judge.
    func text(_ solved: Int32, _ spare: Int32) -> NormTuning.Text {
      schedule.text(solved: sequences(0..<solved), spare: sequences(100..<100 + spare), length: 512)
    }
    let plenty = text(32, 36)
    #expect(plenty.learnt == sequences(100..<132) && plenty.judged == sequences(132..<136))
    let some = text(32, 6)
    #expect(some.learnt == sequences(100..<102) + sequences(0..<30) && some.judged == sequences(102..<106))
    #expect(!plenty.isJudgeSolved && !some.isJudgeSolved)
    let few = text(32, 4)
    #expect(few.learnt == sequences(100..<104) + sequences(0..<28) && few.judged == sequences(28..<32))
    let one = text(1, 0)
    #expect(one.learnt == [[0]] && one.judged == [[0]] && few.isJudgeSolved && one.isJudgeSolved)
    let long = schedule.text(solved: sequences(0..<64), spare: [], length: 2_048)
    #expect(long.learnt == sequences(0..<16) && long.judged == sequences(63..<64))
  }
}
