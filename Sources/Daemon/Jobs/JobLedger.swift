import Export
import FoundationEssentials
import SystemIO

/// Every job there is, in the state database and in the spool's directories, and the moves between them.
///
/// Every move can be ended anywhere and done again: what is to be done is committed first, then done, and
/// ``recover()`` finishes what it finds half done. What recovery does follows from the rows and the directories
/// alone.
public final class JobLedger {
  public let spool: Spool
  public let cacheDirectory: String
  private let state: StateStore
  /// The files of claimed checkpoints that there was no space to write down.
  private var unwritten: [String: SourceFiles] = [:]
  /// As in the database, by identifier.
  private var records: [String: JobRecord] = [:]
  private(set) var counters: StatusSnapshot.Counters
  /// Brings a directory to the disk; in tests the disk may refuse.
  var synchronize: (String) throws(FileError) -> Void = FileSystem.synchronizeTree

  /// - Throws: ``StateError``, ``FileError``
  public init(spool: Spool, state: StateStore, cacheDirectory: String) throws {
    self.spool = spool
    self.state = state
    self.cacheDirectory = cacheDirectory
    counters = try state.counters()
    refusals = try state.refusals()
    heldSince = try state.heldSince()
    for job in try state.jobs() { records[job.id] = job }
  }

  /// Since when a person holds all jobs back.
  private(set) var heldSince: Double?

  func hold(_ isHeld: Bool) throws {
    let since = isHeld ? heldSince ?? now : nil
    try state.save(heldSince: since)
    heldSince = since
  }

  /// What is refused of the drop folder, by name; commands read it, too.
  private(set) var refusals: [String: Drop.Refusal]

  func note(_ refusals: [String: Drop.Refusal]) throws {
    guard refusals != self.refusals else { return }
    try state.save(refusals)
    self.refusals = refusals
  }

  /// In the order of arrival.
  public var jobs: [JobRecord] {
    records.values.sorted { ($0.arrivedAt, $0.id) < ($1.arrivedAt, $1.id) }
  }

  public func job(_ id: String) -> JobRecord? { records[id] }

  func files(of id: String) -> JobFiles { JobFiles(FileSystem.join(spool.partial, id)) }

  /// The directory of the job's checkpoint.
  /// - Throws: ``FileError``, ENOENT if it is nowhere
  func source(of id: String) throws -> String {
    guard let job = records[id] else { preconditionFailure("\(id) is no job") }
    if let source = try spool.source(of: job) { return source }
    throw FileError(path: spool.place(id, .working), operation: .inspect, errno: .noSuchFileOrDirectory)
  }

  /// The files of the job's checkpoint as they were when it was claimed.
  func sourceFiles(of id: String) throws -> SourceFiles {
    let path = files(of: id).source
    if try FileSystem.exists(path) {
      let bytes = try FileSystem.contents(of: path, limit: 1 << 26, symlinks: .refuse)
      if let known = try? JSONDecoder().decode(SourceFiles.self, from: Data(bytes)) { return known }
    }
    // Where there was no file for it: a job of an earlier version, or one that is tried again, is looked at from now on.
    let found = try unwritten[id] ?? SourceFiles(of: source(of: id), symlinks: .refuse)
    try note(found, of: id)
    unwritten[id] = nil
    return found
  }

  private func note(_ source: SourceFiles, of id: String) throws {
    let files = files(of: id)
    try FileSystem.createDirectories(files.directory)
    try AtomicFile.rewrite(Array(try JSONEncoder().encode(source)), to: files.source)
  }

  /// How the database was found; see ``rebuild()``.
  var stateOrigin: StateStore.Origin { state.origin }

  /// Makes the state database anew where somebody has removed or replaced it; it is small, and all of it is in memory.
  /// - Returns: whether that was so
  func restoreState() throws -> Bool {
    guard !state.isInPlace else { return false }
    try state.reopen()
    try state.save(refusals)
    try state.save(heldSince: heldSince)
    for job in jobs { try state.save(job, counters: counters) }
    if let mark = try spool.mark() { try state.save(spoolMark: mark) }
    return true
  }

  /// Changes a job's row; in memory only when it is on the disk.
  @discardableResult
  func update(
    _ id: String, counting count: (inout StatusSnapshot.Counters) -> Void = { _ in },
    _ change: (inout JobRecord) -> Void
  ) throws -> JobRecord {
    guard var job = records[id] else { preconditionFailure("\(id) is no job") }
    var counters = counters
    change(&job)
    count(&counters)
    try state.save(job, counters: counters == self.counters ? nil : counters)
    records[id] = job
    self.counters = counters
    return job
  }

