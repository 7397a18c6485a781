import Calibration
import Checkpoint
import Export
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// Norms that follow the gradient of the whole model's divergence.
struct NormTuningTests {
  private static func bench(
    _ fixture: String, tunes: Bool = true,
    _ change: (inout QuantizationSettings) -> Void = { _ in }
  ) throws -> ResumeBench {
    try ResumeBench(
      ResumeCase(fixture) {
        ($0.bits, $0.tuneNorms) = (2, tunes)
        change(&$0)
      }, memoryBudgetBytes: 1 << 32)
  }

  /// Norms with a bias, and those that are stored less 1, among them.
  @Test(arguments: ["llama-tied", "falcon-7b", "gemma", "gemma2"])
  func `tuned norms are closer to the original's predictions, and nothing else changes`(_ name: String) throws
  {
    let (plain, tuned) = (try Self.bench(name, tunes: false), try Self.bench(name))
    let tuning = try #require(try tuned.report().tuning)
    #expect(try plain.report().tuning == nil)
    let (before, after) = (try #require(tuning.before), try #require(tuning.after))
    #expect(tuning.tensors > 0 && after < before, "\(tuning)")
    #expect(try tuned.report().totals.secondsPerPhase["tuning"] == tuning.seconds)
    let tensors = try [plain, tuned].map { try tensorBytes(of: $0.directory.file("expected")) }
    let changed = tensors[0].keys.filter { tensors[0][$0] != tensors[1][$0] }
    #expect(tensors[0].keys == tensors[1].keys)
    #expect(
      changed.count == tuning.tensors && changed.allSatisfy { $0.contains("norm") || $0.contains("ln") })
    let expected = try plain.predictions(of: TestFiles.model(name))
    func error(_ bench: ResumeBench) throws -> Float {
      try bench.error(of: bench.directory.file("expected"), from: expected)
    }
    let errors = (before: try error(plain), after: try error(tuned))
    #expect(errors.after < errors.before, "\(errors)")
  }

  @Test func `every format gets the same norms`() throws {
    let bench = try Self.bench("llama-tied") { $0.formats = [.dense, .compressedTensors] }
    let tuning = try #require(try bench.report().tuning)
    let results = try ["expected/dense", "expected/compressed-tensors"].map {
      try tensorBytes(of: bench.directory.file($0)).filter { $0.key.contains("norm") }
    }
    #expect(tuning.tensors == results[0].count && tuning.tensors > 0 && results[0] == results[1])
    let source = try tensorBytes(of: TestFiles.model("llama-tied")).filter { $0.key.contains("norm") }
    #expect(source.keys == results[0].keys && source.allSatisfy { results[0][$0.key] != $0.value })
  }

  /// A night is not to end in an error about its own result.
  @Test(arguments: TestFiles.models)
  func `every family's result is tuned, or it is said why not`(_ name: String) throws {
    let bench = try Self.bench(name) { ($0.bits, $0.formats) = (4, [.dense]) }
    let tuning = try #require(try bench.report().tuning)
    #expect((tuning.before == nil) == (tuning.note?.contains("gradients") == true), "\(tuning)")
  }

  @Test(arguments: [OutputFormatName.compressedTensors, .gptq, .gptqV2, .awq])
  func `results in every format are tuned`(_ format: OutputFormatName) throws {
    for outliers in format == .awq ? [0.0] : [0.0, 0.05] {
      let bench = try Self.bench("llama-bf16-sharded") {
        ($0.bits, $0.formats, $0.outliers, $0.symmetric) = (4, [format], outliers, format == .gptq)
      }
      #expect(try bench.report().tuning?.before != nil)
    }
  }

  /// What is done at the end is done again by whoever goes on.
  @Test func `a run that ends before its norms are tuned comes to the same bytes`() throws {
    let bench = try Self.bench("llama-tied")
    #expect(try bench.report().tuning?.tensors ?? 0 > 0)
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    for moment in [moments.first, moments.dropLast(3).last, moments.last].compactMap(\.self) {
      #expect(try bench.goOn(from: moment).result == expected, "\(moment)")
    }
  }

  /// A journal in which no linear is done, and what was decided when it began.
  private static func begun(_ bench: ResumeBench, _ decision: TuningDecision?) throws -> ResumePlace {
    let path = bench.directory.file("begun")
    try FileSystem.removeTree(path)
    let place = ResumePlace(
      journal: path, cache: bench.directory.file("begun-cache"), identity: "job")
    let head = ResumeJournal.Head(
      identity: "job", batchSamples: ResumeBench.batchSamples, panelRows: MemoryPlan.panelRows,
      kernels: "some", tuning: decision)
    try ResumeJournal(place).begin(head, for: [])
    return place
  }

