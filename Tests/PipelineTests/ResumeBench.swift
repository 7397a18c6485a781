import Calibration
import Checkpoint
import Collective
import Compute
import ComputeOpenBLAS
import Decoder
import Export
import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// What is quantized, and how.
struct ResumeCase: Sendable, CustomTestStringConvertible {
  let fixture: String
  var settings = QuantizationSettings()
  let testDescription: String

  init(_ fixture: String, _ what: String = "", _ change: (inout QuantizationSettings) -> Void = { _ in }) {
    self.fixture = fixture
    testDescription = what.isEmpty ? fixture : "\(fixture), \(what)"
    // Those of a rotation ask for it.
    (settings.passes, settings.rotate) = (3, .off)
    change(&settings)
  }

  /// Of a checkpoint, or of a GGUF file; no fixture but a file elsewhere, if it begins with a slash.
  var path: String {
    if fixture.hasPrefix("/") { return fixture }
    return fixture.hasSuffix(".gguf") ? TestFiles.gguf(fixture) : TestFiles.model(fixture)
  }
}

/// What a process had on the disk at one moment.
struct Moment: CustomStringConvertible {
  /// Those in the journal.
  var linears: Int
  /// Whether a linear has just been done; a batch has begun otherwise.
  var isAfterLinear: Bool
  var journal: [UInt8]
  var cache: [UInt8]?

  var description: String { "\(isAfterLinear ? "after" : "on the way from") linear \(linears)" }
}

/// What a run came to, less the times that it took.
struct RunResult: Equatable {
  /// The bytes of every file, but for the reports.
  var files: [String: [UInt8]]
  var rows: [Report.Linear]

  var meanRelativeError: Double { Report.Totals(of: rows).meanRelativeError }
}

struct WatchedRun {
  var directory: String
  var states: StatesPlace
  var result: RunResult
  var moments: [Moment] = []
  var steps: [String] = []
  var warnings: [String] = []
  var resumedLinears = 0
  var batchesComputed = 0
}

struct Interruption: Error {}

/// A fixture that is quantized again and again, by runs that begin and by runs that go on.
final class ResumeBench {
  /// In memory: a journal waits for the disk after every record.
  let directory: TemporaryDirectory
  private let test: ResumeCase
  private let checkpoint: CheckpointReader
  private let description: ModelDescription
  let calibration: CalibrationSet
  private let budgetBytes: Int
  private let states: StatesChoice
  let backend: any ComputeBackend
  private var runs = 0
  private var expected: RunResult?

  private static let samples = 8
  static let batchSamples = 2
  private static let sequenceLength = 16

  /// - Parameters:
  ///   - backend: the processor's if nil
  ///   - memoryBudgetBytes: as little as makes the plan take a quarter of the samples at a time, if nil
  init(
    _ test: ResumeCase, backend: (any ComputeBackend)? = nil, memoryBudgetBytes: Int? = nil
  ) throws {
    self.test = test
    // On a processor that is not fast at bfloat16, too.
    self.backend =
      backend
      ?? OpenBLASBackend(
        threads: 2, bfloat16: test.settings.precision == .auto ? .best ?? .converting : nil)
    // The cache's file, whose every byte tells of how far a run was; a device keeps what it has room for.
    states = self.backend.deviceMemory == nil ? .cache : .auto
    directory = try TemporaryDirectory(isInMemory: true)
    let checkpoint = try CheckpointReader.open(test.path)
    self.checkpoint = checkpoint
    description = try ModelDescription(checking: checkpoint, source: checkpoint)
    var generator = SeededGenerator(seed: 11)
    calibration = CalibrationSet(
      sequenceLength: Self.sequenceLength,
      tokens: (0..<Self.samples * Self.sequenceLength).map { _ in Int32.random(in: 0..<64, using: &generator)
      })
    budgetBytes = try memoryBudgetBytes ?? Self.plan(test, on: self.backend).peakBytes
  }

