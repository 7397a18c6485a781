import ActivationCache
import Calibration
import Checkpoint
import Collective
import Compute
import Decoder
import Export
import Synchronization
import SystemIO
import Tensors

/// Quantizes one checkpoint from end to end.
///
/// Everything that can be known to be wrong is found before the first product is computed, and nothing
/// stands at the output path before all of it is complete and on the disk.
public final class QuantizationRun: Sendable {
  public let request: QuantizationRequest
  public let description: ModelDescription
  public let plan: MemoryPlan
  let checkpoint: CheckpointReader
  private let source: SourceFiles
  let backend: any ComputeBackend
  /// The processes that share the work. The first one alone has a journal, and an output.
  let ranks: Ranks
  let modelType: DType
  let operands: OperandType
  let resolved: Recipe.Resolved
  /// What memory is planned for.
  let work: MemoryPlan.Work
  /// What a GGUF file will hold; nil for another format.
  let outline: GGUFOutline?
  let journal: ResumeJournal?
  /// What the first rank knows of earlier runs.
  let opening: RunOpening
  /// What was rotated, and why; nil where nobody asked for a rotation.
  let rotation: Report.Rotation?
  /// The bits that were chosen for each linear; nil where they are as the recipe says.
  let allocation: Report.Allocation?
  let unpublished = Mutex(Unpublished())

