import FoundationEssentials
import SystemIO

/// What stands in the drop folder, and what people ask for.
extension Supervisor {
  func scan() {
    // News first: a scan has to know what came by a renaming.
    _ = folder.drain()
    let now = ContinuousClock.now
    drops = folder.scan(now: now, claims: Spool.claims(of: ledger.jobs))
    // The mend makes a folder anew that somebody has removed.
    if let fault = folder.fault { attempt { throw fault } }
    var claimed: Set<String> = []
    for drop in drops {
      if firstSeen[drop.name] == nil { firstSeen[drop.name] = Date().timeIntervalSince1970 }
      guard case .ready(let rule) = drop.state else { continue }
      attempt {
        let id = JobName.identifier(for: drop.name, at: Date(), random: .random(in: 0...UInt16.max))
        try folder.claim(drop.name) { inode, contents in
          try ledger.claim(
            id, name: drop.name, inode: inode, contents: contents,
            arrivedAt: firstSeen[drop.name] ?? Date().timeIntervalSince1970)
        }
        claimed.insert(drop.name)
        tell(
          .notice, "queued", of: id,
          [.name(drop.name), Log.Field("rule", rule.rawValue), .path(try ledger.source(of: id))])
        examine(id)
      }
    }
    attempt {
      if try ledger.restoreState() {
        log.warning(
          "the state database was removed or replaced while the daemon runs, and is made anew: nothing is lost"
        )
      }
    }
    if now >= nextCleaning { clean() }
    tellRefusals()
    removeAbandonedUploads()
    drops.removeAll { claimed.contains($0.name) }
    firstSeen = firstSeen.filter { name, _ in drops.contains { $0.name == name } }
    let pace = min(.seconds(configuration.scanSeconds), folder.timeToNextScan)
    nextScan = now + pace
  }

  /// Looks at a job's settings as soon as it is one. What is wrong with them fails it now, and not hours later.
  private func examine(_ id: String) {
    do {
      let settings = try settings(of: ledger.source(of: id))
      if settings.priority != 0 { try ledger.update(id) { $0.priority = settings.priority } }
    } catch let error as StateError {
      // The job is entered; what it is to be done with is read again at its turn.
      log.error("\(error)")
    } catch {
      settle(id, JobFailure(error))
    }
  }

  private static let cleaningInterval = Duration.seconds(3_600)

  /// Removes the sources that are not to be kept.
  private func clean() {
    nextCleaning = .now + Self.cleaningInterval
    let retention = Retention(keepDone: configuration.keepDone, keepFailed: configuration.keepFailed)
    guard retention.isActive else { return }
    attempt {
      let surplus = try retention.surplus(in: spool, jobs: ledger.jobs) { tellKept($0) }
      for item in surplus {
        do {
          try Retention.remove(item, in: spool)
          log.notice("removed a source that is not kept longer", .job(item.id), .path(item.path))
        } catch { tellKept(error) }
      }
    }
  }

  /// Says once of a source why it stays that is not to be kept. Nothing else stays for it.
  private func tellKept(_ fault: any Error) {
    guard saidKept.insert("\(fault)").inserted else { return }
    log.warning("a source that is not to be kept stays: \(fault)")
  }

  /// Says once what a person has to see to, and again when it is something else.
  private func tellRefusals() {
    var refusals: [String: Drop.Refusal] = [:]
    for drop in drops {
      if case .refused(let refusal) = drop.state { refusals[drop.name] = refusal }
    }
    for (name, refusal) in refusals.sorted(by: { $0.key < $1.key }) where saidRefusals[name] != refusal {
      log.warning("refused: \(refusal.reason)", .name(name), .mend(refusal.mend))
      saidRefusals[name] = refusal
      var event = HookEvent(.refused, name: name)
      (event.reason, event.mend, event.source) = (
        refusal.reason, refusal.mend, FileSystem.join(spool.incoming, name)
      )
      leave(event)
    }
    saidRefusals = saidRefusals.filter { name, _ in drops.contains { $0.name == name } }
    attempt { try ledger.note(refusals) }
  }

  private func removeAbandonedUploads() {
    for path in folder.abandonedUploads(now: Date()) where !saidAbandoned.contains(path) {
      do {
        try FileSystem.removeTree(path)
        log.notice("removed what an interrupted 'quantease submit' had left", .path(path))
      } catch {
        // Another person's, who alone may.
        log.warning(
          "an interrupted 'quantease submit' has left files that its owner or root may remove", .path(path))
        saidAbandoned.insert(path)
      }
    }
  }

  func takeRequests() {
    attempt {
      var unwritten: StateError?
      for request in try JobRequest.all(in: spool) {
        // Last, as that says that it is done; one that cannot be met must not come again and again.
        var isOver = true
        defer { if isOver { attempt { try FileSystem.removeTree(request.path(in: spool)) } } }
        do {
          try carryOut(request)
        } catch let error as StateError {
          // As soon as rows can be written again, it is done.
          (isOver, unwritten) = (false, error)
        }
      }
      if let unwritten { throw unwritten }
    }
  }

  private func carryOut(_ request: JobRequest) throws {
    if let job = request.job, request.action == .cancel || request.action == .pause {
      if worker?.job == job { try endWorker(saying: "held back") }
      try withdraw(job, saying: "held back")
    }
    do {
      if try retryInSlurm(request) { return }
      try ledger.carryOut(request)
      if let job = request.job {
        if request.action == .retry { pauses[job] = nil }
        tell(.notice, "\(request.action.rawValue) as asked", of: job, [])
      } else {
        log.notice("\(request.action.rawValue) as asked")
      }
    } catch let error as JobRequestError {
      log.warning("\(error)")
    }
  }
}