  /// Makes a drop a job's, which it is as soon as the row is on the disk, and then moves it out of the way.
  /// - Parameters:
  ///   - inode: of the directory `incoming/<name>`
  ///   - contents: what it holds
  func claim(_ id: String, name: String, inode: UInt64, contents: DropContents, arrivedAt: Double) throws {
    precondition(CheckpointParts.isPlainName(id), "an id is one name")
    do { try note(contents.source, of: id) } catch let error as FileError where error.isLackOfSpace {
      // The job waits for space by itself, and says so; a drop that cannot be claimed would say nothing.
      unwritten[id] = contents.source
    }
    try enter(JobRecord(id: id, name: name, inode: inode, contents: contents.digest, arrivedAt: arrivedAt))
    try move(id, to: .working)
  }

  /// Enters a job whose source stands where those of claimed jobs do.
  func enter(_ id: String, name: String, arrivedAt: Double) throws {
    let place = try spool.places(id, .working).first { try FileSystem.exists($0) }
    let inode = try place.map { try FileSystem.stamp(of: $0).stamp.inode }
    try enter(JobRecord(id: id, name: name, inode: inode, arrivedAt: arrivedAt))
  }

  func enter(_ job: JobRecord, counting counters: StatusSnapshot.Counters? = nil) throws {
    try state.save(job, counters: counters)
    records[job.id] = job
    self.counters = counters ?? self.counters
  }

  /// Moves a job's source, if it is anywhere, to the first place of its standing that the kernel allows.
  private func move(_ id: String, to standing: SourceStanding) throws {
    guard let job = records[id], let source = try spool.source(of: job) else { return }
    _ = try move(source, to: spool.places(id, standing))
  }

  /// - Returns: where the source is afterwards
  private func move(_ source: String, to places: [String]) throws -> String {
    for place in places {
      if place == source { return source }
      if try isMoved(source, to: place) { return place }
    }
    return source
  }

  /// Moves a source, unless the kernel does not let this process make such a move, while another one may do.
  private func isMoved(_ source: String, to place: String) throws -> Bool {
    do { try FileSystem.move(source, to: place) } catch {
      guard error.isRefusedMove else { throw error }
      return false
    }
    return true
  }

  // MARK: Moves

  /// Publishes the finished checkpoint of a job under the name of its drop, or the next free one.
  func publish(_ id: String, summary: WorkerEvent.Summary?) throws {
    guard let job = records[id] else { preconditionFailure("\(id) is no job") }
    let checkpoint = files(of: id).result
    // A worker that was cut off may bring a result after the first one has been moved; it has the same bytes.
    let isInPlace = try isInPlace(job)
    if !isInPlace {
      let output = try freeOutput(for: job.name)
      try update(id) { job in
        job.phase = .publishing
        job.output = output
        job.summary = summary ?? job.summary
      }
      // By the daemon, who alone has written all of it.
      if try files(of: id).log.copy(into: checkpoint) {
        try ChecksumManifest.update([JobLog.fileName], in: checkpoint)
      }
      do { try synchronize(checkpoint) } catch {
        // A second try would succeed and mean nothing: the kernel has given those pages up. The journal makes the
        // result anew.
        if error.errno == .ioError { try FileSystem.removeTree(checkpoint) }
        throw error
      }
      try FileSystem.move(checkpoint, to: output)
    }
    // An earlier attempt may have ended between the move and this.
    try update(id, counting: { $0.published += 1 }) { job in
      (job.phase, job.isUntold) = (.published, true)
      job.finishedAt = now
      job.rest()
    }
    try clear(id)
  }

  /// Whether a job's result stands where it is to be published, and not another's by that name. One that does not say whose it
  /// is belongs to the job if that has no other.
  private func isInPlace(_ job: JobRecord) throws -> Bool {
    guard job.phase == .publishing, let output = job.output, try FileSystem.exists(output) else {
      return false
    }
    if let owner = (try? Report(directory: output))?.job { return owner == job.id }
    return try !FileSystem.exists(files(of: job.id).result)
  }

  /// Ends a job whose result stands in the output folder already, under its name.
  func publishAsItStands(_ id: String, summary: WorkerEvent.Summary) throws {
    try update(id, counting: { $0.published += 1 }) { job in
      (job.phase, job.isUntold) = (.published, true)
      job.summary = summary
      job.finishedAt = now
      job.rest()
    }
    try clear(id)
  }

  /// What published jobs have come to, the newest first.
  var results: [JobOrder.Result] {
    jobs.reversed().compactMap { job in
      guard job.phase == .published, let digest = job.digest, let output = job.output else { return nil }
      return JobOrder.Result(job: job.madeBy ?? job.id, identity: digest, output: output)
    }
  }

  func fail(_ id: String, _ failure: JobFailure) throws {
    try update(id, counting: { $0.failed += 1 }) { job in
      (job.phase, job.isUntold) = (.failed, true)
      job.failure = failure
      job.finishedAt = now
      job.rest()
    }
    try clear(id)
  }

