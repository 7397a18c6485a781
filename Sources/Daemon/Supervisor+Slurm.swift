import Export
import FoundationEssentials
import Pipeline
import SystemIO

/// Jobs that Slurm has done: it gives each to one host, and again to another when that dies.
///
/// What has come of a job is decided by its files, and not by what Slurm calls its state: a result that stands in the job's
/// directory is published, what the newest attempt says is believed, and a job that Slurm twice does not know any more is
/// one whose worker died. Slurm is asked, and never waited for.
extension Supervisor {
  /// Takes over what an earlier daemon gave to Slurm, and what it could not take back.
  func adoptSlurmJobs() {
    for job in ledger.jobs {
      guard let entry = job.slurm else { continue }
      if job.phase == .running, !entry.isUnwanted {
        var run = SlurmQueue.Run()
        if entry.number == nil { run.doubt = SlurmQueue.Doubt() }
        slurm.runs[job.id] = run
      } else if let number = entry.number {
        slurm.unwanted.insert(number)
      }
    }
  }

  /// Gives Slurm the next job, if it may have another one.
  func startNextInSlurm() {
    guard slurm.submission == nil, slurm.runs.count < configuration.parallel, let next = nextInTurn else {
      return
    }
    do { try submit(next) } catch {
      settle(next.id, JobFailure(error))
    }
  }

  private func submit(_ job: JobRecord) throws {
    let order = try writeOrder(of: job)
    let directory = ledger.files(of: job.id).directory
    let entry = SlurmJob(
      of: job.id, spool: spool.root, earlierAttempts: try JobAttempt.all(in: directory).last?.number ?? 0)
    try begin(job) { job in
      job.slurm = entry
      job.step = "on its way to Slurm"
    }
    let options =
      [
        "--parsable", "--job-name=\(entry.name)", "--comment=quantease:\(entry.name)",
        "--dependency=singleton",
        "--requeue", "--open-mode=append", "--output=\(FileSystem.join(directory, "slurm.log"))",
        "--export=NONE", "--propagate=NONE", "--chdir=/", "--nodes=1", "--ntasks-per-node=1",
        "--cpus-per-task=\(configuration.threads)",
      ] + configuration.slurm.arguments
    slurm.runs[job.id] = SlurmQueue.Run()
    slurm.submission = (
      job.id,
      try command(
        program, ["enqueue", order, configuration.slurm.program ?? ThisProcess.program, "--"] + options)
    )
    tell(
      .notice, "given to Slurm", of: job.id, [.name(job.name), Log.Field("attempt", "\(job.attempts + 1)")])
  }

  private func command(_ program: String, _ arguments: [String]) throws(FileError) -> SlurmCommand {
    try SlurmCommand(
      program, arguments, environment: SlurmCommand.environment(environment), limit: patience.answer)
  }

  /// Hears what Slurm's commands and the workers say, and asks what is to be asked.
  func tendSlurm(_ readable: Set<Int32>) {
    func outcome(of command: SlurmCommand) throws -> SlurmCommand.Outcome? {
      try command.advance(isReadable: readable.contains(command.descriptor))
    }
    attempt {
      if let (job, command) = slurm.submission, let outcome = try outcome(of: command) {
        slurm.submission = nil
        try take(outcome, ofHandingOver: job)
      }
    }
    attempt {
      if let (command, since) = slurm.look, let outcome = try outcome(of: command) {
        slurm.look = nil
        try take(outcome, ofLookSince: since)
      }
    }
    attempt {
      if let (number, command) = slurm.cancellation, let outcome = try outcome(of: command) {
        slurm.cancellation = nil
        try take(outcome, ofCancelling: number)
      }
    }
    if ContinuousClock.now >= slurm.nextTail {
      slurm.nextTail = .now + patience.tail
      for id in slurm.runs.keys.sorted() where slurm.submission?.job != id { attempt { try hear(id) } }
    }
    attempt { try askSlurm() }
  }

  private func askSlurm() throws {
    let now = ContinuousClock.now
    if slurm.look == nil, !slurm.runs.isEmpty || !slurm.unwantedNames.isEmpty, now >= slurm.nextLook {
      slurm.nextLook = now + patience.look
      slurm.look = (try command("squeue", SlurmListing.arguments), now)
    }
    if slurm.cancellation == nil, now >= slurm.nextCancellation, let number = slurm.unwanted.min() {
      slurm.cancellation = (number, try command("scancel", [number]))
    }
  }

  // MARK: What Slurm says

