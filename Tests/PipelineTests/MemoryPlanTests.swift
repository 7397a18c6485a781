import Checkpoint
import Compute
import Decoder
import TestSupport
import Testing

@testable import Pipeline

struct MemoryPlanTests {
  private let model: ModelDescription

  init() throws {
    let checkpoint = try CheckpointReader(directory: TestFiles.model("llama"))
    model = try ModelDescription(checking: checkpoint, source: checkpoint)
  }

  @Test func `a batch holds whole sequences, no more than there are, and at least one`() throws {
    #expect(try plan(samples: 128, sequenceLength: 300, budget: .max).batchSamples == 3)
    #expect(try plan(samples: 3, sequenceLength: 16, budget: .max).batchSamples == 3)
    #expect(try plan(samples: 3, sequenceLength: 10_000, budget: .max).batchSamples == 1)
  }

  @Test(arguments: [
    (32, [32]), (64, [32, 32]), (192, [32, 32, 32, 32, 32, 32]), (576, [96, 96, 96, 96, 96, 96]),
    (1_024, [256, 256, 256, 256]), (2_000, [512, 512, 512, 464]), (2_048, [512, 512, 512, 512]),
    (2_304, [384, 384, 384, 384, 384, 384]), (5_120, Array(repeating: 512, count: 10)),
  ]) func `panels are of one size if they can be`(_ rows: Int, _ expected: [Int]) {
    #expect(MemoryPlan.panels(of: rows).map(\.count) == expected)
  }

  @Test func `on the processor sizes are the same for any memory, and a plan keeps within it`() throws {
    let most = try plan(samples: 640, sequenceLength: 128, budget: .max)
    #expect(most.batchSamples == 8 && most.panelRows == MemoryPlan.panelRows)
    var places: Set<StatesPlace> = []
    for share in stride(from: 2.0, through: 0.1, by: -0.1) {
      let budget = Int(Double(most.peakBytes) * share)
      guard let plan = try? plan(samples: 640, sequenceLength: 128, budget: budget) else { break }
      places.insert(plan.states)
      #expect(plan.peakBytes <= budget)
      #expect(plan.batchSamples == most.batchSamples && plan.panelRows == most.panelRows)
    }
    #expect(places == [.memory, .cache])
  }

  @Test func `neither layers nor samples beyond a batch need more memory`() throws {
    let few = try plan(samples: 64, sequenceLength: 128, budget: .max, states: .cache)
    let many = try plan(samples: 6_400, sequenceLength: 128, budget: .max, states: .cache)
    #expect(few == many)
  }

  @Test func `states are in memory while all of them fit, and sizes do not depend on it`() throws {
    let cache = try plan(samples: 6_400, sequenceLength: 128, budget: .max, states: .cache)
    let memory = try plan(samples: 6_400, sequenceLength: 128, budget: .max)
    #expect(cache.states == .cache && memory.states == .memory)
    #expect(memory.batchSamples == cache.batchSamples && memory.panelRows == cache.panelRows)
    // Two bytes a value of the residual stream and between the MLP's halves, less what is read ahead from a cache.
    let states = (model.hiddenSize + model.intermediateSize) * 6_400 * 128 * 2
    #expect(memory.peakBytes > states && memory.peakBytes < states + cache.peakBytes)
    // A quarter of the memory is left to the page cache.
    let enough = memory.peakBytes / 3 * 4 + 8
    #expect(try plan(samples: 6_400, sequenceLength: 128, budget: enough) == memory)
    #expect(try plan(samples: 6_400, sequenceLength: 128, budget: enough - 16) == cache)
  }