  /// The plan of a run that takes a quarter of the samples at a time.
  static func plan(
    _ test: ResumeCase, on backend: any ComputeBackend, states: StatesPlace = .cache
  ) throws -> MemoryPlan {
    let checkpoint = try CheckpointReader.open(test.path)
    let description = try ModelDescription(checking: checkpoint, source: checkpoint)
    let type = checkpoint.weightType(of: description)
    var work = MemoryPlan.Work(
      model: description, samples: samples, sequenceLength: sequenceLength,
      originalSamples: originalSamples(test.settings), operands: backend.operandType(for: type),
      keepsOutliers: test.settings.outliers > 0, stateBytes: type.byteWidth,
      isRotated: test.settings.rotate != .off,
      correctsHead: test.settings.correctHead
        && (test.settings.rotate != .off || !description.hasTiedHead))
    work.batchTokens = batchSamples * sequenceLength
    return MemoryPlan(
      work, batchSamples: batchSamples, panelRows: MemoryPlan.panelRows,
      isOnDevice: backend.deviceMemory != nil, states: states)
  }

  /// What a test asks for, with the bench's samples.
  private static func originalSamples(_ settings: QuantizationSettings) -> Int {
    var settings = settings
    settings.samples = samples
    return settings.originalSamples
  }

  /// With a few samples for the original model, one more than with all or none.
  var batchCount: Int {
    let originalSamples = description.hasPlainOutputs ? Self.originalSamples(test.settings) : 0
    return calibration.batches(of: Self.batchSamples, endingAt: originalSamples).count
  }

  private var recipe: Recipe.Resolved? {
    try? test.settings.recipe().resolve(for: description, in: checkpoint)
  }

  /// Whether the head is solved once all linears are done.
  var hasHead: Bool { recipe?.head != nil }

  /// Whether anything is computed once all linears are done.
  var hasHeadWork: Bool { hasHead || headCorrectionBatches > 0 }

  /// The batches that both models run once more for what corrects the head.
  private var headCorrectionBatches: Int {
    let samples = description.hasPlainOutputs ? Self.originalSamples(test.settings) : 0
    let isOwn =
      test.settings.rotate == .residual
      || checkpoint.hasHeadToCorrect(description, isQuantized: hasHead, isGGUF: test.settings.isGGUF)
    guard test.settings.correctHead, isOwn else { return 0 }
    return calibration.batches(of: Self.batchSamples, endingAt: samples).count { $0.upperBound <= samples }
  }

  /// Matrices that are quantized once all linears are done, which counts as progress.
  var outsideCount: Int { recipe?.outside.count ?? 0 }

  /// The batches that are left to compute after so many linears, all stages and the embedding counted.
  func batches(after linears: Int) -> Int {
    let recipe = recipe?.linears
    var done = linears
    var stagesLeft = 0
    for layer in 0..<description.layerCount {
      for stage in description.stages(ofLayer: layer) {
        let open = stage.linears.filter { recipe?[description.layerPrefix(layer) + $0.name] != nil }.count
        // A stage without linears that are to be quantized is passed like one that is done.
        if done < open || (stagesLeft > 0) { stagesLeft += 1 }
        done -= min(done, open)
      }
    }
    return batchCount * (stagesLeft + (hasHead ? 1 : 0)) + headCorrectionBatches + outsideCount
  }

  /// The stages before the one that is at work when so many linears are done.
  func stagesBefore(_ linears: Int) -> ArraySlice<Stage> {
    let stages = (0..<description.layerCount).flatMap(description.stages(ofLayer:))
    return stages.prefix((batches(after: 0) - batches(after: linears)) / batchCount)
  }

  /// With the original model's, if there is one.
  var streamCount: Int { test.settings.resolvedTarget == .original && description.hasPlainOutputs ? 2 : 1 }

