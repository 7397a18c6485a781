import Export
import FoundationEssentials
import Pipeline
import SystemIO

// A snapshot is made of what the daemon knows.
extension StatusSnapshot {
  /// Jobs that are over and are shown.
  private static let finishedLimit = 50

  /// - Parameters:
  ///   - jobs: in the order of arrival
  ///   - drops: what stands in the drop folder
  ///   - firstSeen: since when, by name, in seconds since 1970
  ///   - hold: why none is worked on
  ///   - workingFor: how long the present worker has been at it
  ///   - silentFor: how long it has said nothing
  ///   - attempts: after how many without progress a job counts as failed
  public init(
    jobs: [JobRecord], counters: Counters, drops: [Drop], firstSeen: [String: Double] = [:],
    service: Service, hold: Hold? = nil, spool: Spool, cacheDirectory: String, workingFor: Duration? = nil,
    silentFor: Duration? = nil, attempts: Int? = nil
  ) {
    self.init(
      version: Producer.version, service: service, stateText: "", hold: hold,
      cacheBytes: Self.size(of: cacheDirectory),
      cacheFreeBytes: Self.freeBytes(cacheDirectory), spoolFreeBytes: Self.freeBytes(spool.root),
      counters: counters, madeAt: Date().timeIntervalSince1970)
    let turns = jobs.filter { $0.phase == .queued }.inTurn
    // Where none is at work, a job that waits for the machine to mend is the one to show; or the one that is held.
    let working = jobs.filter { $0.phase == .running || $0.phase == .publishing }
    let shown =
      working.first { $0.slurm.map { $0.state == "RUNNING" } ?? true } ?? working.first ?? turns.first {
        $0.pausedBecause != nil
      }
      ?? (hold == nil ? nil : turns.first { $0.startedAt != nil && !$0.isHeld })
    current = shown.map { job in
      var current = Current(job, workingFor: workingFor, isRunning: service == .running, now: madeAt)
      current.attemptLimit = attempts
      if let silentFor { current.lastProgressAt = madeAt - silentFor.seconds }
      if let hold, job.phase == .queued { current.pausedBecause = current.pausedBecause ?? hold.text }
      return current
    }
    queue = (working + turns).filter { $0.id != shown?.id }.map(Queued.init)
    queue += drops.map { Queued($0, arrivedAt: firstSeen[$0.name] ?? madeAt) }
    let over = jobs.filter(\.phase.isOver).sorted { ($0.finishedAt ?? 0) > ($1.finishedAt ?? 0) }
    finished = over.prefix(Self.finishedLimit).map { Finished($0, in: spool) }
    finishedCount = over.count
    stateText = text(spool)
  }

  private func text(_ spool: Spool) -> String {
    let waiting = queueLengths()
    guard let current else {
      let head =
        hold.map { "no job is worked on: \($0.text)" }
        ?? "idle, waiting for a checkpoint in \(spool.incoming)"
      return ([head] + waiting).joined(separator: " · ")
    }
    if let reason = current.pausedBecause {
      let retry = current.retryAt.map { ", tried again at \(Schedule.clock($0))" } ?? ""
      return (["\(current.name) waits: \(reason)\(retry)"] + waiting).joined(separator: " · ")
    }
    var parts = [current.name]
    if let layer = current.layer, let count = current.layerCount, current.isCatchingUp != true {
      parts[0] += " layer \(layer + 1)/\(count) \(current.linear ?? "")"
    } else {
      parts.append(current.step)
    }
    if let error = current.meanError { parts.append("error \(percent(error))") }
    if let left = leftText(of: current) { parts.append(left) }
    if current.attempt > 1 || current.breakdown != nil { parts.append(current.attemptNumber) }
    return (parts + waiting).joined(separator: " · ")
  }

  /// What is left of the job's time; where nothing comes of it any more, since when.
  public func leftText(of current: Current) -> String? {
    if let last = current.lastProgressAt, madeAt - last > Self.silence {
      return "last progress \(Self.clock(madeAt - last)) ago"
    }
    return current.secondsRemaining.map { "\(Self.clock($0)) left" }
  }

  /// Workers say something every ten seconds while work goes on.
  private static let silence = 60.0

  private static func clock(_ seconds: Double) -> String {
    if seconds < 90 { return "\(Int(max(0, seconds).rounded())) s" }
    let minutes = Int((seconds / 60).rounded())
    return minutes < 90 ? "\(minutes) min" : "\(minutes / 60) h \(minutes % 60) min"
  }

  fileprivate static func freeBytes(_ path: String) -> Int? {
    // A directory that is still to be made will lie where its parent does.
    (try? FileSystem.nearestExisting(path)).flatMap { try? FileSystem.freeBytes($0) }
  }

  private static func size(of path: String) -> Int? {
    do {
      return try FileSystem.exists(path) ? try FileSystem.treeSize(path) : 0
    } catch { return nil }
  }
}