  private func take(_ outcome: SlurmCommand.Outcome, ofHandingOver id: String) throws {
    guard slurm.runs[id] != nil else { return }
    let text =
      switch outcome {
      case .succeeded(let text), .failed(let text): text
      }
    var failure: JobFailure?
    var number: String?
    // A program that fails says so in its own words, which stand in its events.
    for event in text.split(separator: "\n").compactMap({ WorkerEvent(line: $0.utf8) }) {
      switch event {
      case .submitted(let heard): number = heard
      case .failed(let heard): failure = heard
      case .warning(let text):
        try ledger.update(id) { $0.warn(text) }
        tell(.warning, text, of: id, [])
      default: break
      }
    }
    if let number {
      try ledger.update(id) { job in
        job.slurm?.number = number
        job.step = job.slurm?.text ?? ""
      }
      tell(.info, "is Slurm's job \(number)", of: id, [])
      // It may begin at once.
      slurm.nextLook = min(slurm.nextLook, .now + patience.tail)
      return
    }
    let reason = failure ?? JobFailure(.blocked, "Slurm did not take the job: \(text)", code: 75)
    if reason.kind == .job {
      try leaveSlurm(id, cancelling: false)
      settle(id, reason)
    } else {
      // It may have taken it all the same, and only the answer was lost.
      slurm.runs[id]?.doubt = SlurmQueue.Doubt(failure: reason)
      slurm.nextLook = .now
    }
  }

  private func take(_ outcome: SlurmCommand.Outcome, ofLookSince since: ContinuousClock.Instant) throws {
    switch outcome {
    case .failed(let text):
      if slurm.silentSince == nil {
        slurm.silentSince = Date().timeIntervalSince1970
        log.warning("Slurm does not answer: \(text)")
      }
      try showSilence(text)
    case .succeeded(let text):
      if slurm.silentSince != nil { log.notice("Slurm answers again") }
      slurm.silentSince = nil
      let listing = SlurmListing(text)
      for (name, time) in slurm.unwantedNames where since > time {
        slurm.unwantedNames[name] = nil
        let isTakenAgain = slurm.runs.keys.contains { ledger.job($0)?.slurm?.name == name }
        if !isTakenAgain { slurm.unwanted.formUnion(listing.active(named: name).map(\.number)) }
      }
      for id in slurm.runs.keys.sorted() { attempt { try look(at: id, in: listing, since) } }
    }
  }

  /// Nothing changes while Slurm does not answer, and whoever looks sees why.
  private func showSilence(_ text: String) throws {
    guard let since = slurm.silentSince else { return }
    let reason = "Slurm does not answer since \(Schedule.clock(since)): \(text)"
    for id in slurm.runs.keys.sorted() where ledger.job(id)?.pausedBecause != reason {
      try ledger.update(id) { $0.pausedBecause = reason }
    }
  }

  private func look(at id: String, in listing: SlurmListing, _ since: ContinuousClock.Instant) throws {
    guard var run = slurm.runs[id], slurm.submission?.job != id, let job = ledger.job(id),
      let known = job.slurm
    else { return }
    let active = listing.active(named: known.name)
    let entry = known.number.flatMap { listing.entry($0) }.flatMap { $0.isOver ? nil : $0 } ?? active.first
    // A second of the same name would wait for the first one, and then do its work again.
    for double in active where double != entry { slurm.unwanted.insert(double.number) }
    if let entry {
      (run.doubt, run.missing) = (nil, nil)
      slurm.runs[id] = run
      try show(entry, of: id, known)
      return
    }
    if let doubt = run.doubt {
      guard since > doubt.since else { return }
      try leaveSlurm(id, cancelling: false)
      guard let failure = doubt.failure else { return try requeue(id, saying: "waits to be given to Slurm") }
      return settle(id, failure)
    }
    // The list may be a moment older than the job.
    guard known.number != nil else { return }
    run.missing = (run.missing?.since ?? .now, (run.missing?.looks ?? 0) + 1)
    slurm.runs[id] = run
    guard let missing = run.missing, missing.looks > 1,
      ContinuousClock.now - missing.since >= patience.missing
    else { return }
    // Its last words may have come meanwhile.
    try hear(id)
    guard slurm.runs[id] != nil else { return }
    let last = known.number.flatMap { listing.entry($0) }
    let end =
      last.map { "ended it as \($0.state)" + ($0.reason.map { " (\($0))" } ?? "") }
      ?? "does not know it any more"
    try leaveSlurm(id, cancelling: false)
    settle(
      id,
      JobFailure(
        .broken, "Slurm's job \(known.number ?? "") left no result, and Slurm \(end)", code: 70))
  }