  /// The linears of the layers before the one that is at work when so many are done.
  func linearsBeforeLayer(after linears: Int) -> Int {
    let recipe = recipe?.linears
    var before = 0
    for layer in 0..<description.layerCount {
      let count = description.linears(ofLayer: layer).count {
        recipe?[description.layerPrefix(layer) + $0.name] != nil
      }
      if before + count > linears { break }
      before += count
    }
    return before
  }

  // MARK: Runs

  /// The result of a run that keeps no journal.
  func uninterrupted() throws -> RunResult {
    if let expected { return expected }
    let output = directory.file("expected")
    let report = try run(request(output: output, resume: nil)) { _ in }
    let result = RunResult(files: try Self.files(of: output), rows: report.linears.map(\.withoutTime))
    expected = result
    return result
  }

  /// What that one reports.
  func report() throws -> Report {
    _ = try uninterrupted()
    return try Report(
      json: FileSystem.contents(of: directory.file("expected/\(Report.fileName)"), limit: 1 << 22))
  }

  /// A run that is looked at whenever it tells of something, begun anew or from a moment of an earlier one.
  func watchedRun(from moment: Moment? = nil, identity: String = "job") throws -> WatchedRun {
    try watchedRun(from: moment, identity: identity, keepingMoments: true, memoryBudgetBytes: budgetBytes)
  }

  /// The same with states in memory, in batches of the same size.
  func watchedRunInMemory() throws -> WatchedRun {
    // Sizes are those of a journal that has been begun.
    var start = try watchedRun().moments[0]
    start.cache = nil
    return try watchedRun(
      from: start, identity: "job", keepingMoments: true, memoryBudgetBytes: 1 << 40, states: .auto)
  }

  /// Goes on from what a process has left.
  func goOn(
    from moment: Moment, memoryBudgetBytes: Int? = nil, states: StatesChoice? = nil,
    by backend: (any ComputeBackend)? = nil
  ) throws -> WatchedRun {
    try watchedRun(
      from: moment, identity: "job", keepingMoments: false,
      memoryBudgetBytes: memoryBudgetBytes ?? budgetBytes, states: states, by: backend)
  }

  /// Runs of so many ranks on one job.
  /// - Parameters:
  ///   - name: of the directory that the runs keep what they have done in, for later ones to go on with; nil for none
  ///   - panelRows: rows of a linear that a rank solves at a time
  ///   - failing: the rank that throws ``Interruption`` when it has begun so many panels
  /// - Returns: by rank
  func rankedRun(
    _ count: Int, keepingIn name: String? = nil, identity: String = "job", panelRows: Int = 32,
    failing: (rank: Int, panels: Int)? = nil, changing change: (inout QuantizationRequest) -> Void = { _ in },
    of changeOfRank: @escaping @Sendable (Int, inout QuantizationRequest) -> Void = { _, _ in }
  ) throws -> [Result<RankedRun, any Error>] {
    runs += 1
    let output = directory.file("ranked-\(runs)/output")
    try FileSystem.createDirectories(FileSystem.parent(of: output))
    var request = request(output: output, resume: name.map { place($0, identity) })
    request.panelRows = panelRows
    change(&request)
    return withRanks(count) { [test, request] ranks in
      var request = request
      // As a process has one of its own.
      let backend = OpenBLASBackend(
        threads: 1, bfloat16: test.settings.precision == .auto ? .best ?? .converting : nil)
      changeOfRank(ranks.rank, &request)
      if let failing, failing.rank == ranks.rank {
        request.recipe.standard.solver = InterruptedSolver(
          request.recipe.standard.solver, afterPanels: failing.panels)
      }
      let run = try QuantizationRun(request, backend: backend, ranks: ranks)
      let resumed = run.resumedLinears.count
      let report = try run.run { _ in }
      return RankedRun(
        result: RunResult(
          files: ranks.isChief ? try Self.files(of: output) : [:], rows: report.linears.map(\.withoutTime)),
        sent: ranks.bytesSent, products: backend.counter.values, resumed: resumed)
    }
  }