  /// By another process there may be more memory, or less.
  @Test func `whether norms are tuned is decided when a job begins, which then waits for memory`() throws {
    let bench = try Self.bench("llama-tied")
    func decision(_ begun: TuningDecision?, memoryBytes: Int) throws -> TuningDecision? {
      let request = bench.request(
        output: bench.directory.file("output"), resume: try Self.begun(bench, begun))
      return try QuantizationRun(request, backend: bench.backend).tuningDecision(memoryBytes: memoryBytes)
    }
    let (tuned, untuned) = (TuningDecision(note: nil), TuningDecision(note: "there was no room"))
    #expect(try decision(tuned, memoryBytes: 1 << 30) == tuned)
    #expect {
      _ = try decision(tuned, memoryBytes: 100_000)
    } throws: {
      ($0 as? PipelineError)?.isLackOfMemory == true && "\($0)".contains("to tune norms")
    }
    for memoryBytes in [100_000, 1 << 30] {
      #expect(try decision(untuned, memoryBytes: memoryBytes) == untuned)
    }
    // A version that kept nothing of it decided at the end.
    #expect(try decision(nil, memoryBytes: 1 << 30) == tuned)
    #expect(try decision(nil, memoryBytes: 100_000)?.note?.contains("100 kB may be taken") == true)
  }

  @Test func `a job keeps whether it tunes norms, and goes on by it`() throws {
    let (plain, bench) = (try Self.bench("llama-tied", tunes: false), try Self.bench("llama-tied"))
    for (bench, isTuned) in [(plain, false), (bench, true)] {
      let moment = try #require(try bench.watchedRun().moments.first)
      let path = try bench.directory.write(moment.journal, to: "kept")
      let kept = try ResumeJournal.head(of: ResumePlace(journal: path, cache: "", identity: "job"))
      let head = try #require(kept)
      #expect(head.tuning == (isTuned ? TuningDecision(note: nil) : nil))
    }
    // As one that began where there was no room for it.
    let place = try Self.begun(bench, TuningDecision(note: "there was no room"))
    let moment = Moment(
      linears: 0, isAfterLinear: true,
      journal: try FileSystem.contents(of: place.journal, limit: 1 << 30), cache: nil)
    let later = try bench.goOn(from: moment)
    #expect(later.warnings.contains { $0.contains("norms are not tuned: there was no room") })
    #expect(try later.result.files == plain.uninterrupted().files)
    #expect(try bench.uninterrupted().files != plain.uninterrupted().files)
  }

  @Test func `norms are neither learnt of nor judged by text that was cut again`() throws {
    let bench = try Self.bench("llama-tied")
    var request = bench.request(output: bench.directory.file("output"), resume: nil)
    request.calibration = CalibrationSet(
      sequenceLength: bench.calibration.sequenceLength, tokens: bench.calibration.tokens, overlapping: 3)
    let text = try QuantizationRun(request, backend: bench.backend).tuningText
    let distinct = Array(bench.calibration.sequences.solved.prefix(5))
    #expect(text.isJudgeSolved && text.learnt == distinct && text.judged == distinct)
  }

  @Test func `where norms cannot be tuned it is said why, and they stay`() throws {
    for name in ["mixtral", "deepseek-v2"] {
      let (plain, bench) = (try Self.bench(name, tunes: false), try Self.bench(name))
      let tuning = try #require(try bench.report().tuning)
      #expect(tuning.tensors == 0 && tuning.note?.contains("gradients") == true, "\(tuning)")
      #expect(try bench.uninterrupted().files == plain.uninterrupted().files)
    }
    let bench = try Self.bench("llama-tied")
    let run = try QuantizationRun(
      bench.request(output: bench.directory.file("output"), resume: nil), backend: bench.backend)
    #expect(run.obstacleToTuning(memoryBytes: 1 << 30) == nil)
    #expect(run.obstacleToTuning(memoryBytes: 100_000)?.contains("100 kB may be taken") == true)
  }

  @Test func `a GGUF file has no norms to tune`() {
    var settings = QuantizationSettings()
    (settings.tuneNorms, settings.formats) = (true, [.gguf])
    let error = #expect(throws: SettingsError.self) { try settings.validate() }
    #expect(error.map { "\($0)".contains("tune-norms") && "\($0)".contains("GGUF") } == true)
  }
}
