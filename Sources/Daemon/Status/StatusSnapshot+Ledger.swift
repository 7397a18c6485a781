import Export
import FoundationEssentials
import Pipeline
import SystemIO

extension StatusSnapshot {
  /// Jobs that are over and are shown.
  private static let finishedLimit = 50

  /// - Parameters:
  ///   - jobs: in the order of arrival
  ///   - drops: what stands in the drop folder
  ///   - firstSeen: since when, by name, in seconds since 1970
  ///   - workingFor: how long the present worker has been at it
  public init(
    jobs: [JobRecord], counters: Counters, drops: [Drop], firstSeen: [String: Double] = [:],
    service: Service, spool: Spool, cacheDirectory: String, workingFor: Duration? = nil
  ) {
    self.init(
      version: Producer.version, service: service, stateText: "", cacheBytes: Self.size(of: cacheDirectory),
      cacheFreeBytes: Self.freeBytes(cacheDirectory), spoolFreeBytes: Self.freeBytes(spool.root),
      counters: counters, madeAt: Date().timeIntervalSince1970)
    // Where none is at work, a job that waits for the machine to mend is the one to show.
    let shown =
      jobs.first { $0.phase == .running || $0.phase == .publishing }
      ?? jobs.first { $0.phase == .queued && $0.pausedBecause != nil }
    current = shown.map { Current($0, workingFor: workingFor, isRunning: service == .running, now: madeAt) }
    queue = jobs.filter { $0.phase == .queued && $0.id != shown?.id }.map { job in
      Queued(
        name: job.name, id: job.id, state: job.pausedBecause == nil ? .queued : .paused,
        reasons: job.pausedBecause.map { [$0] } ?? [],
        arrivedAt: job.arrivedAt)
    }
    queue += drops.map { Queued($0, arrivedAt: firstSeen[$0.name] ?? madeAt) }
    let over = jobs.filter(\.phase.isOver).sorted { ($0.finishedAt ?? 0) > ($1.finishedAt ?? 0) }
    finished = over.prefix(Self.finishedLimit).map { Finished($0, in: spool) }
    stateText = text(spool)
  }

  private func text(_ spool: Spool) -> String {
    let waiting = queueLengths()
    guard let current else {
      return (["idle, waiting for a checkpoint in \(spool.incoming)"] + waiting).joined(separator: " · ")
    }
    if let reason = current.pausedBecause {
      return (["\(current.name) waits: \(reason)"] + waiting).joined(separator: " · ")
    }
    var parts = [current.name]
    if let layer = current.layer, let count = current.layerCount {
      parts[0] += " layer \(layer + 1)/\(count) \(current.linear ?? "")"
    } else {
      parts.append(current.step)
    }
    if let error = current.errorPerLayer.compactMap(\.self).last {
      parts.append("error \((error * 1e5).rounded() / 1e3) %")
    }
    if let seconds = current.secondsRemaining { parts.append("\(Self.clock(seconds)) left") }
    return (parts + waiting).joined(separator: " · ")
  }

  private static func clock(_ seconds: Double) -> String {
    if seconds < 90 { return "\(Int(max(0, seconds).rounded())) s" }
    let minutes = Int((seconds / 60).rounded())
    return minutes < 90 ? "\(minutes) min" : "\(minutes / 60) h \(minutes % 60) min"
  }

  private static func freeBytes(_ path: String) -> Int? {
    // A directory that is still to be made will lie where its parent does.
    var path = path
    while (try? FileSystem.exists(path)) == false { path = FileSystem.parent(of: path) }
    return try? FileSystem.freeBytes(path)
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
      secondsRemaining: job.secondsRemaining,
      attempt: max(1, job.attempts), step: job.step, pausedBecause: job.pausedBecause, warnings: job.warnings)
  }
}

extension StatusSnapshot.Queued {
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

extension StatusSnapshot.Finished {
  init(_ job: JobRecord, in spool: Spool) {
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
