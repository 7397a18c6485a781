import FoundationEssentials
import SystemIO

/// The daemon: watches the drop folder, queues what is complete, and has one worker at a time do the jobs.
///
/// One loop waits for signals, the folder, requests and the worker. Nothing that happens to a job ends it, and an
/// error of the machine is tried again, ever less often.
public final class Supervisor {
  /// How patient the daemon is; tests are less so.
  public struct Patience: Sendable {
    /// First wait of a job that the machine stands in the way of; it doubles up to thirty times that.
    public var pause = Duration.seconds(10)
    /// Wait before a worker that broke down is started again.
    public var restart = Duration.seconds(2)
    /// A worker that has said nothing for so long hangs.
    public var silence = Duration.seconds(3_600)
    /// Between two looks at Slurm's list.
    public var look = Duration.seconds(15)
    /// Between two looks at what workers on other hosts have said.
    public var tail = Duration.seconds(5)
    /// Slurm's commands that have not answered for so long are ended.
    public var answer = Duration.seconds(120)
    /// A job that Slurm has not known for so long, and two looks at least, is over.
    public var missing = Duration.seconds(60)

    public init() {}
  }

  let spool: Spool
  let ledger: JobLedger
  let log: Log
  let notifier: ServiceNotifier
  let patience: Patience
  var configuration: DaemonConfiguration
  private let readConfiguration: () throws -> DaemonConfiguration
  let program: String
  let environment: [String: String]
  private let lock: FileLock
  let folder: DropFolder
  private var requestWatch: DirectoryWatch?
  public internal(set) var drops: [Drop] = []
  var firstSeen: [String: Double] = [:]
  /// What was last said of drops that are refused, by their names.
  var saidRefusals: [String: Drop.Refusal] = [:]
  /// Uploads that nobody ends, and that this process may not remove.
  var saidAbandoned: Set<String> = []
  /// Ends of jobs that were told of, by the job and the time.
  var saidEnds: Set<String> = []
  /// Why sources stay that are not to be kept.
  var saidKept: Set<String> = []
  /// Of jobs that the machine stands in the way of, what was last said of it.
  var saidPauses: [String: String] = [:]
  /// Whether it was said last that no job is worked on.
  var saidHold = false
  /// Runs the programs that are told of events, where no unit does.
  var hookRunner: ChildProcess?
  var worker: WorkerProcess?
  /// What the worker said came of its job.
  var outcome: Result<WorkerEvent.Summary, JobFailure>?
  /// What Slurm has; nothing where it has no jobs.
  var slurm = SlurmQueue()
  /// Jobs that wait for the machine to mend: until when, and how often they have.
  var pauses: [String: (until: ContinuousClock.Instant, count: Int)] = [:]
  var nextScan = ContinuousClock.now
  var nextCleaning = ContinuousClock.now
  /// When to try again what failed outside of any job.
  private var mendAt: ContinuousClock.Instant?

  /// Takes the spool, brings it in order and makes a first scan.
  /// - Parameters:
  ///   - readConfiguration: reads the configuration anew, for SIGHUP
  ///   - program: what workers run: this very program
  /// - Throws: ``FileLockError`` if another daemon has the spool; ``ConfigurationError`` for a state or a cache that is not on
  ///   a local disk; ``MissingSpool`` where the spool is not the one that the jobs are in; ``FileError``, ``StateError``
  public init(
    configuration: DaemonConfiguration, readConfiguration: @escaping () throws -> DaemonConfiguration,
    log: Log, notifier: ServiceNotifier, patience: Patience = Patience(),
    program: String = ThisProcess.path, environment: [String: String]
  ) throws {
    self.configuration = configuration
    self.readConfiguration = readConfiguration
    self.log = log
    self.notifier = notifier
    self.patience = patience
    self.program = program
    self.environment = environment
    spool = Spool(root: configuration.spool)
    try configuration.requireLocalPlaces()
    try spool.create()
    // A moment's patience: a command may be asking whether there is a daemon.
    lock = try FileLock.waiting(
      path: spool.lock, purpose: "quanteased", tries: 10, pause: .milliseconds(50))
    ledger = try JobLedger(
      spool: spool, state: try StateStore.open(directory: configuration.stateDirectory),
      cacheDirectory: configuration.cacheDirectory)
    folder = DropFolder(spool: spool, settleTime: .seconds(configuration.settleSeconds))
    do {
      var watch = try DirectoryWatch()
      try watch.add(spool.requests)
      requestWatch = consume watch
    } catch {
      requestWatch = nil
      log.warning("requests are seen at the next scan only", .mend("\(error)"))
    }
    try ledger.requireOwnSpool()
    try tellStateOrigin()
    try adoptSlurmJobs()
    attempt(recover)
  }