  /// - Parameters:
  ///   - ranks: the processes that share the work, each of which makes a run of the same request
  ///   - progress: what is told of a trial, if one is asked for
  /// - Throws: an error that names the file or tensor, if the request cannot be met.
  public init(
    _ request: QuantizationRequest, backend: any ComputeBackend, ranks: Ranks = .alone,
    progress: (ProgressEvent) -> Void = { _ in }
  ) throws {
    let report = request.isOneFile ? Report.Place(beside: request.output) : nil
    let outputs = [request.output] + (report.map { [$0.path, $0.page] } ?? [])
    precondition(
      ranks.isAlone || backend.deviceMemory == nil && request.importanceMatrix == nil,
      "several ranks compute on processors, and sum up no importance matrix")
    self.ranks = ranks
    for path in outputs + (request.importanceMatrix.map { [$0] } ?? []) where ranks.isChief {
      if try FileSystem.exists(path) { throw PipelineError.outputExists(path) }
    }
    if let directory = request.importanceMatrix.map(FileSystem.parent(of:)), !FileSystem.isWritable(directory)
    {
      throw FileError(path: directory, operation: .create, errno: .permissionDenied)
    }
    source = try request.source ?? Self.sourceFiles(of: request.model, symlinks: request.symlinks)
    journal = ranks.isChief ? try request.resume.map(ResumeJournal.init) : nil
    opening = try RunOpening(journal, of: request.resume, by: backend.kernels(for: .bfloat16)).shared(
      by: ranks)
    var request = request
    if request.rotation == .auto {
      let decision =
        try opening.head?.rotation
        ?? ranks.share(MessageLabel(.decision)) { [request, source] in
          try Self.watching(source, of: request) { try RotationTrial.decision(request, backend, progress) }
        }
      progress(.step("rotation \(decision)"))
      request.rotation = decision.chosen == QuantizationSettings.Rotation.residual.rawValue ? .residual : .off
      rotation = decision
    } else {
      rotation = request.rotation == .off ? nil : Report.Rotation(chosen: request.rotation.rawValue)
    }
    let description: ModelDescription
    (checkpoint, description) = try Self.open(
      request.model, symlinks: request.symlinks, allowingRequantizing: request.allowsRequantizing,
      rotation: request.rotation, threads: backend.threads)
    try checkpoint.check(source)
    if !ranks.isAlone {
      try ranks.agree(on: "kernels", backend.kernels(for: .bfloat16))
      try ranks.agree(
        on: "a checkpoint with the checksum",
        try checkpoint.fingerprint(of: request.model, symlinks: request.symlinks))
    }
    try Self.requireTokens(request.calibration, of: description)
    let modelType = checkpoint.weightType(of: description)
    if request.recipe.choosesSymmetry {
      request.recipe = try request.recipe.choosingSymmetry(
        for: description, in: checkpoint, formats: request.formats)
      if request.recipe.standard.gridFormat.isSymmetric {
        progress(.step("symmetric grids, as no runtime is known to load others in some format"))
      }
    }
    // A format may keep a scale in the type of its linear's weights: every one goes through the types of all.
    let weightTypes = checkpoint.weightTypes(
      ofModules: try request.recipe.resolve(for: description, in: checkpoint).linears.keys)
    request.recipe.standard.gridFormat.scaleTypes = Set(
      request.formats.flatMap { name in
        weightTypes.flatMap { name.format.scaleTypes(modelType: $0) }
      }
    ).sorted { $0.rawValue < $1.rawValue }
    if !description.hasPlainOutputs { request.target = .layer }
    self.description = description
    self.modelType = modelType
    var resolved = try request.recipe.resolve(for: description, in: checkpoint)
    if let averageBits = request.averageBits {
      let problem = try request.recipe.allocationProblem(
        averageBits: averageBits, resolved, of: description, in: checkpoint, formats: request.formats,
        widths: request.bitChoices)
      let decision =
        try opening.head?.allocation
        ?? ranks.share(MessageLabel(.decision)) { [request, source] in
          try Self.watching(source, of: request) {
            try AllocationTrial.decision(request, problem, backend, progress)
          }
        }
      progress(.step("\(decision)"))
      try resolved.choose(decision.choices, of: problem.units)
      allocation = decision
    } else {
      allocation = nil
    }
    self.resolved = resolved
    outline = request.recipe.outline(resolved, of: checkpoint)
    // The linears are checked as they are read; embeddings, for one, are only copied along and would slip through. What no
    // layer reads may hold what it likes: a mask of infinities is one.
    for (name, _) in description.requiredTensors
    where !name.hasSuffix(".weight") || resolved.linears[String(name.dropLast(7))] == nil {
      if let tensor = checkpoint.tensors[name] { try checkpoint.checkFinite(tensor) }
    }
    self.request = request
    self.backend = backend
    operands = backend.operandType(for: modelType)
    var work = MemoryPlan.Work(
      model: description, samples: request.calibration.samples,
      sequenceLength: request.calibration.sequenceLength,
      originalSamples: request.originalSamples, operands: operands,
      keepsOutliers: resolved.linears.values.contains { $0.outliers != nil },
      stateBytes: (request.cacheType ?? modelType).byteWidth, states: request.states,
      isRotated: request.rotation != .off, solvesHead: resolved.head != nil,
      correctsHead: request.correctsHead
        && checkpoint.hasHeadToCorrect(description, isQuantized: resolved.head != nil, isGGUF: outline != nil)
    )
    work.batchTokens = request.batchTokens
    work.panelRows = request.panelRows
    let budget = MemoryPlan.Budget(hostBytes: request.memoryBudgetBytes, of: backend)
    let head = opening.head
    func plan(_ work: MemoryPlan.Work) throws -> MemoryPlan {
      guard let head else { return try MemoryPlan(work, budget: budget) }
      return try MemoryPlan(
        work, batchSamples: head.batchSamples, panelRows: head.panelRows, budget: budget)
    }
    var ownPlan = try plan(work)
    // What a rank leaves is of use to the others if all leave the same.
    if try ranks.gather(ownPlan.states == .cache ? [1] : [0], MessageLabel(.opening)).contains([1]),
      ownPlan.states != .cache
    {
      work.states = .cache
      ownPlan = try plan(work)
    }
    self.work = work
    self.plan = ownPlan
  }

  var treatments: [String: Treatment] { resolved.linears }
  /// What stands in blocks of a GGUF file and is no linear of a layer, nor the head.
  var rounded: [LinearDescription] { resolved.rounded }
  /// The head, if it is to be quantized.
  var head: Recipe.Head? { resolved.head }

  /// The source's model.
  /// - Parameter roundTokens: brings embeddings of tokens to what the result has in their place
  func model(
    sequenceLength: Int, roundingTokens roundTokens: ((Matrix) -> Void)? = nil
  ) throws -> DecoderModel {
    try DecoderModel(
      description, source: checkpoint, backend: backend, sequenceLength: sequenceLength, operands: operands,
      roundTokens: roundTokens)
  }

  /// The linears that are to be quantized.
  public var linearCount: Int { treatments.count }