  /// Gives a job up that no worker is at.
  func cancel(_ id: String) throws {
    try update(id) { job in
      job.phase = .cancelled
      job.failure = JobFailure(.job, "cancelled; 'quantease retry \(id)' takes it up again", code: 0)
      job.finishedAt = now
      job.rest()
    }
    try clear(id)
  }

  /// Queues a failed or cancelled job again.
  func retry(_ id: String) throws {
    // Settings may have changed, on purpose. If they have not, the journal still is the job's. All this comes before
    // the row: a crash in between leaves a job that can be tried again, and nothing old in one that is.
    let files = files(of: id)
    // The order first: an attempt that begins afterwards finds none.
    try FileSystem.removeTree(files.order)
    try JobAttempt.retireAll(in: files.directory)
    for file in [files.source, files.tokens, files.contents, files.identity, files.result, files.staged] {
      try FileSystem.removeTree(file)
    }
    // Left in the source, the reason would count as one of the model's files.
    let failed = spool.place(id, .failed)
    let log = JobLog(directory: failed)
    if try FileSystem.exists(log.path) {
      // It goes on.
      try FileSystem.createDirectories(files.directory)
      try log.copy(into: files.directory)
      try FileSystem.removeTree(log.path)
    }
    try FileSystem.removeTree(FileSystem.join(failed, Reason.fileName))
    if let job = records[id], try spool.source(of: job) != failed { try FileSystem.removeTree(failed) }
    try move(id, to: .working)
    try update(id) { job in
      job.phase = .queued
      job.attempts = 0
      job.failure = nil
      job.warnings = nil
      job.breakdowns = nil
      job.isUntold = nil
      job.finishedAt = nil
      job.step = ""
    }
  }

  /// Removes what a job that is over has left, and puts its source where it belongs.
  private func clear(_ id: String) throws {
    guard let job = records[id], job.phase.isOver else { preconditionFailure("\(id) is not over") }
    try JobWorker.removeCaches(of: id, in: cacheDirectory)
    if job.phase == .published {
      try removeUnfinished(job)
      try move(id, to: .done)
    } else {
      try putAside(job)
    }
  }

  /// Removes a job's own files, but for what a worker that broke down has done: it is worth keeping for `retry`.
  private func removeUnfinished(_ job: JobRecord) throws {
    guard job.failure?.kind != .broken else { return }
    let directory = files(of: job.id).directory
    let last = try JobAttempt.lastNumber(in: directory)
    // Their numbers are not given again: a worker may be at one of them where nobody sees it.
    if last > job.lastAttempt ?? 0 { try update(job.id) { $0.lastAttempt = last } }
    try FileSystem.removeTree(directory)
  }

  /// Puts the source of a failed or cancelled job where it can be looked into, and the reason before it.
  private func putAside(_ job: JobRecord) throws {
    guard let source = try spool.source(of: job) else { return try removeUnfinished(job) }
    let places = spool.places(job.id, .failed)
    // Somebody may have put a file there, and not a directory: it is moved all the same.
    let isDirectory = try FileSystem.kind(of: source, symlinks: .refuse) == .directory
    // What may be written to can also change its parent, and the reason comes along; else it goes ahead.
    let goesAhead = isDirectory && !FileSystem.isWritable(source)
    let expected = goesAhead ? places[1] : places[0]
    if goesAhead { try FileSystem.createDirectories(places[0]) }
    if isDirectory { try writeReason(of: job, in: goesAhead ? places[0] : source, source: expected) }
    // After the log has been copied out of there, and before the move by which others know that the job is over.
    try removeUnfinished(job)
    let place = try move(source, to: goesAhead ? [expected] : places)
    if place != expected, isDirectory {
      try writeReason(of: job, in: goesAhead ? places[0] : place, source: place)
    }
    if let message = job.failure?.message, message.contains(source), place != source {
      // Where the files are when somebody reads it.
      try update(job.id) { $0.failure?.message = message.replacing(source, with: place) }
    }
  }

  private func writeReason(of job: JobRecord, in directory: String, source: String) throws {
    let present = try spool.source(of: job) ?? source
    let message = job.failure?.message ?? ""
    try Reason(
      id: job.id, name: job.name, outcome: job.phase, kind: job.failure?.kind,
      message: message.replacing(present, with: source), code: job.failure?.code ?? 0,
      failedAt: job.finishedAt ?? now, source: source
    ).write(to: directory)
    try JobLog(directory: files(of: job.id).directory).copy(into: directory)
  }

  private func freeOutput(for name: String) throws(FileError) -> String {
    var number = 1
    while true {
      let suffix = number == 1 ? "" : "-\(number)"
      // A name as long as names may be has to give way to its number.
      let stem = JobName.shortened(name, byteLimit: 255 - suffix.utf8.count)
      let path = FileSystem.join(spool.output, stem + suffix)
      if try !FileSystem.exists(path) { return path }
      number += 1
    }
  }

