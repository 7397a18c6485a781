import Calibration
import Checkpoint
import ComputeOpenBLAS
import Decoder
import Export
import Foundation
import SystemIO
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
    ResumeCase("mixtral", "experts") { $0.symmetric = true },
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

  @Test func `what a trial has decided stands, and a run that goes on makes none`() throws {
    func bench(_ rotate: QuantizationSettings.Rotation) throws -> ResumeBench {
      try ResumeBench(
        ResumeCase("llama") { ($0.rotate, $0.bits) = (rotate, 3) }, memoryBudgetBytes: 1 << 40)
    }
    let tried = try bench(.auto)
    let run = try tried.watchedRun()
    let isTold = { (steps: [String]) in steps.contains { $0.contains("whether a rotation helps") } }
    #expect(isTold(run.steps))
    let later = try tried.goOn(from: try #require(run.moments.last))
    #expect(!isTold(later.steps))
    #expect(later.result == run.result)
    // It is the result of the choice that was made, as if a person had made it.
    let choices = try [QuantizationSettings.Rotation.off, .residual].map { try bench($0).uninterrupted() }
    #expect(choices[0] != choices[1])
    let rotation = try #require(try report(tried).settings.rotation)
    #expect(run.result == choices[rotation.chosen == "residual" ? 1 : 0])
    let (plain, rotated) = (try #require(rotation.divergence), try #require(rotation.rotatedDivergence))
    #expect(plain > 0 && rotated > 0 && (rotation.chosen == "residual") == (rotated < 0.95 * plain))
  }

  @Test func `a trial that there is no memory for is none`() throws {
    let bench = try ResumeBench(ResumeCase("llama") { $0.rotate = .auto })
    let rotation = try #require(try report(bench).settings.rotation)
    #expect(rotation.chosen == "off" && rotation.note?.contains("of memory") == true, "\(rotation)")
  }

  /// Numbers that are none, which a trial ends by.
  @Test(arguments: [
    ResumeCase("llama", "a rotation") { $0.rotate = .auto },
    ResumeCase("llama", "bits") { ($0.averageBits, $0.symmetric) = (3.5, true) },
    ResumeCase("llama-wide.gguf", "bits of a GGUF file in a directory") {
      ($0.averageBits, $0.formats) = (4, [.gguf])
    },
  ])
  func `a source that is written to during a trial is told of, and not what comes of it`(_ test: ResumeCase)
    throws
  {
    let directory = try TemporaryDirectory(isInMemory: true)
    let isGGUF = test.fixture.hasSuffix(".gguf")
    let source = isGGUF ? FileSystem.parent(of: test.path) : test.path
    let names = isGGUF ? [test.fixture] : ["config.json", "model.safetensors"]
    for name in names {
      try FileSystem.copyFile(FileSystem.join(source, name), to: directory.file(name))
    }
    var copied = ResumeCase(directory.path, test.testDescription)
    copied.settings = test.settings
    let bench = try ResumeBench(copied, memoryBudgetBytes: 1 << 40)
    let shard = directory.file(names[names.count - 1])
    let size = try FileSystem.contents(of: shard, limit: 1 << 30).count
    let error = #expect(throws: SourceChange.self) {
      _ = try QuantizationRun(
        bench.request(output: bench.directory.file("output"), resume: nil), backend: bench.backend
      ) { event in
        guard case .step(let step) = event, step.hasPrefix("trying") || step.hasPrefix("measuring") else {
          return
        }
        let file = FileHandle(forWritingAtPath: shard)
        try? file?.seek(toOffset: UInt64(size / 2))
        try? file?.write(contentsOf: Data(repeating: 0xFF, count: size / 2))
        try? file?.close()
      }
    }
    #expect(error?.path == shard)
  }

  @Test(arguments: [
    ("falcon-40b", "layer norm"), ("llama-tied", "its head is that of the embeddings"),
    ("deepseek-v3-dense", "latents"), ("qwen3-5-moe-stacked", "stacks"),
  ])
  func `where no trial is made the report says why`(_ fixture: String, _ reason: String) throws {
    let bench = try ResumeBench(ResumeCase(fixture) { $0.rotate = .auto })
    _ = try bench.uninterrupted()
    let rotation = try #require(try report(bench).settings.rotation)
    #expect(rotation.chosen == "off" && rotation.divergence == nil)
    #expect(rotation.note?.contains(reason) == true, "\(rotation)")
  }

  private func report(_ bench: ResumeBench) throws -> Report {
    _ = try bench.uninterrupted()
    return try Report(
      json: FileSystem.contents(of: bench.directory.file("expected/\(Report.fileName)"), limit: 1 << 20))
  }

  private func width(_ opened: (reader: CheckpointReader, weights: any WeightSource)) -> Int {
    opened.reader.configuration["hidden_size"]?.int ?? 0
  }
}
