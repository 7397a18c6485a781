import FoundationEssentials
import Pipeline
import SystemIO

/// What the worker says, and what follows from its end.
extension Supervisor {
  func hear(_ worker: WorkerProcess) throws {
    guard let events = try worker.read() else { return try end(worker) }
    // One event may end the worker; those that came with it are about a job that is over.
    for event in events where self.worker === worker {
      switch event {
      case .finished(let summary): outcome = .success(summary)
      case .failed(let failure): outcome = .failure(failure)
      default: try take(event, of: worker.job, lap: worker.lap)
      }
    }
  }

  /// - Parameter lap: gives the seconds since its last call
  func take(_ event: WorkerEvent, of id: String, lap: () -> Double) throws {
    switch event {
    // Whoever waits for an end hears of it elsewhere.
    case .advanced, .submitted, .finished, .failed: break
    case .step(let text):
      try ledger.update(id) { job in
        job.step = text
        job.catchingUp = nil
      }
      tell(.info, text, of: id, [])
    case .catchingUp(let progress):
      try ledger.update(id) { job in
        job.step = "catching up, layer \(progress.layer + 1) of \(job.plan?.layerCount ?? 0)"
        job.catchingUp = progress
      }
    case .warning(let text):
      try ledger.update(id) { $0.warn(text) }
      tell(.warning, text, of: id, [])
    case .identity(let digest): try ledger.update(id) { $0.digest = digest }
    case .reused(let job, let output):
      tell(.notice, "the same job has been done", of: id, [Log.Field("twin", job)])
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
      tell(.notice, "goes on", of: id, [Log.Field("linears", "\(linears.count)")])
    case .linear(let linear, let secondsRemaining):
      let worked = lap()
      try ledger.update(id, counting: { $0.linearsQuantized += 1 }) { job in
        job.secondsWorked += worked
        job.workedSince = Date().timeIntervalSince1970
        // A daemon that was killed may hear again what it had heard.
        if job.linears.last != linear { job.linears.append(linear) }
        job.secondsRemaining = secondsRemaining
        job.step = "quantizing"
        job.catchingUp = nil
        job.lastProgressAt = job.workedSince
        // Whoever gets further is no crash loop.
        job.attempts = 1
        job.breakdowns = nil
      }
      tellResumption(id)
      tell(
        .info, "quantized", of: id,
        [.layer(linear.layer), .linear(linear.name), .relativeError(linear.relativeError)])
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
    let outcome = outcome ?? .failure(worker.diagnosis(of: end))
    self.outcome = nil
    try conclude(id, outcome)
  }

  /// Publishes what came of a job, or decides what becomes of it.
  func conclude(_ id: String, _ outcome: Result<WorkerEvent.Summary, JobFailure>) throws {
    switch outcome {
    case .success(let summary):
      // It is told once the row has it, even where something of the job could not be cleared away yet.
      defer { tellEnds() }
      if let job = ledger.job(id), job.madeBy != nil, job.output != nil {
        try ledger.publishAsItStands(id, summary: summary)
      } else {
        try ledger.publish(id, summary: summary)
      }
    case .failure(let failure): settle(id, failure)
    }
  }

  /// Decides what becomes of a job that did not get to its end.
  func settle(_ id: String, _ failure: JobFailure) {
    attempt {
      var failure = failure
      // What is not to be found there now is no job's fault.
      do { try ledger.requireOwnSpool() } catch {
        failure = JobFailure(.blocked, "\(error)", code: MissingSpool.exitCode)
      }
      let attempts = ledger.job(id)?.attempts ?? 0
      switch failure.kind {
      case .broken where attempts < configuration.attempts:
        tell(.error, failure.message, of: id, [Log.Field("attempt", "\(attempts)")])
        try ledger.update(id, counting: { $0.workerRestarts += 1 }) { job in
          job.phase = .queued
          job.breakdowns = (job.breakdowns ?? []) + [failure.message]
          job.step = "waiting for the next attempt"
        }
        pauses[id] = (.now + patience.restart, 0)
      case .broken:
        var last = failure
        last.message = "given up after \(attempts) attempts: \(failure.message)"
        try fail(id, last)
      case .noSpace, .blocked:
        let count = min((pauses[id]?.count ?? -1) + 1, 5)
        let wait = patience.pause * (1 << count)
        pauses[id] = (.now + wait, count)
        let job = try ledger.update(id) { job in
          job.phase = .queued
          job.attempts = max(0, job.attempts - 1)
          job.pausedBecause = failure.message
          job.retryAt = Date().timeIntervalSince1970 + wait.seconds
          job.shortage = failure.shortage
        }
        tellPause(job, failure.message)
      case .job: try fail(id, failure)
      }
    }
  }

  /// Says once why a job waits. It is tried again and again, and figures in the reason may differ every time.
  /// - Parameter isTriedAgain: whether nobody has to do anything
  func tellPause(_ job: JobRecord, _ reason: String, isTriedAgain: Bool = true) {
    let kind = reason.filter { !$0.isNumber }
    guard saidPauses[job.id] != kind else { return }
    saidPauses[job.id] = kind
    tell(
      .warning, isTriedAgain ? "paused, and tried again by itself: \(reason)" : "paused: \(reason)",
      of: job.id, [])
    leave(.paused, job, reason: reason)
  }

  /// Says that a job goes on which was paused.
  func tellResumption(_ id: String) {
    pauses[id] = nil
    guard saidPauses.removeValue(forKey: id) != nil, let job = ledger.job(id) else { return }
    tell(.notice, "goes on after a pause", of: id, [])
    leave(.resumed, job)
  }

  private func fail(_ id: String, _ failure: JobFailure) throws {
    tell(.error, "failed: \(failure.message)", of: id, [.code(Int(failure.code))])
    defer { tellEnds() }
    try ledger.fail(id, failure)
  }

  /// Tells of jobs that have come to their end, however they did: a daemon may have ended before it told.
  func tellEnds() {
    for job in ledger.jobs where job.isUntold == true {
      // A row that cannot be written now has nobody told again and again.
      if saidEnds.insert("\(job.id) \(job.finishedAt ?? 0)").inserted { tellEnd(of: job) }
      attempt { try ledger.update(job.id) { $0.isUntold = nil } }
    }
  }

  private func tellEnd(of job: JobRecord) {
    switch job.phase {
    case .published:
      tellResumption(job.id)
      log.notice(
        "published", .job(job.id), .path(job.output ?? ""),
        .relativeError(job.summary?.meanRelativeError ?? .nan))
      leave(.done, job)
    case .failed:
      saidPauses[job.id] = nil
      leave(.failed, job, reason: job.failure?.message)
    case .queued, .running, .publishing, .cancelled: break
    }
    nextCleaning = .now
  }
}