  /// Brings the spool in order, and tells of what has come to its end by that.
  private func recover() throws {
    let recovery = try ledger.recover(sparing: jobsAtWork)
    for line in recovery.news { log.notice("recovered: \(line)") }
    tellEnds()
    for fault in recovery.faults { attempt { throw fault } }
  }

  /// Jobs that somebody works on.
  private var jobsAtWork: Set<String> { Set(slurm.runs.keys).union(worker.map { [$0.job] } ?? []) }

  /// A state database that was lost is told of, and the history found again in the folders.
  private func tellStateOrigin() throws {
    let what: String
    switch ledger.stateOrigin {
    case .found: return
    case .made: what = "the state database was not there"
    case .replaced(let path): what = "the state database was damaged, and is \(path) now"
    }
    let count = try ledger.rebuild()
    if ledger.stateOrigin == .made && count == 0 { return }
    log.warning("\(what): \(count) jobs that are over are known again by the spool's folders")
  }

  /// Runs until SIGTERM or SIGINT.
  /// - Parameter changed: gets a snapshot whenever there is news
  public func run(signals: SignalQueue, changed: (StatusSnapshot) throws -> Void) throws {
    scan()
    startNext()
    notifier.ready(status: statusText)
    log.notice("ready", .path(spool.incoming))
    var lastText = ""
    while true {
      let snapshot = snapshot
      try changed(snapshot)
      if snapshot.stateText != lastText {
        notifier.status(snapshot.stateText)
        lastText = snapshot.stateText
      }
      let descriptors = [
        signals.descriptor, folder.watchDescriptor, requestWatch?.descriptor, worker?.descriptor,
        hookRunner?.descriptor,
      ]
      let readable = try DescriptorWaiting.readable(
        among: descriptors.compactMap(\.self) + slurm.descriptors, for: timeToNextEvent)
      while let signal = try signals.next() {
        if signal != 1 {
          stop()
          return
        }
        reload()
      }
      if let worker, readable.contains(worker.descriptor) { attempt { try hear(worker) } }
      if let worker, ContinuousClock.now - worker.lastEventAt > patience.silence {
        log.error("the worker hangs", .job(worker.job))
        worker.kill()
      }
      tendSlurm(readable)
      if folder.drain() { nextScan = min(nextScan, .now + .milliseconds(200)) }
      if let hookRunner, readable.contains(hookRunner.descriptor) { attempt { try hear(hookRunner) } }
      _ = try? requestWatch?.read()
      takeRequests()
      if ContinuousClock.now >= nextScan { scan() }
      mend()
      keepHold()
      startNext()
      notifier.watchdog()
    }
  }

  private var timeToNextEvent: Duration {
    var next = nextScan
    pauses = pauses.filter { ledger.job($0.key)?.phase.isOver == false }
    // Of any but queued jobs, a pause is a time gone by, and the loop would not wait at all.
    let resumptions = pauses.filter { pause in
      ledger.job(pause.key).map { $0.phase == .queued && !$0.isHeld } ?? false
    }
    .map(\.value.until)
    next = min(next, .now + slurm.timeToNextEvent)
    // Where there is no place for one, the end of what has it is waited for.
    if canStart, !isHeld, let resumption = resumptions.min() { next = min(next, resumption) }
    if let mendAt { next = min(next, mendAt) }
    var time = max(.zero, next - .now)
    if let interval = notifier.watchdogInterval { time = min(time, interval) }
    return min(time, worker == nil ? .seconds(60) : .seconds(10))
  }

