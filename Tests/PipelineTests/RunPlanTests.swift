import ComputeOpenBLAS
import Export
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// What a run is said to need. Times are nothing that a test can hold to; that there are some, for every kind of layer, is.
struct RunPlanTests {
  private func plan(
    _ fixture: String, _ change: (inout QuantizationSettings) -> Void = { _ in }
  ) throws -> RunPlan {
    var settings = QuantizationSettings()
    (settings.samples, settings.sequenceLength) = (4, 12)
    // Whose experts load in no other one.
    if fixture == "gpt-oss" { settings.formats = [.dense] }
    change(&settings)
    return try RunPlan(model: TestFiles.model(fixture), settings: settings, symlinks: .follow)
  }

  @Test(arguments: [
    "llama", "opt-post-350m", "bloom", "falcon-40b", "gemma4", "qwen3-5", "llama-bf16-sharded",
    "qwen3-moe", "deepseek-v3", "gemma4-moe", "gpt-oss", "ernie-moe",
  ])
  func `every phase of every kind of layer takes time, and a trial leaves nothing behind`(_ fixture: String)
    throws
  {
    let directory = try TemporaryDirectory()
    let backend = OpenBLASBackend(threads: 2)
    let plan = try plan(fixture)
    let memory = try plan.memoryPlan(backend: backend, budgetBytes: 1 << 34)
    let time = try plan.timePlan(backend: backend, memory: memory, cacheDirectory: directory.path)
    let others: [TimePlan.Phase] = [.network, .trial, .tuning]
    for phase in TimePlan.Phase.allCases where !others.contains(phase) {
      #expect(time.secondsPerPhase[phase] ?? 0 > 0, "\(phase)")
    }
    #expect(time.secondsPerPhase[.network] == nil)
    #expect(time.seconds < 3_600)
    #expect(try FileSystem.names(in: directory.path) == [])
  }

  @Test func `tuning norms takes time and memory, of models that have gradients`() throws {
    let directory = try TemporaryDirectory()
    let backend = OpenBLASBackend(threads: 2)
    for (fixture, isTuned) in [("llama", true), ("mixtral", false)] {
      let plan = try plan(fixture) { $0.tuneNorms = true }
      let memory = try plan.memoryPlan(backend: backend, budgetBytes: 1 << 34)
      let time = try plan.timePlan(backend: backend, memory: memory, cacheDirectory: directory.path)
      #expect((time.secondsPerPhase[.tuning] ?? 0 > 0) == isTuned)
      let bytes = plan.tuningBytes(backend: backend)
      #expect(bytes.map { $0[0] > 0 && $0[0] <= $0[1] } == (isTuned ? true : nil))
    }
    // The spare sequences are learnt of where there are few others.
    let bytes = try [4, 4_000].map { samples in
      try plan("llama") { ($0.tuneNorms, $0.samples) = (true, samples) }.tuningBytes(backend: backend)
    }
    #expect(bytes[0] == bytes[1])
    let plain = try plan("llama")
    #expect(plain.tuningBytes(backend: backend) == nil)
    let memory = try plain.memoryPlan(backend: backend, budgetBytes: 1 << 34)
    let time = try plain.timePlan(backend: backend, memory: memory, cacheDirectory: directory.path)
    #expect(time.secondsPerPhase[.tuning] == nil)
  }

  @Test func `more hosts take less time, and send one another what the formulas say`() throws {
    let directory = try TemporaryDirectory()
    let backend = OpenBLASBackend(threads: 2)
    let plan = try plan("mixtral")
    let memory = try plan.memoryPlan(backend: backend, budgetBytes: 1 << 34)
    let times = try plan.timePlans(
      [1, 2, 4].map { RankShare(count: $0, gigabitsPerSecond: 8) }, backend: backend, memory: memory,
      cacheDirectory: directory.path)
    let traffic = plan.traffic(backend: backend)
    for (time, count) in zip(times, [1, 2, 4]) {
      let seconds = Double(traffic.received(by: count)) / 0.9e9
      #expect(abs((time.secondsPerPhase[.network] ?? 0) - seconds) < 1e-9)
      // By one trial: all but the disks' and the network's part is a share of it.
      for phase in [TimePlan.Phase.forward, .gram, .cache] {
        #expect(
          time.secondsPerPhase[phase] ?? 0 >= (times[0].secondsPerPhase[phase] ?? 0) / Double(count) * 0.999)
      }
    }
    #expect((times[2].secondsPerPhase[.solver] ?? 0) < (times[0].secondsPerPhase[.solver] ?? 0))
  }

  @Test func `more of the same takes longer in proportion`() throws {
    let directory = try TemporaryDirectory()
    let backend = OpenBLASBackend(threads: 1)
    func forward(_ samples: Int) throws -> Double {
      let plan = try plan("llama") { $0.samples = samples }
      let memory = try plan.memoryPlan(backend: backend, budgetBytes: 1 << 34)
      return try plan.timePlan(backend: backend, memory: memory, cacheDirectory: directory.path)
        .secondsPerPhase[.forward] ?? 0
    }
    // A hundred times as many; what is measured may differ by ten.
    #expect(try forward(40_000) > 10 * forward(400))
  }

  @Test func `formats, bits and experts count`() throws {
    let four = try plan("llama")
    let eight = try plan("llama") { $0.bits = 8 }
    let both = try plan("llama") { $0.formats = [.compressedTensors, .gptq] }
    #expect(four.linearCount == 14)
    #expect(eight.journalBytes == 2 * four.journalBytes)
    #expect(both.resultBytes == 2 * four.resultBytes)
    #expect(try plan("llama") { $0.formats = [.dense] }.resultBytes == four.inputBytes)
    // A GGUF file is a model as any other.
    var settings = QuantizationSettings()
    settings.formats = [.gguf]
    let gguf = try RunPlan(model: TestFiles.gguf("llama.gguf"), settings: settings, symlinks: .follow)
    #expect(gguf.linearCount == 14 && gguf.outline?.file == "Q4_K_M")
    #expect(gguf.resultBytes == gguf.outline?.bytes)
    // What a run would refuse, a plan does, too.
    #expect(throws: ExportError.onlyGGUF(format: .gptq)) {
      settings.formats = [.gptq]
      _ = try RunPlan(model: TestFiles.gguf("llama.gguf"), settings: settings, symlinks: .follow)
    }
    #expect(throws: ExportError.self) { try plan("llama") { ($0.formats, $0.bits) = ([.awq], 3) } }
    let mixture = try plan("qwen3-moe")
    // The residual stream and context or expansion in 16 bits, and what experts read and make in 32.
    #expect(mixture.cacheBytes > 4 * 12 * 2 * 4 * mixture.model.hiddenSize)
  }

  @Test func `settings that cannot be and memory that is not there are errors`() throws {
    #expect(throws: SettingsError.self) { try plan("llama") { $0.bits = 7 } }
    #expect(throws: PipelineError.self) {
      try plan("llama").memoryPlan(backend: OpenBLASBackend(threads: 1), budgetBytes: 1 << 20)
    }
  }
}
