import ActivationCache
import Calibration
import Checkpoint
import Collective
import Compute
import Decoder
import Export
import Quantization
import Solvers
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
        ?? ranks.share(MessageLabel(.decision)) { [request] in
          try RotationTrial.decision(request, backend, progress)
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
    for id in [request.calibration.idRange.lowerBound, request.calibration.idRange.upperBound]
    where !(0..<description.vocabularySize).contains(Int(id)) {
      throw DecoderError.tokenOutsideVocabulary(token: id, vocabulary: description.vocabularySize)
    }
    let modelType = checkpoint.weightType(of: description)
    request.recipe.standard.gridFormat.scaleTypes = Set(
      request.formats.flatMap { $0.format.scaleTypes(modelType: modelType) }
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
        ?? ranks.share(MessageLabel(.decision)) { [request] in
          try AllocationTrial.decision(request, problem, backend, progress)
        }
      progress(.step("\(decision)"))
      try resolved.choose(decision.choices, of: problem.units)
      allocation = decision
    } else {
      allocation = nil
    }
    self.resolved = resolved
    outline = request.recipe.outline(resolved, of: checkpoint)
    // The linears are checked as they are read; the head, for one, is only copied along and would slip through. What no
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
      isRotated: request.rotation != .off, solvesHead: resolved.head != nil)
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
    var newWorkStart = start
    let knownCount = resumedLinears.count
    let memory = PeakMemorySampler()
    let (staging, store) = try makeFiles()
    defer { unpublished.withLock { ($0.output, $0.cache, $0.lock) = (nil, nil, nil) } }
    // What another job has left would be taken for this one's.
    if request.resume != nil, opening.head == nil { try store.removeAll() }
    let linears = exportedLinears
    let others = others
    let export = try staging.map { staging in
      try CheckpointExport(
        source: checkpoint, linears: linears + outside + others.linears, formats: request.formats,
        directory: staging.path,
        shardSizeLimit: request.shardSizeLimit,
        leavingOut: Set(request.calibrationSources.files.map { FileSystem.name(of: $0.path) }),
        besides: others.towers, traits: traits, mix: request.recipe.mix ?? GGUFMix(.q4_K_M))
    }
    let isUnusual = description.hasMixtures || allocation != nil
    for support in export?.runtimes ?? [] where isUnusual && !support.loads {
      progress(.warning("\(support)"))
    }
    if let request = request.resume, let journal, !journal.hasBegun {
      let head =
        journal.head
        ?? ResumeJournal.Head(
          identity: request.identity, batchSamples: plan.batchSamples, panelRows: plan.panelRows,
          kernels: kernels, rotation: rotation, allocation: allocation)
      try journal.begin(head, for: linears)
    }
    let length = request.calibration.sequenceLength
    func makeLoop() throws -> LayerLoop {
      LayerLoop(
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
        begun: { newWorkStart = .now })
    }
    // What a device keeps goes with the process; what is in the cache must not be further than the journal.
    let writes = WritesBeside(isBeside: backend.deviceMemory != nil && plan.states != .cache)
    var untold: ProgressEvent?
    var importance = request.importanceMatrix.map { _ in
      ImportanceMatrix(
        dataset: request.calibrationSources.names, samples: request.calibration.samples,
        sequenceLength: request.calibration.sequenceLength)
    }
    var rows: [Report.Linear] = []
    var exportTimes = PhaseTimes()
    var times: [String: Double] = [:]
    var peaks: [MemoryPlan.Phase: Int] = [:]
    var devicePeaks: [MemoryPlan.Phase: Int] = [:]
    var mostPinned = 0

    let names = LinearNames(resumedLinears.map(\.name))
    let known =
      request.resume == nil
      ? nil
      : JournalledLinears(
        journal: journal, ranks: ranks, names: names, treatments: treatments, description: description,
        backend: backend)
    if let journal, !journal.rows.isEmpty {
      if let earlier = journal.head?.kernels, earlier != kernels {
        progress(
          .warning(
            "going on by \(kernels); the \(journal.rows.count) linears before were computed by \(earlier): as "
              + "good a result, but not the bytes that one processor alone would have come to"))
      }
      progress(.step("going on after \(journal.rows.count) of \(treatments.count) linears"))
      for row in journal.rows {
        guard let linear = try journal.linear(row.name) else { continue }
        try exportTimes.measure(.export) { try export?.write(linear) }
        progress(.advanced)
      }
    }
    rows = resumedLinears

    // What a trial took is no phase's.
    _ = backend.deviceMemory?.lap()
    func measure(_ phase: MemoryPlan.Phase) {
      let pinned = backend.deviceMemory?.pinnedBytes ?? 0
      peaks[phase, default: 0].raise(to: memory.lap() + pinned)
      mostPinned.raise(to: pinned)
      if let device = backend.deviceMemory { devicePeaks[phase, default: 0].raise(to: device.lap()) }
    }

    /// Writes what a linear has come to, and tells of it.
    func keep(_ linear: QuantizedLinear, _ row: Report.Linear, layer: Int, isBeside: Bool) throws {
      try exportTimes.measure(.export) {
        try writes.add { [journal, row] in
          try export?.write(linear)
          try journal?.append(linear, row: row)
        }
        if !isBeside { try writes.finish() }
      }
      // Of what is written beside the work it is told when the next one is: whoever is told takes it for safe.
      if let event = untold.take() { progress(event) }
      rows.append(row)
      names.insert(row.name)
      for warning in row.warnings ?? [] { progress(.warning(warning)) }
      let event = ProgressEvent.linear(
        LinearProgress(
          name: linear.name, layer: layer, layerCount: description.layerCount,
          relativeError: row.relativeError, linearsDone: rows.count,
          linearCount: treatments.count, linearsResumed: knownCount,
          elapsed: ContinuousClock.now - newWorkStart))
      if isBeside { untold = event } else { progress(event) }
    }

    /// Drafts all linears of a stage, which share a factor of Σ, and then brings one after the other to its end. Ranks share
    /// the rows of a stage's linears; an expert's are one rank's.
    func quantize(
      _ layer: DecoderLayer, _ stage: Stage, _ stageProblem: LayerProblem, _ expert: LayerLoop.ExpertShare?
    ) throws {
      measure(.gathering)
      defer { measure(.solving) }
      // Linears of experts are small: nothing is gained by writing them beside the next.
      let isBeside = writes.isBeside && expert == nil
      for linear in stage.linears {
        guard let tensor = checkpoint.tensors["\(layer.moduleName(of: linear)).weight"] else { continue }
        if let expert, let stack = tensor.part, stack.shape.count == 3 {
          // What is known of all tokens stands for an expert that none reaches.
          importance?.add(
            stack.whole, energies: stageProblem.inputEnergies, tokens: max(expert.tokens, 1),
            expert: expert.number, of: stack.shape[0])
        } else {
          importance?.add(tensor.storedName, energies: stageProblem.inputEnergies)
        }
      }
      let isOwn = !layer.stages.contains { $0.experts.isEmpty && $0.linears.names == stage.linears.names }
      let ranks = isOwn ? Ranks.alone : ranks
      let done = Set(rows.map(\.name))
      var dealer = PanelDealer(ranks: ranks.count)
      var begun = try stage.linears.compactMap { linear -> BegunLinear? in
        let name = layer.moduleName(of: linear)
        guard let treatment = treatments[name], !done.contains(name) else { return nil }
        let weights = try exportTimes.measure(.loading) { try layer.storedWeights(of: linear) }
        return try begin(name, linear, weights, treatment, stageProblem, dealer: &dealer, by: ranks)
      }
      if !ranks.isAlone {
        for place in begun.indices {
          try solveOwn(&begun[place], layer: layer.index, by: ranks)
          progress(.advanced)
        }
      }
      while !begun.isEmpty {
        // Its weights go before those that it has become are made.
        let description = begun[0].description
        var (linear, row) = try finish(begun.removeFirst(), layer: layer.index, by: ranks)
        try backend.checkDevice()
        (row.expert, row.tokens) = (expert?.number, expert?.tokens)
        layer.replaceWeights(of: description, by: linear, backend: backend)
        if isOwn, !self.ranks.isChief {
          self.ranks.post(
            try ResumeJournal.payload(of: linear, row: row).bytes,
            MessageLabel(.linear, layer: layer.index), to: 0)
        } else {
          try keep(linear, row, layer: layer.index, isBeside: isBeside)
        }
      }
    }

    /// Takes in what another rank has made of an expert's linears.
    func collect(_ layer: DecoderLayer, _ half: Stage, _ rank: Int) throws {
      let label = MessageLabel(.linear, layer: layer.index)
      for name in half.linears.map(layer.moduleName(of:)) where treatments[name] != nil {
        defer { names.insert(name) }
        guard rank != 0, ranks.isChief, !names.contains(name) else { continue }
        guard let done = ResumeJournal.linear(ofPayload: try ranks.receive(label, from: rank)) else {
          throw ranks.unlike(label, from: rank)
        }
        try keep(done.linear, done.row, layer: layer.index, isBeside: false)
      }
    }

    var headRow: Report.Linear?
    func quantizeHead(_ head: Recipe.Head, _ problem: LayerProblem) throws {
      measure(.gathering)
      defer { measure(.solving) }
      progress(.step("solving \(head.linear.name)"))
      if !description.hasTiedHead, let tensor = checkpoint.tensors["\(head.linear.name).weight"] {
        importance?.add(tensor.storedName, energies: problem.inputEnergies)
      }
      // Its rows are one rank's, as few runs have them.
      guard let export else { return }
      headRow = try solve(head, problem) { rows, firstRow in
        progress(.advanced)
        try exportTimes.measure(.export) { try export.write(rows, firstRow: firstRow) }
      }
      for warning in headRow?.warnings ?? [] { progress(.warning(warning)) }
    }

    if let outline {
      progress(.step("\(outline.file): \(outline.description)"))
      if let warning = outline.warning { progress(.warning(warning)) }
    }
    progress(.step("embedding \(request.calibration.samples) × \(request.calibration.sequenceLength) tokens"))
    try mendingCache(store, progress) {
      let loop = try makeLoop()
      defer { times.merge(loop.times.byName) { $0 + $1 } }
      let result = Result {
        try loop.run(
          knowing: known, quantize, collecting: collect,
          head: head.map { head in { try quantizeHead(head, $0) } })
      }
      try exportTimes.measure(.export) { try writes.finish() }
      if let event = untold.take() { progress(event) }
      try result.get()
    }
    guard let export, let staging else { return try receiveReport(removing: store) }
    progress(.step("writing the other tensors and files"))
    for linear in rounded {
      try round(linear) { rows, firstRow in
        try exportTimes.measure(.export) { try export.write(rows, firstRow: firstRow) }
      }
      progress(.advanced)
    }
    try exportTimes.measure(.export) {
      try export.copyUnquantized()
      try export.finish()
    }
    try checkSource()
    try backend.checkDevice()

    var totals = Report.Totals(of: rows)
    totals.secondsPerPhase = times.merging(exportTimes.byName) { $0 + $1 }
    // Writing a linear happens inside the solver's turn.
    totals.secondsPerPhase["solver"] = rows.reduce(headRow?.seconds ?? 0) { $0 + $1.seconds }
    totals.tokens = request.calibration.tokens.count
    totals.states = plan.states.rawValue
    totals.cacheBytesRaw = store.statistics.rawBytesWritten
    totals.cacheBytesCompressed = store.statistics.compressedBytesWritten
    totals.cacheReads = store.statistics.reads
    totals.cacheReadsPrefetched = store.statistics.prefetchedReads
    totals.inputBytes = checkpoint.byteCount
    totals.outputBytes = try FileSystem.treeSize(staging.path) / request.formats.count
    totals.peakMemoryBytes = memory.stop() + mostPinned
    func memoryReport(_ planned: [MemoryPlan.Phase: Int], _ peaks: [MemoryPlan.Phase: Int]) -> [String: Report
      .Memory]
    {
      Dictionary(
        uniqueKeysWithValues: planned.map { phase, bytes in
          (phase.rawValue, Report.Memory(planned: bytes, peak: peaks[phase] ?? 0))
        })
    }
    totals.memoryBytesPerPhase = memoryReport(plan.bytesPerPhase, peaks)
    totals.deviceMemoryBytesPerPhase = plan.deviceBytesPerPhase.map { memoryReport($0, devicePeaks) }
    totals.seconds = (ContinuousClock.now - start).seconds
    var report = Report(
      model: Report.Model(name: FileSystem.name(of: request.model), architecture: description.modelType),
      settings: settings, linears: rows, totals: totals, loadsIn: export.runtimes)
    report.rounded = rounded.isEmpty ? nil : rounded.map(\.name)
    report.head = headRow
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
      do { try importance?.write(to: path) } catch { progress(.warning("no importance matrix: \(error)")) }
    }
    try ranks.share(report)
    return report
  }

  /// What the first rank has published, when it has.
  private func receiveReport(removing store: HiddenStatesStore) throws -> Report {
    let report = try Report(json: try ranks.receive(MessageLabel(.report), from: 0))
    if request.resume != nil { try store.destroy() }
    try FileSystem.removeTree("\(store.path).lock")
    return report
  }

  /// - Throws: ``SourceChange``: what has been read and what is still to come may be of two checkpoints.
  private func checkSource() throws {
    try source.check(in: checkpoint.directory, symlinks: request.symlinks)
  }
}

extension Int {
  fileprivate mutating func raise(to other: Int) { self = Swift.max(self, other) }
}
