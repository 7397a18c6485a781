import Calibration
import Checkpoint
import Collective
import Compute
import Export
import Pipeline
import SystemIO

/// Does one job, from where an earlier worker left it, in a process of its own.
///
/// Whatever ends the process, the next worker goes on after the last linear that is in the journal. Nothing that a
/// checkpoint or a device does to this process reaches the daemon.
public struct JobWorker {
  private let order: JobOrder
  private let files: JobFiles
  private let backend: any ComputeBackend
  private let send: (WorkerEvent) -> Void
  private let isNetworked: (String) throws -> Bool
  private let symlinks: SymlinkPolicy
  private let lock: FileLock?
  private let attempt: JobAttempt?
  private let restart: () -> Void
  private let ranks: Ranks

  /// - Parameters:
  ///   - isNetworked: whether a directory is on a file system whose times of change cannot be relied on
  ///   - symlinks: whether the checkpoint's files may be links: not where strangers put them
  ///   - lock: the job's, if somebody holds it for this worker; else the worker waits for it
  ///   - attempt: this one, where other workers may be at the job; nil where the lock keeps them away
  ///   - ranks: the processes that share the work; this is the first one, and the others wait for its calibration set
  ///   - restart: has the work begin anew by the kernels that the job was begun with; it returns where that cannot be
  ///   - send: takes every event
  public init(
    _ order: JobOrder, backend: any ComputeBackend, symlinks: SymlinkPolicy = .refuse,
    holding lock: FileLock? = nil, attempt: JobAttempt? = nil,
    ranks: Ranks = .alone,
    isNetworked: @escaping (String) throws -> Bool = { try FileSystem.isNetworked($0) },
    restart: @escaping () -> Void = {},
    send: @escaping (WorkerEvent) -> Void
  ) {
    self.order = order
    self.backend = backend
    self.isNetworked = isNetworked
    self.symlinks = symlinks
    self.lock = lock
    self.attempt = attempt
    self.restart = restart
    self.ranks = ranks
    self.send = send
    files = JobFiles(order.directory, attempt: attempt)
  }

  /// Why a job does not fit into a device's memory; nil if it does, if there is no device, and where the job itself is at
  /// fault, which its work then finds.
  public static func shortage(
    of order: JobOrder, on backend: any ComputeBackend, symlinks: SymlinkPolicy = .refuse
  ) -> PipelineError? {
    guard backend.deviceMemory != nil,
      let plan = try? RunPlan(
        model: order.model, settings: order.settings, symlinks: symlinks,
        hasConverter: order.ggufConverter != nil),
      let budget = try? order.memoryBytes ?? ProcessMemory.availableBytes()
    else { return nil }
    do {
      _ = try plan.memoryPlan(backend: backend, budgetBytes: budget, states: order.states ?? .auto)
      return nil
    } catch let error as PipelineError where error.isLackOfMemory { return error } catch { return nil }
  }

  /// The kernels that a job was begun with, to be taken again; see ``ResumePlace/kernels``.
  /// - Parameter directory: the job's
  /// - Throws: ``FileError``
  public static func kernels(ofJobIn directory: String) throws -> String? {
    let files = JobFiles(directory)
    guard try FileSystem.exists(files.identity) else { return nil }
    return try ResumePlace(
      journal: files.journal, earlierJournals: JobAttempt.journals(in: directory), cache: "",
      identity: storedIdentity(files)
    ).kernels
  }

  /// Works as one of the ranks of a job that are not the first one.
  /// - Throws: as ``run()``
  public static func follow(_ order: JobOrder, by backend: any ComputeBackend, ranks: Ranks) throws {
    // Where a cache may have broken workers, each attempt has another one.
    let forgetting = order.forgetsCache == true ? "\(order.lastAttempt ?? 0)-\(ThisProcess.identifier)" : ""
    let cache = FileSystem.join(order.cacheDirectory, followersCache(of: order.id, order) + forgetting)
    try removeAbandonedCaches(order)
    try ranks.follow(by: backend, cache: cache) { calibration in
      let staged = JobFiles(order.directory).staged
      var request = try request(
        order, calibration, model: order.model, output: staged, symlinks: .refuse)
      request.source = order.source
      return request
    }
  }