  /// Notes where Slurm has a job.
  private func show(_ entry: SlurmListing.Entry, of id: String, _ known: SlurmJob) throws {
    var now = known
    (now.number, now.state, now.reason, now.node) = (entry.number, entry.state, entry.reason, entry.node)
    let obstacle = entry.obstacle
    guard let job = ledger.job(id), now != known || job.pausedBecause != obstacle else { return }
    let updated = try ledger.update(id) { job in
      job.slurm = now
      job.pausedBecause = obstacle
      if entry.state != "RUNNING" { (job.step, job.workedSince) = (now.text, nil) }
    }
    if entry.state != "RUNNING" { slurm.runs[id]?.lapStart = nil }
    if let obstacle { tellPause(updated, obstacle) } else { tellResumption(id) }
    if now.state != known.state || now.node != known.node { tell(.info, now.text, of: id, []) }
  }

  private func take(_ outcome: SlurmCommand.Outcome, ofCancelling number: String) throws {
    guard case .succeeded = outcome else {
      slurm.nextCancellation = .now + patience.look
      return
    }
    slurm.unwanted.remove(number)
    for job in ledger.jobs where job.slurm?.isUnwanted == true && job.slurm?.number == number {
      try ledger.update(job.id) { $0.slurm = nil }
    }
  }

  // MARK: What workers say

  /// Reads what the newest attempt at a job has said since.
  private func hear(_ id: String) throws {
    let files = ledger.files(of: id)
    // Whoever made it, it is complete and verified.
    if try FileSystem.exists(files.checkpoint) {
      let summary = WorkerEvent.Summary(try Report(directory: files.checkpoint).totals)
      return try endSlurmRun(id, .success(summary))
    }
    guard let known = ledger.job(id)?.slurm, let attempt = try JobAttempt.all(in: files.directory).last,
      attempt.number > known.earlierAttempts
    else { return }
    let isNew = attempt.number != known.heardAttempt
    if isNew { slurm.runs[id]?.lapStart = .now; slurm.runs[id]?.lastEventAt = .now }
    let offset = isNew ? 0 : known.heardBytes
    let bytes =
      try FileSystem.exists(attempt.events) ? FileSystem.contents(of: attempt.events, from: offset) : []
    var failure: JobFailure?
    if let end = bytes.lastIndex(of: UInt8(ascii: "\n")) {
      slurm.runs[id]?.lastEventAt = .now
      for line in bytes[...end].split(separator: UInt8(ascii: "\n")) {
        switch WorkerEvent(line: line) {
        case .failed(let heard)?: failure = heard
        case let event?: try take(event, of: id) { slurm.runs[id]?.lap() ?? 0 }
        case nil: break
        }
      }
      try ledger.update(id) { job in
        job.slurm?.heardAttempt = attempt.number
        job.slurm?.heardBytes = offset + end + 1
      }
    }
    if let failure { return try endSlurmRun(id, .failure(failure)) }
    if known.state == "RUNNING", let last = slurm.runs[id]?.lastEventAt,
      ContinuousClock.now - last > patience.silence
    {
      log.error("the worker hangs", .job(id))
      try endSlurmRun(id, .failure(JobFailure(.broken, "the worker has said nothing for an hour", code: 70)))
    }
  }

  private func endSlurmRun(_ id: String, _ outcome: Result<WorkerEvent.Summary, JobFailure>) throws {
    let worked = slurm.runs[id]?.lap() ?? 0
    try leaveSlurm(id, cancelling: true) { $0.secondsWorked += worked }
    try conclude(id, outcome)
  }

  /// Takes a job back, which goes on later where it is.
  func withdraw(_ id: String, saying step: String) throws {
    guard slurm.runs[id] != nil else { return }
    try leaveSlurm(id, cancelling: true)
    try requeue(id, saying: step)
  }

  private func requeue(_ id: String, saying step: String) throws {
    try ledger.update(id) { job in
      job.phase = .queued
      job.attempts -= 1
      job.step = step
    }
  }

  /// Has Slurm and a job nothing more to do with one another.
  /// - Parameter isCancelling: whether Slurm may still have it
  private func leaveSlurm(
    _ id: String, cancelling isCancelling: Bool, _ change: (inout JobRecord) -> Void = { _ in }
  ) throws {
    slurm.runs[id] = nil
    let known = ledger.job(id)?.slurm
    let number = known?.number
    if let (job, command) = slurm.submission, job == id {
      command.kill()
      slurm.submission = nil
      // Slurm may have it by now.
      if let known { slurm.unwantedNames[known.name] = .now }
    }
    if isCancelling, let number { slurm.unwanted.insert(number) }
    try ledger.update(id) { job in
      change(&job)
      (job.pausedBecause, job.workedSince) = (nil, nil)
      if isCancelling, number != nil { job.slurm?.isUnwanted = true } else { job.slurm = nil }
    }
  }
}