  /// Those that are done, in order; before ``run(progress:)``, those of earlier runs.
  public var resumedLinears: [Report.Linear] { journal?.rows ?? opening.rows }

  /// Runs to the end and publishes the output.
  /// - Returns: the report that stands beside the checkpoint.
  public func run(progress: @escaping (ProgressEvent) -> Void) throws -> Report {
    do { return try quantize(progress) } catch {
      // What a device that failed leaves shows as all kinds of faults.
      try backend.checkDevice()
      // A file that was cut off shows where its bytes were to be written, as a fault of the output.
      try checkSource()
      throw error
    }
  }

  private func quantize(_ progress: @escaping (ProgressEvent) -> Void) throws -> Report {
    let start = ContinuousClock.now
    let memory = RunMemory(backend)
    let tuningDecision = try tuningDecision(memoryBytes: request.memoryBudgetBytes)
    if let note = tuningDecision.flatMap(note(of:)) { progress(.warning("norms are not tuned: \(note)")) }
    let (staging, store) = try makeFiles()
    defer { unpublished.withLock { ($0.output, $0.cache, $0.lock) = (nil, nil, nil) } }
    // What another job has left would be taken for this one's.
    if request.resume != nil, opening.head == nil { try store.removeAll() }
    let export = try staging.map { try makeExport(in: $0.path) }
    let isUnusual = description.hasMixtures || allocation != nil
    for support in export?.runtimes ?? [] where isUnusual && !support.loads {
      progress(.warning("\(support)"))
    }
    if let request = request.resume, let journal, !journal.hasBegun {
      let head =
        journal.head
        ?? ResumeJournal.Head(
          identity: request.identity, batchSamples: plan.batchSamples, panelRows: plan.panelRows,
          kernels: kernels, rotation: rotation, allocation: allocation, tuning: tuningDecision)
      try journal.begin(head, for: exportedLinears)
    }
    progress(.step("computing by \(kernelsInUse)"))
    let finished = FinishedLinears(of: self, export: export, progress: progress)
    try finished.begin()
    let stages = RunStages(of: self, finished: finished, memory: memory, progress: progress)
    let known =
      request.resume == nil
      ? nil
      : JournalledLinears(
        journal: journal, ranks: ranks, names: finished.names, treatments: treatments,
        description: description, backend: backend)
    if let outline {
      progress(.step("\(outline.file): \(outline.description)"))
      if let warning = outline.warning { progress(.warning(warning)) }
    }
    var times: [String: Double] = [:]
    progress(.step("embedding \(request.calibration.samples) × \(request.calibration.sequenceLength) tokens"))
    try mendingCache(store, progress) {
      let loop = try makeLoop(store, progress) { finished.workBegins() }
      defer { times.merge(loop.times.byName) { $0 + $1 } }
      let result = Result {
        try loop.run(
          knowing: known, stages.quantize, collecting: stages.collect,
          correctingHead: work.correctsHead ? stages.correctHead : nil,
          head: head.map { head in { try stages.quantize(head, $0) } })
      }
      try finished.finish()
      try result.get()
    }
    store.releaseHeld()
    memory.lap(.descending)
    guard let export, let staging else { return try receiveReport(removing: store) }
    progress(.step("writing the other tensors and files"))
    for linear in rounded {
      try round(linear) { rows, firstRow in try finished.write(rows, firstRow: firstRow) }
      progress(.advanced)
    }
    try finished.times.measure(.export) {
      try export.copyUnquantized(changing: changes(byCorrecting: stages.headCorrection))
      try export.finish()
    }
    memory.lap(.exporting)
    let tuning = try tuningDecision.map { try tuneNorms($0, in: staging.path, progress) }
    try checkSource()
    try backend.checkDevice()

    var totals = Report.Totals(of: finished.rows)
    totals.secondsPerPhase = times.merging(finished.times.byName) { $0 + $1 }
    // Writing a linear happens inside the solver's turn.
    totals.secondsPerPhase["solver"] = finished.rows.reduce(stages.head?.seconds ?? 0) { $0 + $1.seconds }
    if let seconds = tuning?.seconds { totals.secondsPerPhase["tuning"] = seconds }
    totals.tokens = request.calibration.tokens.count
    totals.states = plan.states.rawValue
    totals.cacheBytesRaw = store.statistics.rawBytesWritten
    totals.cacheBytesCompressed = store.statistics.compressedBytesWritten
    totals.cacheReads = store.statistics.reads
    totals.cacheReadsPrefetched = store.statistics.prefetchedReads
    totals.inputBytes = checkpoint.byteCount
    totals.outputBytes = try FileSystem.treeSize(staging.path) / request.formats.count
    memory.report(in: &totals, plan)
    totals.seconds = (ContinuousClock.now - start).seconds
    var report = Report(
      model: Report.Model(
        name: request.modelName ?? FileSystem.name(of: request.model), architecture: description.modelType),
      settings: settings, linears: finished.rows, totals: totals, loadsIn: export.runtimes)
    report.rounded = rounded.isEmpty ? nil : rounded.map(\.name)
    report.head = stages.head
    report.tuning = tuning
    report.correctedHead = stages.headCorrection == nil ? nil : description.head.weights
    // What stands beside a single file is not the result's.
    report.filesCopied = request.isOneFile ? [] : export.copiedFiles
    report.filesLeftOut = checkpoint.foreignFiles + (request.isOneFile ? export.copiedFiles : [])
    try report.write(to: Report.Place(directory: staging.path))
    try unpublished.withLock { files in
      guard !files.isDiscarded else { throw PipelineError.interrupted }
      if request.isOneFile {
        try publishFile(of: staging)
      } else {
        try staging.publish()
      }
      files.isPublished = true
    }
    if request.resume != nil { try store.destroy() }
    if let path = request.importanceMatrix {
      // The result stands: a full disk costs this file alone.
      do { try stages.importance?.write(to: path) } catch {
        progress(.warning("no importance matrix: \(error)"))
      }
    }
    try ranks.share(report)
    return report
  }

