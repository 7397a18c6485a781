import Calibration
import Checkpoint
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
    let tokens = (0..<32).map { Int32($0 + 3) }
    func predicted(_ path: String) throws -> [Float] {
      try logits(ofModel: path, tokens, sequenceLength: 16).elements
    }
    let (expected, found) = (try predicted(test.path), try predicted(bench.directory.file("expected")))
    let energy = expected.reduce(0) { $0 + $1 * $1 }
    let error = zip(expected, found).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
    #expect(error < 0.002 * energy, "\(error / energy)")
    #expect(result.reader.configuration["tie_word_embeddings"]?.bool == false)
    #expect(result.reader.shape(of: "lm_head.weight") != nil)
    let norm = try result.weights.matrix("model.norm.weight", shape: [width(source)])
    #expect(norm.elements.allSatisfy { $0 == 1 })
  }

  @Test(arguments: ["llama", "mixtral", "deepseek-v3-dense"])
  func `what a trial has decided stands, and a run that goes on makes none`(_ fixture: String) throws {
    func bench(_ rotate: QuantizationSettings.Rotation) throws -> ResumeBench {
      try ResumeBench(
        ResumeCase(fixture) { ($0.rotate, $0.bits) = (rotate, 3) }, memoryBudgetBytes: 1 << 40)
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
    let rotation = try #require(try tried.report().settings.rotation)
    #expect(run.result == choices[rotation.chosen == "residual" ? 1 : 0])
    let (plain, rotated) = (try #require(rotation.divergence), try #require(rotation.rotatedDivergence))
    #expect(plain > 0 && rotated > 0 && (rotation.chosen == "residual") == (rotated < 0.95 * plain))
  }

  /// All layers of these models are a trial's, and what rounding to nearest makes of a linear does not depend on tokens: so a
  /// trial has to come to the divergence of what a run publishes.
  @Test(arguments: [
    ("llama", "self_attn.o_proj"), ("mixtral", "experts"), ("qwen2-moe", "shared_expert.down_proj"),
    ("deepseek-v2", "(q|kv)_a_proj"), ("deepseek-v3", "q_b_proj"), ("deepseek-v3", "kv_b_proj"),
    ("deepseek-v3", "mlp.experts"),
  ])
  func `a trial quantizes what a run does, and compares with the model as it is`(
    _ fixture: String, _ linear: String
  ) throws {
    func bench(_ rotate: QuantizationSettings.Rotation) throws -> ResumeBench {
      try ResumeBench(
        ResumeCase(fixture) {
          ($0.rotate, $0.bits, $0.formats) = (rotate, 2, [.dense])
          ($0.target, $0.correctHead) = (.layer, false)
          $0.rules = [".*=skip", "\(linear)=bits:2,solver:rtn"]
        }, memoryBudgetBytes: 1 << 40)
    }
    let (tried, plain) = (try bench(.auto), try bench(.off))
    let found = try #require(try tried.report().settings.rotation?.divergence)
    _ = try plain.uninterrupted()
    let calibration = plain.calibration
    let sizes = RotationTrial.Sizes(
      samples: calibration.samples, sequenceLength: calibration.sequenceLength, layerCount: 1)
    let heldOut = calibration.tokens(of: calibration.samples - sizes.heldOut..<calibration.samples)
    func predicted(_ path: String) throws -> Matrix {
      try logits(ofModel: path, heldOut, sequenceLength: calibration.sequenceLength)
    }
    let (original, result) = (
      try predicted(TestFiles.model(fixture)), try predicted(plain.directory.file("expected"))
    )
    let divergences = plain.backend.divergences(of: result, from: original).map(\.divergence)
    let expected = Double(divergences.reduce(0, +)) / Double(divergences.count)
    #expect(expected > 0.01 && abs(found / expected - 1) < 0.01, "\(found) for \(expected)")
  }

  /// It is solved for the first of the sequences that do not overlap, and looks at the last of them: those that were cut of the
  /// same text again are nothing to it.
  @Test(arguments: [
    ResumeCase("llama", "a rotation") { ($0.rotate, $0.bits) = (.auto, 3) },
    ResumeCase("llama", "bits") { ($0.averageBits, $0.bitChoices) = (4.9, [2, 3, 4, 5, 6, 8]) },
  ])
  func `a trial looks at no text that it is solved for, where a short one was cut again`(_ test: ResumeCase)
    throws
  {
    let bench = try ResumeBench(test, memoryBudgetBytes: 1 << 40)
    let length = bench.calibration.sequenceLength
    /// What comes of the trial, with other tokens in some of the sequences.
    func found(changing changed: Range<Int>, overlapping: Int = 3) throws -> [Double?] {
      var tokens = bench.calibration.tokens
      for place in changed.lowerBound * length..<changed.upperBound * length { tokens[place] ^= 1 }
      var request = bench.request(output: bench.directory.file("output"), resume: nil)
      request.calibration = CalibrationSet(
        sequenceLength: length, tokens: tokens, overlapping: overlapping)
      let run = try QuantizationRun(request, backend: bench.backend)
      return [
        run.rotation?.divergence, run.rotation?.rotatedDivergence, run.allocation?.divergence,
        run.allocation?.standardDivergence,
      ]
    }
    let first = try found(changing: 0..<0)
    #expect(first.contains { $0 != nil })
    #expect(try found(changing: 5..<8) == first)
    // Of those that do not overlap it looks at the last one, which is the set's last one where none does.
    #expect(try found(changing: 4..<5) != first)
    #expect(try found(changing: 7..<8, overlapping: 0) != found(changing: 0..<0, overlapping: 0))
  }

  @Test func `a trial takes fewer sequences where more would overlap, and is none of a single one`() throws {
    for samples in [2, 3, 5, 8, 31, 128] {
      for length in [64, 512, 2_048] {
        func sizes(_ distinct: Int?) -> RotationTrial.Sizes {
          RotationTrial.Sizes(
            samples: samples, distinct: distinct, sequenceLength: length, layerCount: 4)
        }
        for distinct in 2...samples {
          let sizes = sizes(distinct)
          #expect(sizes.solved + sizes.heldOut <= distinct, "\(distinct) of \(samples)")
        }
        #expect(sizes(samples).solved == sizes(nil).solved && sizes(samples).heldOut == sizes(nil).heldOut)
      }
    }
    let few = RotationTrial.Sizes(samples: 128, distinct: 32, sequenceLength: 64, layerCount: 4)
    #expect(few.solved == 21 && few.heldOut == 10)
    func run(_ change: (inout QuantizationSettings) -> Void) throws -> QuantizationRun {
      let bench = try ResumeBench(ResumeCase("llama", "", change), memoryBudgetBytes: 1 << 40)
      var request = bench.request(output: bench.directory.file("output"), resume: nil)
      request.calibration = CalibrationSet(
        sequenceLength: bench.calibration.sequenceLength, tokens: bench.calibration.tokens, overlapping: 7)
      return try QuantizationRun(request, backend: bench.backend)
    }
    let rotation = try #require(try run { $0.rotate = .auto }.rotation)
    #expect(rotation.chosen == "off" && rotation.note == "a trial takes two sequences that do not overlap")
    let error = #expect(throws: SettingsError.self) {
      try run { ($0.averageBits, $0.bitChoices) = (4.9, [2, 3, 4, 5, 6, 8]) }
    }
    #expect(error?.key == "average-bits" && error?.mend.contains("give more text") == true)
  }

  @Test func `a trial that there is no memory for is none`() throws {
    let bench = try ResumeBench(ResumeCase("llama") { $0.rotate = .auto })
    let rotation = try #require(try bench.report().settings.rotation)
    #expect(rotation.chosen == "off")
    let plan = try bench.runPlan()
    let memory = try plan.memoryPlan(backend: bench.backend, budgetBytes: 1 << 34)
    let needed = try #require(plan.trialBytes(backend: bench.backend, memory: memory))
    #expect(rotation.note == "a trial takes \(needed.memorySize) of memory")
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
    ("qwen3-5-moe-stacked", "stacks"),
  ])
  func `where no trial is made the report says why`(_ fixture: String, _ reason: String) throws {
    let bench = try ResumeBench(ResumeCase(fixture) { $0.rotate = .auto })
    _ = try bench.uninterrupted()
    let rotation = try #require(try bench.report().settings.rotation)
    #expect(rotation.chosen == "off" && rotation.divergence == nil)
    #expect(rotation.note?.contains(reason) == true, "\(rotation)")
  }

  private func width(_ opened: (reader: CheckpointReader, weights: any WeightSource)) -> Int {
    opened.reader.configuration["hidden_size"]?.int ?? 0
  }
}
