import FoundationEssentials
import Pipeline
import SystemIO

/// What the worker says, and what follows from its end.
extension Supervisor {
  func hear(_ worker: WorkerProcess) throws {
    guard let events = try worker.read() else { return try end(worker) }
    // One event may end the worker; those that came with it are about a job that is over.
    for event in events where self.worker === worker { try take(event, of: worker) }
  }

  private func take(_ event: WorkerEvent, of worker: WorkerProcess) throws {
    let id = worker.job
    switch event {
    case .advanced: break
    case .step(let text):
      try ledger.update(id) { $0.step = text }
      log.info(text, .job(id))
    case .warning(let text):
      try ledger.update(id) { $0.warn(text) }
      log.warning(text, .job(id))
    case .identity(let digest): try ledger.update(id) { $0.digest = digest }
    case .reused(let job, let output):
      log.notice("the same job has been done", .job(id), Log.Field("twin", job))
      try ledger.update(id) { record in
        record.madeBy = job
        record.output = output
      }
    case .planned(let plan):
      try ledger.update(id) { job in
        job.plan = plan
        // What the journal still has of them comes next.
        job.linears = []
      }
    case .resumed(let linears):
      try ledger.update(id) { $0.linears = linears }
      log.notice("goes on", .job(id), Log.Field("linears", "\(linears.count)"))
    case .linear(let linear, let secondsRemaining):
      let worked = worker.lap()
      try ledger.update(id, counting: { $0.linearsQuantized += 1 }) { job in
        job.secondsWorked += worked
        job.workedSince = Date().timeIntervalSince1970
        job.linears.append(linear)
        job.secondsRemaining = secondsRemaining
        job.step = "quantizing"
        // Whoever gets further is no crash loop.
        job.attempts = 1
      }
      pauses[id] = nil
      log.info(
        "quantized", .job(id), .layer(linear.layer), .linear(linear.name),
        .relativeError(linear.relativeError))
    case .finished(let summary): outcome = .success(summary)
    case .failed(let failure): outcome = .failure(failure)
    }
  }

  private func end(_ worker: WorkerProcess) throws {
    let id = worker.job
    let end = try worker.wait()
    self.worker = nil
    let worked = worker.lap()
    try ledger.update(id) { job in
      job.secondsWorked += worked
      job.workedSince = nil
    }
    switch outcome {
    case .success(let summary)?:
      if let job = ledger.job(id), job.madeBy != nil, job.output != nil {
        try ledger.publishAsItStands(id, summary: summary)
      } else {
        try ledger.publish(id, summary: summary)
      }
      log.notice(
        "published", .job(id), .path(ledger.job(id)?.output ?? ""), .relativeError(summary.meanRelativeError))
    case .failure(let failure)?: settle(id, failure)
    case nil: settle(id, worker.diagnosis(of: end))
    }
    outcome = nil
  }

  /// Decides what becomes of a job that did not get to its end.
  func settle(_ id: String, _ failure: JobFailure) {
    attempt {
      let attempts = ledger.job(id)?.attempts ?? 0
      switch failure.kind {
      case .broken where attempts < configuration.attempts:
        log.error(failure.message, .job(id), Log.Field("attempt", "\(attempts)"))
        try ledger.update(id, counting: { $0.workerRestarts += 1 }) { job in
          job.phase = .queued
          job.step = "waiting for the next attempt"
        }
        pauses[id] = (.now + patience.restart, 0)
      case .broken:
        var last = failure
        last.message = "given up after \(attempts) attempts: \(failure.message)"
        try fail(id, last)
      case .noSpace, .blocked:
        log.warning(failure.message, .job(id))
        let count = min((pauses[id]?.count ?? -1) + 1, 5)
        pauses[id] = (.now + patience.pause * (1 << count), count)
        try ledger.update(id) { job in
          job.phase = .queued
          job.attempts = max(0, job.attempts - 1)
          job.pausedBecause = failure.message
        }
      case .job: try fail(id, failure)
      }
    }
  }

  private func fail(_ id: String, _ failure: JobFailure) throws {
    log.error("failed: \(failure.message)", .job(id), .code(Int(failure.code)))
    try ledger.fail(id, failure)
  }
}