  @Test func `too little memory is refused with what is missing`() throws {
    let error = try #require(throws: PipelineError.self) {
      try plan(samples: 8, sequenceLength: 128, budget: 1_000)
    }
    guard case .notEnoughMemory(let needed, available: 1_000, _, _) = error else {
      Issue.record("\(error)")
      return
    }
    #expect(try plan(samples: 8, sequenceLength: 128, budget: needed).batchSamples == 8)
    #expect(error.exitCode == 75)
  }

  /// What Falcon-180B's config.json says.
  private static let falcon: JSONValue = [
    "model_type": "falcon", "hidden_size": 14_848, "num_attention_heads": 232, "num_kv_heads": 8,
    "num_hidden_layers": 80, "vocab_size": 65_024, "new_decoder_architecture": true, "bias": false,
    "alibi": false,
  ]

  @Test(arguments: [
    (0, OperandType.float32, 19_000_000_000), (16, .float32, 28_500_000_000), (0, .bfloat16, 19_000_000_000),
    (16, .bfloat16, 26_000_000_000),
  ]) func `Falcon-180B fits into one GPU's memory`(
    _ originalSamples: Int, _ operands: OperandType, _ budget: Int
  ) throws {
    let model = try ModelDescription(configuration: Self.falcon) { _ in true }
    let work = MemoryPlan.Work(
      model: model, samples: 128, sequenceLength: 2_048, originalSamples: originalSamples,
      operands: operands)
    let plan = try MemoryPlan(work, budgetBytes: budget)
    // One square of Σ is most of it.
    let square = 59_392 * 59_392 * 4
    #expect(plan.peakBytes <= budget && plan.peakBytes > square)
  }

  @Test(arguments: [(24, 32, StatesPlace.cache), (72, 32, .cache), (72, 96, .memory), (141, 32, .device)])
  func `Falcon-180B fits into a GPU's memory, and with more memory needs no cache`(
    _ gigabytes: Int, _ hostGigabytes: Int, _ states: StatesPlace
  ) throws {
    let model = try ModelDescription(configuration: Self.falcon) { _ in true }
    let work = MemoryPlan.Work(
      model: model, samples: 128, sequenceLength: 2_048, originalSamples: 16, operands: .bfloat16)
    let budget = MemoryPlan.Budget(
      hostBytes: hostGigabytes * 1_000_000_000, deviceBytes: gigabytes * 1_000_000_000)
    let plan = try MemoryPlan(work, budget: budget)
    #expect(try #require(plan.devicePeakBytes) <= gigabytes * 1_000_000_000)
    #expect(plan.states == states)
    // Large panels keep a device busy.
    #expect(plan.panelRows >= (gigabytes > 24 ? 4_096 : 64))
    // A run that goes on has the sizes that it began with.
    #expect(
      try MemoryPlan(work, batchSamples: plan.batchSamples, panelRows: plan.panelRows, budget: budget) == plan
    )
  }

  @Test func `states that stand beside others count as long as they do`() throws {
    // Falcon's attention and MLP read the same stream, and what both leave waits for the linears that add to it.
    let model = try ModelDescription(configuration: Self.falcon) { _ in true }
    #expect(model.widestStates == 14_848 + 14_848 + 59_392)
    #expect(self.model.widestStates == self.model.hiddenSize + self.model.intermediateSize)
  }

  @Test func `what does not fit into a device is refused with that device's mend`() throws {
    let model = try ModelDescription(configuration: Self.falcon) { _ in true }
    let work = MemoryPlan.Work(
      model: model, samples: 128, sequenceLength: 2_048, originalSamples: 0, operands: .bfloat16)
    let error = try #require(throws: PipelineError.self) {
      try MemoryPlan(work, budget: MemoryPlan.Budget(hostBytes: 1 << 40, deviceBytes: 8_000_000_000))
    }
    #expect("\(error)".contains("--device cpu"), "\(error)")
  }

  @Test func `what does not fit is refused with the one change that would do`() throws {
    let model = try ModelDescription(configuration: Self.falcon) { _ in true }
    func message(_ budget: Int) -> String {
      let work = MemoryPlan.Work(model: model, samples: 128, sequenceLength: 2_048, originalSamples: 16)
      do { return "\(try MemoryPlan(work, budgetBytes: budget).peakBytes)" } catch { return "\(error)" }
    }
    #expect(message(27_000_000_000).hasSuffix("take --sequence-length 1024"))
    #expect(message(22_500_000_000).contains("take --target layer"))
    #expect(message(15_000_000_000).hasSuffix("or take one with more"))
    #expect(message(22_500_000_000).contains("while it is "))
  }

  private func plan(
    samples: Int, sequenceLength: Int, budget: Int, states: StatesChoice = .auto
  ) throws -> MemoryPlan {
    try MemoryPlan(
      MemoryPlan.Work(
        model: model, samples: samples, sequenceLength: sequenceLength, originalSamples: 0, states: states),
      budgetBytes: budget)
  }
}