  // MARK: Recovery

  /// What a recovery has come to.
  public struct Recovery {
    /// What was done, a line each.
    public var news: [String] = []
    /// What could not be done, and is to be tried again.
    public var faults: [any Error] = []
  }

  /// Makes sure that the spool is the one that the jobs are in. An empty directory in its place, as where a file system is not
  /// mounted, would have every job lost.
  /// - Throws: ``MissingSpool``; ``FileError``, ``StateError``
  func requireOwnSpool() throws {
    let known = try state.spoolMark()
    if let known, known == (try spool.mark()) { return }
    guard known == nil || jobs.allSatisfy(\.phase.isOver) else {
      throw MissingSpool(root: spool.root, state: state.path)
    }
    try state.save(spoolMark: spool.marked())
  }

  /// Brings rows and directories together after the daemon ended in whatever way.
  /// - Parameter working: jobs that somebody is at; nil where no daemon knows, and what Slurm has goes on without one
  /// - Throws: ``MissingSpool``; ``FileError``, ``StateError``
  public func recover(sparing working: Set<String>? = nil) throws -> Recovery {
    try requireOwnSpool()
    var recovery = Recovery()
    let kept = try FileSystem.names(in: spool.incoming).compactMap { Spool.job(keptUnder: $0, .working) }
    for id in try FileSystem.names(in: spool.working) + kept where records[id] == nil {
      let arrivedAt = now
      try enter(id, name: JobName.name(of: id), arrivedAt: arrivedAt)
      recovery.news.append("\(id): claimed, and not yet entered")
    }
    // What stands in the way of one job holds up no other.
    for job in jobs where !(working?.contains(job.id) ?? job.isWithSlurm) {
      do {
        if let news = try recover(job) { recovery.news.append("\(job.id): \(news)") }
      } catch { recovery.faults.append(error) }
    }
    for id in try FileSystem.names(in: spool.partial) where isAbandoned(id) {
      do {
        try FileSystem.removeTree(FileSystem.join(spool.partial, id))
        recovery.news.append("\(id): removed what it left in \(spool.partial)")
      } catch { recovery.faults.append(error) }
    }
    return recovery
  }

  /// - Returns: what was done; nil if that is nothing
  private func recover(_ job: JobRecord) throws -> String? {
    switch job.phase {
    case .queued, .running:
      guard try spool.source(of: job) != nil else {
        try fail(
          job.id,
          JobFailure(
            .job,
            "the checkpoint that was dropped as \(job.name) is not in the spool any more: drop it again",
            code: 66))
        return "its source is gone"
      }
      try move(job.id, to: .working)
      guard job.phase == .running else { return nil }
      try update(job.id) { $0.phase = .queued }
      return "goes on after \(job.linears.count) linears"
    case .publishing:
      if try FileSystem.exists(files(of: job.id).result) || isInPlace(job) {
        try publish(job.id, summary: job.summary)
        return "published"
      }
      try update(job.id) { $0.phase = .queued }
      return "its result is gone, and made again"
    case .published, .failed, .cancelled:
      guard try spool.places(job.id, .working).contains(where: { try FileSystem.exists($0) }) else {
        return nil
      }
      try clear(job.id)
      return "its source was still where it was worked on"
    }
  }

  /// Whether what stands in `.partial/` serves nothing any more.
  private func isAbandoned(_ id: String) -> Bool {
    guard let job = records[id] else { return true }
    return job.phase.isOver && job.failure?.kind != .broken
  }

  private var now: Double { Date().timeIntervalSince1970 }
}

/// The spool is not where it was, while there are jobs in it.
public struct MissingSpool: Error, Equatable, CustomStringConvertible {
  public let root: String
  /// The path of the state database.
  public let state: String

  public var description: String {
    "\(root) is not the spool that the jobs of \(state) are in: mount its file system; if that spool is gone for good, remove "
      + "the state database, and the jobs with it"
  }

  /// By sysexits(3): tried again, until the file system is there.
  public static let exitCode: Int32 = 75
}

extension FileError {
  fileprivate var isRefusedMove: Bool {
    switch errno {
    // A directory of another owner; a read-only file system; a mount point; another file system.
    case .permissionDenied, .notPermitted, .readOnlyFileSystem, .resourceBusy, .improperLink:
      operation == .rename
    default: false
    }
  }
}

extension JobRecord {
  /// Leaves away what is of interest only while there is work: the database keeps a row of every job there ever was.
  fileprivate mutating func rest() {
    (pausedBecause, retryAt, shortage, heldSince) = (nil, nil, nil, nil)
    (secondsRemaining, workedSince, catchingUp) = (nil, nil, nil)
    linears = []
  }
}
