import Export
import FoundationEssentials
import SystemIO

/// What the folders tell of jobs that are over, for a state database that was lost.
extension JobLedger {
  /// Enters every job that is over and of which there is a trace: a source in `done/` or `failed/`, a reason, or an
  /// output with its report. Those that are not over ``recover(sparing:)`` finds.
  /// - Returns: how many they are
  func rebuild() throws -> Int {
    var found: [JobRecord] = []
    let outputs = try outputs()
    let failed = try ids(in: spool.failed, .failed)
    for id in failed { found.append(failedJob(id)) }
    let published = try ids(in: spool.done, .done).union(outputs.keys).subtracting(failed)
    for id in published where try !spool.places(id, .working).contains(where: { try FileSystem.exists($0) }) {
      found.append(publishedJob(id, outputs[id]))
    }
    var counters = counters
    for job in found where self.job(job.id) == nil {
      counters.published += job.phase == .published ? 1 : 0
      counters.failed += job.phase == .failed ? 1 : 0
      try enter(job, counting: counters)
    }
    return found.count
  }

  private typealias Output = (path: String, report: Report)

  /// The finished checkpoints that say whose they are, by job.
  private func outputs() throws -> [String: Output] {
    var outputs: [String: Output] = [:]
    for name in try FileSystem.names(in: spool.output) where !name.hasPrefix(".") {
      let path = FileSystem.join(spool.output, name)
      // What is no report, or no output of this version's, says nothing.
      guard let report = try? Report(directory: path), let job = report.job else { continue }
      outputs[job] = (path, report)
    }
    return outputs
  }

  private func ids(in folder: String, _ standing: SourceStanding) throws -> Set<String> {
    let kept = try FileSystem.names(in: spool.incoming).compactMap { Spool.job(keptUnder: $0, standing) }
    let moved = try FileSystem.names(in: folder).filter { JobName.name(of: $0) != $0 }
    return Set(kept + moved)
  }

  private func failedJob(_ id: String) -> JobRecord {
    let reason = Reason(directory: spool.place(id, .failed))
    var job = JobRecord(
      id: id, name: reason?.name ?? JobName.name(of: id), arrivedAt: JobName.time(of: id) ?? now)
    job.phase = reason?.outcome == .cancelled ? .cancelled : .failed
    job.finishedAt = reason?.failedAt ?? now
    job.failure = JobFailure(
      reason?.kind ?? .job, reason?.message ?? "nobody knows why any more: the state database was lost",
      code: reason?.code ?? 70)
    return job
  }

  private func publishedJob(_ id: String, _ output: Output?) -> JobRecord {
    let name = JobName.name(of: id)
    var job = JobRecord(id: id, name: name, arrivedAt: JobName.time(of: id) ?? now)
    job.phase = .published
    // A job that came to what there was already has no output of its own.
    let place = output?.path ?? FileSystem.join(spool.output, name)
    if (try? FileSystem.exists(place)) == true { job.output = place }
    let report = output?.report ?? (try? Report(directory: place))
    job.summary = report.map { WorkerEvent.Summary($0.totals) }
    job.digest = output?.report.identity
    let written = try? FileSystem.stamp(of: FileSystem.join(place, Report.fileName)).stamp
    job.finishedAt = written.map { Double($0.modifiedNanoseconds) / 1e9 } ?? now
    job.secondsWorked = output?.report.totals.seconds ?? 0
    return job
  }

  private var now: Double { Date().timeIntervalSince1970 }
}