  /// What becomes of tensors that are not quantized.
  private func changes(byCorrecting correction: Matrix?) -> [String: (Matrix) -> Void] {
    guard let correction else { return [:] }
    return [
      description.head.weights: { [self] panel in
        backend.withHostMatrix(corrected(backend.upload(panel), by: correction), for: .reading) {
          panel.copy(from: $0)
        }
      }
    ]
  }

  private func makeExport(in directory: String) throws -> CheckpointExport {
    let others = others
    return try CheckpointExport(
      source: checkpoint, linears: exportedLinears + outside + others.linears, formats: request.formats,
      directory: directory,
      shardSizeLimit: request.shardSizeLimit,
      leavingOut: Set(request.calibrationSources.files.map { FileSystem.name(of: $0.path) }),
      besides: others.towers, traits: traits, mix: request.recipe.mix ?? GGUFMix(.q4_K_M))
  }

  private func makeLoop(
    _ store: HiddenStatesStore, _ progress: @escaping (ProgressEvent) -> Void, begun: @escaping () -> Void
  ) throws -> LayerLoop {
    let length = request.calibration.sequenceLength
    return LayerLoop(
      model: try model(sequenceLength: length, roundingTokens: roundTokens),
      original: request.target == .original ? try model(sequenceLength: length) : nil,
      originalSamples: request.originalSamples, calibration: request.calibration, store: store,
      backend: backend, batchSamples: plan.batchSamples, panelRows: plan.panelRows, ranks: ranks,
      states: plan.states, isResumable: request.resume != nil,
      experts: request.experts, firstTokenWeight: Float(request.firstTokenWeight),
      solvesWhole: { [treatments] name in treatments[name]?.isSolvedWhole ?? false },
      beforeReading: checkSource,
      advanced: { progress(.advanced) },
      repeating: { progress(.catchingUp(layer: $0, until: $1)) },
      begun: begun)
  }

  /// What the first rank has published, when it has.
  private func receiveReport(removing store: HiddenStatesStore) throws -> Report {
    let report = try Report(json: try ranks.receive(MessageLabel(.report), from: 0))
    if request.resume != nil { try store.destroy() }
    try FileSystem.removeTree("\(store.path).lock")
    return report
  }

  /// - Throws: ``SourceChange``: what has been read and what is still to come may be of two checkpoints.
  func checkSource() throws {
    try source.check(in: checkpoint.directory, symlinks: request.symlinks)
  }
}