extension StatusSnapshot.Current {
  /// - Parameters:
  ///   - workingFor: how long the present worker has been at it since ``JobRecord/workedSince``, if the daemon says so
  ///   - isRunning: whether there is a daemon whose worker it may be
  ///   - now: in seconds since 1970
  init(_ job: JobRecord, workingFor: Duration?, isRunning: Bool, now: Double) {
    // Others than the daemon have no clock but the wall's.
    let sinceThen = isRunning ? job.workedSince.map { max(0, now - $0) } ?? 0 : 0
    let last = job.linears.last
    // The name within the layer: the part behind the layer's number.
    let linear = last.map { last in
      let parts = last.name.split(separator: ".")
      let number = parts.firstIndex { Int($0) == last.layer }
      return number.map { parts[($0 + 1)...].joined(separator: ".") } ?? last.name
    }
    self.init(
      id: job.id, name: job.name, architecture: job.plan?.architecture, layer: last?.layer,
      layerCount: job.plan?.layerCount, linear: linear, linearsDone: job.linears.count,
      linearCount: job.plan?.linearCount ?? 0, errorPerLayer: job.errorPerLayer,
      secondsElapsed: job.secondsWorked + (workingFor?.seconds ?? sinceThen),
      secondsRemaining: job.secondsRemaining.map { $0 + (job.catchingUp?.secondsRemaining ?? 0) },
      attempt: max(1, job.attempts), step: job.step, pausedBecause: job.pausedBecause, warnings: job.warnings,
      kernels: job.plan?.kernels)
    retryAt = job.retryAt
    place = job.phase == .running ? job.slurm?.text : nil
    shortage = job.shortage.map(StatusSnapshot.Shortage.init)
    breakdown = job.breakdowns?.last
    isCatchingUp = job.catchingUp == nil ? nil : true
    lastProgressAt = job.phase == .running ? job.lastProgressAt : nil
  }

  /// Which attempt it is, where it is not the first one, and why.
  public var attemptText: String? {
    guard attempt > 1 || breakdown != nil else { return nil }
    return attemptNumber + (breakdown.map { ": before, \($0)" } ?? "")
  }

  fileprivate var attemptNumber: String { "attempt \(attempt)" + (attemptLimit.map { " of \($0)" } ?? "") }
}

extension StatusSnapshot.Shortage {
  /// What is missing where, in words.
  public var text: String {
    let needed = neededBytes.map { "\(byteSize($0)) are needed" } ?? "space is needed"
    let free = freeBytes.map { ", \(byteSize($0)) are free" } ?? ""
    return "\(needed) for \(path)\(free)"
  }

  init(_ shortage: JobFailure.Shortage) {
    self.init(
      path: shortage.path, neededBytes: shortage.neededBytes,
      freeBytes: StatusSnapshot.freeBytes(shortage.path))
  }
}

extension StatusSnapshot.Queued {
  /// Why it waits and what is to be said of it besides, each in words.
  /// - Parameter now: in seconds since 1970
  public func notes(now: Double) -> [String] {
    reasons
      + [
        retryAt.map { "tried again at \(Schedule.clock($0, now: now))" }, shortage?.text,
        priority.map { "priority \($0)" },
      ].compactMap(\.self)
  }

  init(_ job: JobRecord) {
    let reason = job.pausedBecause ?? (job.isHeld ? StatusSnapshot.Hold.byHand.reason : nil)
    let isWorkedOn = job.phase != .queued && job.slurm?.state == "RUNNING"
    let slurm =
      job.phase == .running ? job.slurm.map { "\(isWorkedOn ? job.progressText : "")\($0.text)" } : nil
    self.init(
      name: job.name, id: job.id, state: reason != nil ? .paused : isWorkedOn ? .working : .queued,
      reasons: [reason, slurm].compactMap(\.self), arrivedAt: job.arrivedAt)
    retryAt = job.retryAt
    shortage = job.shortage.map(StatusSnapshot.Shortage.init)
    priority = job.priority == 0 ? nil : job.priority
  }

  init(_ drop: Drop, arrivedAt: Double) {
    let (state, reasons): (StatusSnapshot.QueueState, [String]) =
      switch drop.state {
      case .ready: (.queued, [])
      case .waiting(let reasons): (.arriving, reasons)
      case .refused(let refusal): (.refused, ["\(refusal.reason); \(refusal.mend)"])
      }
    self.init(name: drop.name, state: state, reasons: reasons, arrivedAt: arrivedAt)
  }
}

extension JobRecord {
  /// `layer 3/12, ` where it is that far.
  fileprivate var progressText: String {
    guard let last = linears.last, let count = plan?.layerCount else { return "" }
    return "layer \(last.layer + 1)/\(count), "
  }
}

extension StatusSnapshot.Finished {
  public init(_ job: JobRecord, in spool: Spool) {
    let outcome: StatusSnapshot.Outcome =
      switch job.phase {
      case .published: .published
      case .cancelled: .cancelled
      default: .failed
      }
    self.init(
      id: job.id, name: job.name, outcome: outcome, finishedAt: job.finishedAt ?? job.arrivedAt,
      output: job.output, source: try? spool.source(of: job), seconds: job.secondsWorked,
      meanRelativeError: job.summary?.meanRelativeError,
      bitsPerWeight: job.summary?.bitsPerWeight,
      failure: job.failure.map { StatusSnapshot.Failure(message: $0.message, code: Int($0.code)) },
      warnings: job.warnings)
  }
}