  private static func request(
    _ order: JobOrder, _ calibration: CalibrationSet, model: String, output: String, symlinks: SymlinkPolicy
  ) throws -> QuantizationRequest {
    var request = try QuantizationRequest(
      order.settings, model: model, output: output, calibration: calibration, from: order.calibration,
      memoryBudgetBytes: order.memoryBytes ?? ProcessMemory.availableBytes(), states: order.states ?? .auto)
    request.symlinks = symlinks
    request.modelName = order.modelName
    return request
  }

  /// Works until the finished checkpoint stands in the job's directory, complete, verified and on the disk.
  /// - Throws: what stops the job; ``JobFailure/init(_:)`` tells what it asks for.
  public func run() throws {
    // A worker whose daemon was killed goes a moment later than its daemon.
    let lock = try attempt == nil ? self.lock ?? Self.waitForLock(files, job: order.id) : nil
    defer { withExtendedLifetime(lock) {} }
    // An earlier worker got to the end, or another one was faster.
    if try FileSystem.exists(files.result) {
      return send(.finished(WorkerEvent.Summary(try Report(directory: files.result).totals)))
    }
    let kernels = backend.kernels(for: .bfloat16)
    let calibration = try calibrationSet()
    let identity = try knownIdentity(calibration)
    // Tried again by hand, a job is known only now to be the one that others have worked on.
    if let begun = try resumePlace(identity).kernels, begun != kernels { restart() }
    let result = JobIdentity.result(of: identity, by: kernels)
    if try !FileSystem.exists(files.staged) {
      send(.identity(result))
      if let summary = try reuse(result) { return send(.finished(summary)) }
      if try !FileSystem.exists(files.staged) {
        try quantize(calibration, identity, model: try convertedModel())
      }
    }
    try FileSystem.removeTree(files.convertedDirectory)
    if try !FileSystem.exists(FileSystem.join(files.staged, ChecksumManifest.fileName)) {
      try checkContents()
      send(.step("writing checksums"))
      // Whose it is, so that the folders alone tell it.
      var report = try Report(directory: files.staged)
      report.job = order.id
      report.identity = result
      try report.write(to: Report.Place(directory: files.staged))
      try ChecksumManifest.write(into: files.staged) { send(.advanced) }
      try FileSystem.synchronize(files.staged)
    }
    send(.step("verifying the result"))
    if let problem = try OutputVerification.problems(of: files.staged, advanced: { send(.advanced) })
      .first
    {
      try FileSystem.removeTree(files.staged)
      throw JobFailure(
        .broken, "\(problem): the result is not what was written; check the disk and the memory", code: 74)
    }
    // Before the daemon may have published it.
    let summary = WorkerEvent.Summary(try Report(directory: files.staged).totals)
    try handOver()
    send(.finished(summary))
  }

  /// Makes the verified checkpoint the job's, unless another worker was faster: theirs has the same bytes.
  private func handOver() throws {
    if let attempt, try !FileSystem.exists(attempt.events) {
      throw FileError(path: attempt.events, operation: .inspect, errno: .noSuchFileOrDirectory)
    }
    do { try FileSystem.move(files.staged, to: files.result) } catch {
      // On a network file system a rename may have been done that is said to have failed.
      guard try FileSystem.exists(files.result) else { throw error }
      try FileSystem.removeTree(files.staged)
    }
  }

  /// Looks for what the same job came to before. What is published a second time is verified first.
  /// - Returns: its figures if it stands where this job's result is to stand. If it stands elsewhere, its files are
  ///   this job's checkpoint now; if there is none, there is no checkpoint.
  private func reuse(_ identity: String) throws -> WorkerEvent.Summary? {
    let results = (order.results ?? []).filter { $0.identity == identity }
    func hasOwnName(_ result: JobOrder.Result) -> Bool { FileSystem.name(of: result.output) == order.name }
    for result in results.filter(hasOwnName) + results.filter({ !hasOwnName($0) }) {
      // Another job's result may stand there by now, where somebody has moved this one's away.
      guard try FileSystem.exists(result.output), var report = try? Report(directory: result.output),
        report.identity == identity
      else { continue }
      send(.step("checking \(result.output), to which the same job came before"))
      if let problem = try OutputVerification.problems(of: result.output, advanced: { send(.advanced) }).first
      {
        send(
          .warning(
            "\(result.output) is not what was written (\(problem)): it is not used again, and the job is done anew"
          ))
        continue
      }
      if hasOwnName(result) {
        send(.reused(job: result.job, output: result.output))
        return WorkerEvent.Summary(report.totals)
      }
      report.model.name = order.modelName
      report.madeBy = result.job
      let own = [Report.fileName, ReportPage.fileName, ChecksumManifest.fileName, JobLog.fileName]
      let staging = FileSystem.join(files.own, ".reused")
      try FileSystem.removeTree(staging)
      try FileSystem.linkTree(result.output, to: staging) { !own.contains($0) }
      try report.write(to: Report.Place(directory: staging))
      try FileSystem.move(staging, to: files.staged)
      send(.reused(job: result.job, output: nil))
      return nil
    }
    return nil
  }

