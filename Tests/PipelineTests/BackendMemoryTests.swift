import ActivationCache
import Calibration
import Checkpoint
import Compute
import ComputeOpenBLAS
import Decoder
import Evaluation
import Foundation
import Tensors
import TestSupport
import Testing

@testable import Pipeline

/// Everything runs on a backend whose memory the host cannot touch: what would hold on an accelerator holds here.
struct BackendMemoryTests {
  /// One for every arrangement of stages and kind of embedding, and all that solvers do with a matrix.
  static let cases = [
    ResumeCase("llama-bf16-sharded"), ResumeCase("qwen3"), ResumeCase("opt-pre"),
    ResumeCase("opt-post-350m"), ResumeCase("bloom"), ResumeCase("falcon-7b"), ResumeCase("falcon-40b"),
    ResumeCase("qwen3-5"), ResumeCase("gemma2"), ResumeCase("gemma4-vision"), ResumeCase("granite"),
    ResumeCase("phi3"),
    ResumeCase("cohere2"),
    ResumeCase("llama", "groups") { $0.groupSize = 16 },
    ResumeCase("llama", "symmetric") { $0.symmetric = true },
    ResumeCase("llama", "rtn") { $0.solver = .rtn },
    ResumeCase("llama", "gptq") { $0.solver = .gptq },
    ResumeCase("llama", "paper") { $0.preset = .paper },
    ResumeCase("llama", "outliers") { $0.outliers = 0.01 },
    ResumeCase("llama-tied", "rotated") { ($0.rotate, $0.targetShare) = (.residual, 0.125) },
    ResumeCase("qwen2-moe", "rotated") { $0.rotate = .residual },
    ResumeCase("qwen2-moe"),
    ResumeCase("deepseek-v3"),
    ResumeCase("llama", "columns of outliers") {
      $0.outliers = 0.05
      $0.structuredOutliers = true
    },
    ResumeCase("llama", "outliers as published") {
      $0.outliers = 0.01
      $0.preset = .paper
    },
    ResumeCase("llama", "columns of outliers as published") {
      $0.outliers = 0.05
      $0.structuredOutliers = true
      $0.preset = .paper
    },
  ]

  @Test(arguments: cases)
  func `a run that cannot touch the backend's memory comes to the same bytes`(_ test: ResumeCase) throws {
    let backend = OpenBLASBackend(threads: 1, bfloat16: .converting)
    let expected = try ResumeBench(test, backend: backend).uninterrupted()
    #expect(try ResumeBench(test, backend: GuardedBackend(backend)).uninterrupted() == expected)
  }

  @Test(arguments: cases)
  func `a run by the kernels of the GPU is as good`(_ test: ResumeCase) throws {
    let expected = try ResumeBench(test, backend: OpenBLASBackend(threads: 1)).uninterrupted()
    let result = try ResumeBench(test, backend: EmulatedGPU.backend()).uninterrupted()
    #expect(abs(result.meanRelativeError / expected.meanRelativeError - 1) < 0.03)
  }

  @Test(arguments: [
    ResumeCase("llama-tied", "a rotation or not") { $0.rotate = .auto },
    ResumeCase("llama", "bits by need") {
      $0.averageBits = 4
      $0.symmetric = true
    },
  ]) func `nor does a trial touch it`(_ test: ResumeCase) throws {
    func result(_ backend: any ComputeBackend) throws -> RunResult {
      try ResumeBench(test, backend: backend, memoryBudgetBytes: 1 << 40).uninterrupted()
    }
    let backend = OpenBLASBackend(threads: 1)
    #expect(try result(GuardedBackend(backend)) == result(backend))
  }

  @Test func `a run that goes on does not touch it either`() throws {
    let bench = try ResumeBench(ResumeCase("llama"), backend: GuardedBackend(OpenBLASBackend(threads: 1)))
    let run = try bench.watchedRun()
    let moment = try #require(run.moments.last { $0.linears == 5 })
    #expect(try bench.goOn(from: moment).result == run.result)
  }