  /// Does what may fail by no fault of any job; the spool is brought in order later if it does.
  func attempt(_ body: () throws -> Void) {
    do { try body() } catch {
      log.error("\(error)")
      // What fails again and again does not put it off.
      mendAt = mendAt ?? .now + patience.pause
    }
  }

  private func mend() {
    guard let time = mendAt, ContinuousClock.now >= time else { return }
    mendAt = nil
    attempt {
      // In the place of a file system that is not mounted nothing is made.
      try ledger.requireOwnSpool()
      // A directory that somebody removed is the likeliest fault, and this its mend.
      try spool.create()
      try recover()
    }
  }

  // MARK: Jobs

  private func startNext() {
    if isHeld { return }
    if configuration.queue == .slurm { return startNextInSlurm() }
    guard worker == nil, let next = nextInTurn else { return }
    do { try start(next) } catch {
      settle(next.id, JobFailure(error))
    }
  }

  /// Whether there is a place for another job.
  private var canStart: Bool {
    configuration.queue == .slurm ? canSubmit : worker == nil
  }

  var nextInTurn: JobRecord? {
    let now = ContinuousClock.now
    return ledger.jobs.inTurn.first { job in
      job.phase == .queued && !job.isHeld && (pauses[job.id]?.until ?? now) <= now
    }
  }

  /// What a job is to be done with, looked at when it is claimed, while whoever dropped it is awake.
  /// - Throws: ``ConfigurationError``, ``JobFailure``
  func settings(of source: String) throws -> JobSettings {
    let settings = try JobFile.read(directory: source, defaults: configuration.defaults)
      .adapted(
        to: source, defaults: configuration.defaults, file: FileSystem.join(source, JobFile.name))
    do { try settings.requireCalibration(in: source) } catch let error as SubmissionError {
      throw JobFailure(.job, "\(error)", code: error == .noCalibration ? 78 : 66)
    }
    return settings
  }

  private func start(_ job: JobRecord) throws {
    let order = try writeOrder(of: job)
    let source = (try ledger.sourceFiles(of: job.id), try ledger.source(of: job.id))
    try begin(job) { $0.workedSince = Date().timeIntervalSince1970 }
    outcome = nil
    worker = try WorkerProcess(
      job: job.id, order: order, source: source, program: program, environment: environment)
    tell(.notice, "begun", of: job.id, [.name(job.name), Log.Field("attempt", "\(job.attempts + 1)")])
  }

  /// Says what a worker is to do.
  /// - Returns: the path of the order
  func writeOrder(of job: JobRecord) throws -> String {
    let source = try ledger.source(of: job.id)
    let sourceFiles = try ledger.sourceFiles(of: job.id)
    let files = ledger.files(of: job.id)
    // A job keeps the settings that it was begun with, whatever the configuration says by now.
    let earlier = try earlierOrder(of: job.id)
    let settings =
      try earlier.map {
        JobSettings(calibration: $0.calibration, ranks: $0.ranks ?? 1, settings: $0.settings)
      }
      ?? self.settings(of: source)
    try FileSystem.createDirectories(files.directory)
    // Two workers have broken down without getting any further: it may be the cache that breaks them.
    if job.attempts > 1 { try JobWorker.removeCaches(of: job.id, in: configuration.cacheDirectory) }
    var order = JobOrder(
      id: job.id, name: job.name, results: ledger.results, model: source, source: sourceFiles,
      directory: files.directory,
      cacheDirectory: configuration.cacheDirectory,
      calibration: settings.calibration(in: source), settings: settings.settings,
      threads: configuration.threads, device: configuration.device.description, states: configuration.states,
      memoryBytes: configuration.memoryGB.map { Int($0 * 1e9) }, python: configuration.python,
      ggufConverter: configuration.ggufConverter)
    if configuration.queue == .slurm {
      (order.isShared, order.lastAttempt) = (true, job.lastAttempt)
      // A file that a converter makes stands on its host alone.
      order.ranks = settings.ranks > 1 && order.converter == nil ? settings.ranks : nil
      order.forgetsCache = job.attempts > 1 ? true : nil
    }
    try order.write(to: files.order)
    return files.order
  }