  /// Reads a source again whose file system may show old times to this machine while another one writes: stamps are no
  /// proof there that it stayed what it was.
  private func checkContents() throws {
    guard try isNetworked(order.model) else { return }
    send(.step("reading the checkpoint once more, as it is on a network file system"))
    let now = try JobIdentity.contents(of: order, symlinks: symlinks) { send(.advanced) }
    let before = try FileSystem.contents(of: files.contents, limit: 1 << 26)
    guard before != Array(now.utf8) else { return }
    for leftover in [
      files.staged, files.journal, files.identity, files.contents, files.tokens, files.convertedDirectory,
    ] {
      try FileSystem.removeTree(leftover)
    }
    throw JobFailure(
      .job,
      "\(order.model) changed while it was read; nothing of it is published: give the whole checkpoint again",
      code: 65)
  }

  static func waitForLock(_ files: JobFiles, job: String) throws -> FileLock {
    try FileLock.waiting(path: files.lock, purpose: "working on \(job)", tries: 50, pause: .milliseconds(100))
  }

  /// What is quantized: the model, or the GGUF file that it becomes first, where it is to become one.
  private func convertedModel() throws -> String {
    guard let program = order.converter else { return order.model }
    let file = files.converted(order.name ?? FileSystem.name(of: order.model))
    if try FileSystem.exists(file) { return file }
    send(.step("converting to GGUF by \(program)"))
    try FileSystem.createDirectories(files.convertedDirectory)
    try GGUFConverter(program: program, python: order.python)
      .convert(order.model, source: order.source, to: file, symlinks: symlinks) { send(.advanced) }
    return file
  }

  private func quantize(_ calibration: CalibrationSet, _ identity: String, model: String) throws {
    for name in try FileSystem.names(in: files.own) where name.hasPrefix(".") {
      try FileSystem.removeTree(FileSystem.join(files.own, name))
    }
    send(.step("checking the checkpoint"))
    let cache = try cachePlace(of: identity)
    defer { withExtendedLifetime(cache.lock) {} }
    _ = try ranks.share(calibration)
    var request = try Self.request(
      order, calibration, model: model, output: files.staged, symlinks: symlinks)
    request.resume = try resumePlace(identity, cache: cache.path)
    request.source = model == order.model ? order.source : nil
    let run = try QuantizationRun(
      request, backend: backend, ranks: ranks,
      progress: { event in
        switch event {
        case .step(let text): send(.step(text))
        default: send(.advanced)
        }
      })
    send(
      .planned(
        WorkerEvent.Plan(
          architecture: run.description.modelType, layerCount: run.description.layerCount,
          linearCount: run.linearCount, memoryBytes: run.plan.peakBytes,
          kernels: run.kernelsInUse)))
    if !run.resumedLinears.isEmpty { send(.resumed(run.resumedLinears.map(WorkerEvent.Linear.init))) }
    var repetition: (start: ContinuousClock.Instant, layer: Int)?
    _ = try run.run { event in
      switch event {
      case .catchingUp(let layer, let until):
        let first = repetition ?? (.now, layer)
        repetition = first
        let done = layer - first.layer
        let pace = done > 0 ? (ContinuousClock.now - first.start).seconds / Double(done) : nil
        send(
          .catchingUp(
            WorkerEvent.CatchingUp(
              layer: layer, until: until, secondsRemaining: pace.map { $0 * Double(until - layer) })))
      case .step(let text): send(.step(text))
      case .warning(let text): send(.warning(text))
      case .advanced: send(.advanced)
      case .linear(let progress):
        send(
          .linear(
            WorkerEvent.Linear(
              name: progress.name, layer: progress.layer, relativeError: progress.relativeError),
            secondsRemaining: progress.remaining.seconds))
      }
    }
  }

