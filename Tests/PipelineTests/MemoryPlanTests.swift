import Checkpoint
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

  @Test func `with memory enough, batches are as large as pays`() throws {
    let plan = try plan(samples: 128, sequenceLength: 512, budget: .max)
    #expect(plan.batchSamples == MemoryPlan.preferredBatchTokens / 512)
    #expect(plan.panelRows == MemoryPlan.preferredPanelRows)
  }

  @Test func `a batch holds no more sequences than there are, and at least one`() throws {
    #expect(try plan(samples: 3, sequenceLength: 16, budget: .max).batchSamples == 3)
    #expect(try plan(samples: 3, sequenceLength: 10_000, budget: .max).batchSamples == 1)
  }

  @Test func `a plan keeps within the budget and takes no less than it must`() throws {
    let most = try plan(samples: 128, sequenceLength: 128, budget: .max).peakBytes
    var last = Int.max
    for share in stride(from: 1.0, through: 0.1, by: -0.1) {
      let budget = Int(Double(most) * share)
      guard let plan = try? plan(samples: 128, sequenceLength: 128, budget: budget) else { break }
      #expect(plan.peakBytes <= budget)
      #expect(plan.batchSamples <= last)
      last = plan.batchSamples
    }
    #expect(last < MemoryPlan.preferredBatchTokens / 128)
  }

  @Test func `neither layers nor samples beyond a batch need more memory`() throws {
    let few = try plan(samples: 64, sequenceLength: 128, budget: .max)
    let many = try plan(samples: 6_400, sequenceLength: 128, budget: .max)
    #expect(few == many)
  }

  @Test func `too little memory is refused with what is missing`() throws {
    let error = try #require(throws: PipelineError.self) {
      try plan(samples: 8, sequenceLength: 128, budget: 1_000)
    }
    guard case .notEnoughMemory(let needed, available: 1_000) = error else {
      Issue.record("\(error)")
      return
    }
    #expect(try plan(samples: 8, sequenceLength: 128, budget: needed).batchSamples == 1)
    #expect(error.exitCode == 75)
  }

  private func plan(samples: Int, sequenceLength: Int, budget: Int) throws -> MemoryPlan {
    try MemoryPlan(
      model, target: .layer, samples: samples, sequenceLength: sequenceLength, budgetBytes: budget)
  }
}