  /// Notes that somebody is at a job. Counted before the work: one that takes the daemon down with it must not do so for ever.
  func begin(_ job: JobRecord, _ change: (inout JobRecord) -> Void) throws {
    try ledger.update(job.id) { job in
      job.phase = .running
      job.attempts += 1
      job.startedAt = job.startedAt ?? Date().timeIntervalSince1970
      (job.pausedBecause, job.retryAt, job.shortage) = (nil, nil, nil)
      job.step = "starting"
      job.lastProgressAt = Date().timeIntervalSince1970
      // What an earlier attempt found, the next one looks for anew.
      (job.output, job.madeBy) = (nil, nil)
      change(&job)
    }
  }

  /// The order that a job was begun with. One that lacks what this version asks for is an earlier version's: nothing
  /// that was made by it could be gone on with, and the job begins anew.
  private func earlierOrder(of job: String) throws -> JobOrder? {
    let files = ledger.files(of: job)
    guard try FileSystem.exists(files.order) else { return nil }
    do { return try JobOrder(path: files.order) } catch is DecodingError {
      try JobWorker.removeCaches(of: job, in: configuration.cacheDirectory)
      try FileSystem.removeTree(files.directory)
      return nil
    }
  }

  // MARK: Signals

  private func stop() {
    notifier.stopping(status: "stopping")
    attempt { try endWorker(saying: "waits for the daemon's next start") }
    log.notice("stopped")
  }

  /// Ends the worker, which loses at most the linear that it is at. Its job goes on later.
  func endWorker(saying step: String) throws {
    guard let worker else { return }
    worker.kill()
    _ = try worker.wait()
    self.worker = nil
    outcome = nil
    let worked = worker.lap()
    try ledger.update(worker.job) { job in
      job.phase = .queued
      // An end that was asked for is no attempt that failed.
      job.attempts -= 1
      job.secondsWorked += worked
      job.workedSince = nil
      job.step = step
    }
  }

  private func reload() {
    notifier.reloading()
    do {
      var new = try readConfiguration()
      let changed = new.changedKeys(since: configuration)
      let fixed = changed.filter { ["spool", "state", "cache", "queue"].contains($0) }
      if !fixed.isEmpty {
        log.warning("\(fixed.joined(separator: ", ")) change only when the daemon is started anew")
        new.spool = configuration.spool
        new.stateDirectory = configuration.stateDirectory
        new.cacheDirectory = configuration.cacheDirectory
        new.queue = configuration.queue
      }
      configuration = new
      nextCleaning = .now
      folder.settleTime = .seconds(new.settleSeconds)
      log.notice("configuration read anew", Log.Field("changed", changed.joined(separator: ",")))
    } catch {
      log.error("the configuration stays as it was: \(error)")
    }
    notifier.ready(status: statusText)
  }

  // MARK: Status

  private var snapshot: StatusSnapshot {
    StatusSnapshot(
      jobs: ledger.jobs, counters: ledger.counters, drops: drops, firstSeen: firstSeen, service: .running,
      hold: hold, spool: spool,
      cacheDirectory: configuration.cacheDirectory, workingFor: worker.map { .now - $0.lapStart },
      silentFor: worker.map { .now - $0.lastEventAt },
      attempts: configuration.attempts)
  }

  /// Every job there is, in the order of arrival.
  public var jobs: [JobRecord] { ledger.jobs }

  private var statusText: String { snapshot.stateText }
}