  private func resumePlace(_ identity: String, cache: String = "") throws -> ResumePlace {
    // A job may have been the daemon's own before it was Slurm's, and the other way round.
    let journals = try [JobFiles(order.directory).journal] + JobAttempt.journals(in: order.directory)
    return ResumePlace(
      journal: files.journal, earlierJournals: journals.filter { $0 != files.journal }, cache: cache,
      identity: identity)
  }

  /// The tokens that the job began with, or those drawn now.
  private func calibrationSet() throws -> CalibrationSet {
    if try FileSystem.exists(files.tokens) { return try storedCalibrationSet() }
    let (_, model) = try QuantizationRun.open(
      order.model, symlinks: symlinks, allowingRequantizing: order.settings.allowRequantize,
      rotation: order.settings.rotate)
    send(.step("reading \(order.calibration)"))
    let rows = try TokenRows.all(of: order.calibration, model: order.model, python: order.python)
    let set = try CalibrationSet(
      drawing: order.settings.samples, spare: order.settings.spareSamples,
      sequenceLength: order.settings.sequenceLength, from: order.calibration, rows: rows,
      seed: order.settings.seed)
    // What is kept knows only those that were drawn.
    try QuantizationRun.requireTokens(set, of: model)
    if let warning = set.warning { send(.warning(warning)) }
    try settle(
      (set.tokens + set.spare + [Int32(set.overlapping)]).flatMap { token in
        (0..<4).map { UInt8(truncatingIfNeeded: token >> (8 * $0)) }
      },
      at: files.tokens)
    return try storedCalibrationSet()
  }

  private func storedCalibrationSet() throws(FileError) -> CalibrationSet {
    let bytes = try FileSystem.contents(of: files.tokens, limit: 1 << 32, symlinks: .refuse)
    let tokens = stride(from: 0, to: bytes.count, by: 4).map { start in
      bytes[start..<start + 4].reversed().reduce(Int32(0)) { $0 << 8 | Int32($1) }
    }
    let length = order.settings.sequenceLength
    let solved = order.settings.samples * length
    // Behind whole sequences it is said how many overlap; a job of an earlier version has none that do.
    let counts = tokens.suffix(tokens.count % length)
    return CalibrationSet(
      sequenceLength: length, tokens: Array(tokens.prefix(solved)),
      spare: Array(tokens.dropFirst(solved).dropLast(counts.count)), overlapping: Int(counts.first ?? 0))
  }

  /// Writes what is to be the same for all workers of the job: the first one's counts. It comes from this worker's own
  /// directory by a rename, which fails where that is retired: then the job may be another one by now.
  private func settle(_ bytes: [UInt8], at path: String) throws(FileError) {
    let draft = FileSystem.join(files.own, "\(FileSystem.name(of: path)).draft")
    try AtomicFile.write(bytes, to: draft)
    do { try FileSystem.move(draft, to: path) } catch {
      guard try FileSystem.exists(path), try FileSystem.exists(draft) else { throw error }
      try FileSystem.removeTree(draft)
    }
  }

  private func knownIdentity(_ tokens: CalibrationSet) throws -> String {
    if try FileSystem.exists(files.identity) { return try Self.storedIdentity(files) }
    send(.step("reading the checkpoint"))
    let contents = try JobIdentity.contents(of: order, symlinks: symlinks) { send(.advanced) }
    let identity = try JobIdentity.digest(of: order, contents: contents, tokens: tokens)
    // First, so that there is none without it.
    try settle(Array(contents.utf8), at: files.contents)
    try settle(Array(identity.utf8), at: files.identity)
    return try Self.storedIdentity(files)
  }

  private static func storedIdentity(_ files: JobFiles) throws(FileError) -> String {
    String(decoding: try FileSystem.contents(of: files.identity, limit: 128), as: UTF8.self)
  }