  @Test(arguments: ["llama-bf16-sharded", "falcon-40b", "deepseek-v3", "qwen2-moe"])
  func `states go to the host's memory and back`(_ fixture: String) throws {
    let test = ResumeCase(fixture)
    let backend = OpenBLASBackend(threads: 1, bfloat16: .converting)
    let run = try ResumeBench(test, backend: GuardedBackend(backend)).watchedRunInMemory()
    #expect(run.states == .memory)
    #expect(try run.result == ResumeBench(test, backend: backend).uninterrupted())
  }

  @Test(arguments: ["llama-bf16-sharded", "falcon-40b", "deepseek-v3", "qwen2-moe"])
  func `a GPU without room for all states keeps them on the host, and a later process goes on`(
    _ fixture: String
  ) throws {
    let test = ResumeCase(fixture)
    let least = try ResumeBench.plan(test, on: EmulatedGPU.backend(), states: .memory)
    let bench = try ResumeBench(test, backend: EmulatedGPU.backend(memoryLimit: least.devicePeakBytes))
    let expected = try bench.uninterrupted()
    let run = try bench.watchedRunInMemory()
    #expect(run.states == .memory)
    #expect(run.result == expected)
    let moments = run.moments.filter(\.isAfterLinear)
    for moment in [moments.first, moments[moments.count / 2], moments.last].compactMap(\.self) {
      let later = try bench.goOn(from: moment, memoryBudgetBytes: 1 << 40, states: .auto)
      #expect(later.result == expected, "\(moment)")
      // The journal is written beside the work: it may have one more linear than has been told of, and no fewer.
      #expect((moment.linears...moment.linears + 1).contains(later.resumedLinears), "\(moment)")
    }
  }

  @Test func `the definitions run on it`() throws {
    let test = ResumeCase("llama")
    let expected = try ResumeBench(test, backend: ReferenceBackend()).uninterrupted()
    #expect(try ResumeBench(test, backend: GuardedBackend()).uninterrupted() == expected)
  }

  @Test(arguments: TestFiles.models)
  func `an evaluation comes to the same loss`(_ name: String) throws {
    func perplexity(_ backend: any ComputeBackend, isHeld: Bool) throws -> Double {
      let checkpoint = try CheckpointReader(directory: TestFiles.model(name))
      let description = try ModelDescription(checking: checkpoint, source: checkpoint)
      let rows = try TokenRows(tokenFile: TestFiles.model("\(name)/expected.safetensors")).rows
      let directory = try TemporaryDirectory()
      func model() throws -> DecoderModel {
        try DecoderModel(description, source: checkpoint, backend: backend, sequenceLength: rows[0].count)
      }
      func evaluation(_ name: String) throws -> OutOfCoreEvaluation {
        try OutOfCoreEvaluation(
          model: model(), reference: model(), backend: backend,
          store: HiddenStatesStore(path: directory.file(name), elementType: .float32, threads: 1),
          holdsStates: isHeld)
      }
      let result = try evaluation("cache").perplexity(of: rows)
      let against = try #require(result.against)
      // All but the first token of a row is what the row's perplexity is of.
      let words = rows.indices.map {
        TaskAnswer(question: $0, ids: rows[$0], context: 1, characters: 1, right: true)
      }
      let figures = try evaluation("answers").figures(of: words)
      let perToken = pow(try #require(figures.model.perplexity), 1 / Double(rows[0].count - 1))
      #expect(abs(perToken / result.perplexity - 1) < 1e-6)
      #expect(figures.reference == figures.model && figures.lost == 0 && figures.gained == 0)
      #expect(against.mean == 0 && against.sameChoice == 1 && against.perplexityRatio == 1)
      return result.perplexity
    }
    let backend = OpenBLASBackend(threads: 1)
    let expected = try perplexity(backend, isHeld: false)
    #expect(try perplexity(backend, isHeld: true) == expected)
    #expect(try perplexity(GuardedBackend(backend), isHeld: false) == expected)
  }

  @Test func `to touch it is the end`() async {
    await #expect(processExitsWith: .failure) {
      _ = GuardedBackend().makeMatrix(rows: 1, columns: 1)[0, 0]
    }
  }
}