  /// What a rank has made of a job.
  struct RankedRun {
    let result: RunResult
    /// Bytes, by what they were.
    let sent: [MessageLabel.Kind: Int]
    let products: [ProductCounter.Kind: Int]
    /// Linears that were done before.
    let resumed: Int
  }

  /// The cache that a rank has left where runs kept what they did.
  func rankCache(_ rank: Int, in name: String) throws -> String? {
    try FileSystem.names(in: directory.file(name))
      .first { $0.hasSuffix(".rank\(rank).activations.mdb") }.map { directory.file("\(name)/\($0)") }
  }

  /// What the journal of runs that kept what they did holds of every linear, without the time that it took.
  func journalled(in name: String) throws -> [String: [UInt8]] {
    let journal = try ResumeJournal(place(name, "job"))
    return try Dictionary(
      uniqueKeysWithValues: journal.rows.map { row in
        guard let known = ResumeJournal.linear(ofPayload: try journal.payload(row.name)) else {
          preconditionFailure("a whole record can be read")
        }
        return (row.name, try ResumeJournal.payload(of: known.linear, row: known.row.withoutTime).bytes)
      })
  }

  /// The plan of what it does.
  func runPlan() throws -> RunPlan {
    var settings = test.settings
    (settings.samples, settings.sequenceLength) = (Self.samples, Self.sequenceLength)
    return try RunPlan(model: test.path, settings: settings, symlinks: .follow)
  }

  /// A run that throws ``Interruption`` when so many linears are done; its files are in `failing/`.
  func failingRun(after linears: Int) throws {
    var request = request(output: directory.file("failing/output"), resume: place("failing", "job"))
    request.recipe.standard.solver = InterruptedSolver(
      request.recipe.standard.solver, afterLinears: linears)
    _ = try run(request) { _ in }
  }

  /// A run, begun anew or gone on with, in whose cache every value is damaged when it tells of something for the
  /// `number`th time.
  /// - Returns: nil if it tells of less
  func run(damagingCacheAt number: Int, from moment: Moment? = nil) throws -> WatchedRun? {
    var count = 0
    let run = try watchedRun(
      from: moment, identity: "job", keepingMoments: false, memoryBudgetBytes: budgetBytes
    ) { place in
      count += 1
      if count == number { Self.damage(place.cache) }
    }
    return count >= number ? run : nil
  }

  /// Flips a bit in every value, in place.
  /// - Returns: how many there are
  @discardableResult static func damage(_ path: String) -> Int {
    guard let bytes = try? FileSystem.contents(of: path, limit: 1 << 30),
      let file = FileHandle(forUpdatingAtPath: path)
    else { return 0 }
    let places = valueBytes(inDatabase: bytes)
    for place in places {
      try? file.seek(toOffset: UInt64(place))
      try? file.write(contentsOf: [bytes[place] ^ 16])
    }
    try? file.close()
    return places.count
  }