  /// The activation cache's file. Its name holds the machine's start: one that was written before is not to be
  /// trusted, since nobody waited for it to reach the disk.
  private func cachePlace(of job: String) throws -> CachePlace {
    // With what makes the job this one: on a host that it comes back to there may be states of what it was before a retry.
    let name =
      "\(order.id).\(MachineStart.mark)-\(Self.spoolMark(of: order))-\(job.prefix(8))\(Self.cacheSuffix)"
    // The daemon looks at its own host's.
    if attempt != nil, try isNetworked(FileSystem.nearestExisting(order.cacheDirectory)) {
      throw JobFailure(
        .blocked,
        "\(order.cacheDirectory) is on a network file system on this node, which LMDB's files must not be on: let 'cache' be "
          + "on a local disk of every node",
        code: 78)
    }
    try FileSystem.createDirectories(order.cacheDirectory)
    let path = FileSystem.join(order.cacheDirectory, name)
    guard let attempt else {
      // Those of other ranks on this host are theirs.
      try Self.removeCaches(of: order.id, in: order.cacheDirectory) {
        !$0.hasPrefix(name) && !$0.contains(".rank")
      }
      return CachePlace(path: path, lock: nil)
    }
    try Self.removeAbandonedCaches(order)
    let lock = try lock(ofCache: path)
    if lock != nil, order.forgetsCache == true {
      for suffix in ["", "-lock"] { try FileSystem.removeTree(path + suffix) }
    }
    return CachePlace(path: lock == nil ? "\(path).\(attempt.number)" : path, lock: lock)
  }

  /// - Returns: nil if a worker has it that nobody hears of any more, on this very host
  private func lock(ofCache path: String) throws -> FileLock? {
    do {
      return try FileLock(path: path + ".lock", purpose: "working on \(order.id)")
    } catch {
      guard case .held = error else { throw error }
      return nil
    }
  }

  /// Where the activation cache is, and the right to it, where other workers may be on this host.
  private struct CachePlace {
    let path: String
    let lock: FileLock?
  }

  private static let cacheSuffix = ".activations.mdb"

  /// Tells this spool's caches from others' on the same host.
  private static func spoolMark(of order: JobOrder) -> String {
    var digest = SHA256Digest()
    digest.update(FileSystem.parent(of: order.directory))
    return String(digest.finish().prefix(4))
  }

  /// What the names of caches begin with that ranks have which are not the first one.
  static func followersCache(of job: String, _ order: JobOrder) -> String {
    "\(job).ranks-\(spoolMark(of: order))-"
  }

  /// Removes what jobs have left on this host that are over, or that went on elsewhere to their end.
  static func removeAbandonedCaches(_ order: JobOrder) throws {
    guard try FileSystem.kind(of: order.cacheDirectory) == .directory else { return }
    let jobs = FileSystem.parent(of: order.directory)
    let mark = "-\(spoolMark(of: order))-"
    for name in try FileSystem.names(in: order.cacheDirectory) where name.contains(cacheSuffix) {
      // Between the job and the mark stand a dot and no other.
      guard let mark = name.range(of: mark, options: .backwards)?.lowerBound,
        let dot = name[..<mark].lastIndex(of: "."),
        try !FileSystem.exists(FileSystem.join(jobs, String(name[..<dot])))
      else { continue }
      try FileSystem.removeTree(FileSystem.join(order.cacheDirectory, name))
    }
  }

  /// Removes a job's activation caches.
  /// - Throws: ``FileError``
  static func removeCaches(
    of job: String, in directory: String, where isUnwanted: (String) -> Bool = { _ in true }
  ) throws(FileError) {
    guard try FileSystem.kind(of: directory) == .directory else { return }
    for name in try FileSystem.names(in: directory)
    where name.hasPrefix("\(job).") && name.contains(cacheSuffix) && isUnwanted(name) {
      try FileSystem.removeTree(FileSystem.join(directory, name))
    }
  }
}

extension WorkerEvent.Summary {
  init(_ totals: Report.Totals) {
    self.init(meanRelativeError: totals.meanRelativeError, bitsPerWeight: totals.bitsPerWeight)
  }
}

extension WorkerEvent.Linear {
  init(_ row: Report.Linear) {
    self.init(name: row.name, layer: row.layer, relativeError: row.relativeError)
  }
}