  private func watchedRun(
    from moment: Moment?, identity: String, keepingMoments: Bool, memoryBudgetBytes: Int,
    states: StatesChoice? = nil, by other: (any ComputeBackend)? = nil,
    disturb: (ResumePlace) -> Void = { _ in }
  ) throws -> WatchedRun {
    runs += 1
    let name = "run-\(runs)"
    let place = place(name, identity)
    try FileSystem.createDirectories(directory.file(name))
    if let moment {
      try directory.write(moment.journal, to: "\(name)/journal")
      if let cache = moment.cache { try directory.write(cache, to: "\(name)/cache") }
    }
    let output = directory.file("\(name)/output")
    var request = request(output: output, resume: place)
    request.memoryBudgetBytes = memoryBudgetBytes
    request.states = states ?? self.states
    var steps: [String] = []
    let engine = try QuantizationRun(request, backend: other ?? backend) { event in
      if case .step(let text) = event { steps.append(text) }
    }
    var watched = WatchedRun(
      directory: directory.file(name), states: engine.plan.states, result: RunResult(files: [:], rows: []))
    watched.steps = steps
    watched.resumedLinears = engine.resumedLinears.count
    var linears = watched.resumedLinears
    // Reading the journal's linears counts as progress as well.
    var advances = -watched.resumedLinears
    var isEmbedding = false
    let report = try withoutActuallyEscaping(disturb) { disturb in
      try engine.run { event in
        switch event {
        case .step(let text):
          watched.steps.append(text)
          isEmbedding = isEmbedding || text.hasPrefix("embedding")
          return
        case .warning(let text):
          watched.warnings.append(text)
          return
        case .advanced: advances += 1
        case .linear(let progress): linears = progress.linearsDone
        case .catchingUp: break
        }
        guard isEmbedding else { return }
        disturb(place)
        guard keepingMoments else { return }
        let isAfterLinear = if case .linear = event { true } else { false }
        if let moment = Self.moment(at: place, linears: linears, isAfterLinear) {
          watched.moments.append(moment)
        }
      }
    }
    watched.batchesComputed = advances
    watched.result = RunResult(files: try Self.files(of: output), rows: report.linears.map(\.withoutTime))
    if !keepingMoments { try FileSystem.removeTree(directory.file(name)) }
    return watched
  }

  private static func moment(at place: ResumePlace, linears: Int, _ isAfterLinear: Bool) -> Moment? {
    guard let journal = try? FileSystem.contents(of: place.journal, limit: 1 << 30) else { return nil }
    return Moment(
      linears: linears, isAfterLinear: isAfterLinear, journal: journal,
      cache: try? FileSystem.contents(of: place.cache, limit: 1 << 30))
  }

  private func run(_ request: QuantizationRequest, _ progress: @escaping (ProgressEvent) -> Void) throws
    -> Report
  {
    try QuantizationRun(request, backend: backend).run(progress: progress)
  }

  private func place(_ name: String, _ identity: String) -> ResumePlace {
    ResumePlace(
      journal: directory.file("\(name)/journal"), cache: directory.file("\(name)/cache"), identity: identity)
  }

  func request(output: String, resume: ResumePlace?) -> QuantizationRequest {
    guard let recipe = try? test.settings.recipe() else { preconditionFailure("\(test.settings)") }
    if let resume { try? FileSystem.createDirectories(FileSystem.parent(of: resume.journal)) }
    var request = QuantizationRequest(
      model: test.path, output: output, recipe: recipe,
      target: test.settings.resolvedTarget, targetShare: test.settings.resolvedTargetShare,
      formats: test.settings.formats, calibration: calibration, seed: 0, calibrationSources: "tokens",
      memoryBudgetBytes: budgetBytes, states: states, resume: resume,
      experts: test.settings.experts, firstTokenWeight: test.settings.resolvedFirstTokenWeight,
      correctsHead: test.settings.correctHead, tunesNorms: test.settings.tuneNorms,
      rotation: test.settings.rotate, averageBits: test.settings.averageBits, bitChoices: test.settings.widths
    )
    request.batchTokens = Self.batchSamples * Self.sequenceLength
    return request
  }

  private static func files(of directory: String, prefix: String = "") throws -> [String: [UInt8]] {
    var files: [String: [UInt8]] = [:]
    for name in try FileSystem.names(in: directory) where !name.hasPrefix("quantease_report") {
      let path = FileSystem.join(directory, name)
      if try FileSystem.kind(of: path) == .directory {
        files.merge(try self.files(of: path, prefix: "\(prefix)\(name)/")) { $1 }
      } else {
        files[prefix + name] = try FileSystem.contents(of: path, limit: 1 << 30)
      }
    }
    return files
  }
}

extension Report.Linear {
  fileprivate var withoutTime: Report.Linear {
    var row = self
    row.seconds = 0
    return row
  }
}
