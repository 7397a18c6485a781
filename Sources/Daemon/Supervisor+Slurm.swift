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
  func adoptSlurmJobs() throws {
    for job in ledger.jobs {
      guard let entry = job.slurm else { continue }
      // A command may have held it back while no daemon ran.
      if job.isWithSlurm, job.heldSince == nil {
        var run = SlurmQueue.Run()
        if entry.number == nil { run.doubt = SlurmQueue.Doubt() }
        slurm.runs[job.id] = run
      } else {
        slurm.cancel(entry.number, named: entry.name)
        if !entry.isUnwanted { try ledger.update(job.id) { $0.slurm?.isUnwanted = true } }
      }
    }
  }

  /// Whether Slurm may have another job.
  var canSubmit: Bool { slurm.submission == nil && slurm.runs.count < configuration.parallel }

  /// Gives Slurm the next job, if it may have another one.
  func startNextInSlurm() {
    guard canSubmit, let next = nextInTurn else { return }
    do { try submit(next) } catch {
      slurm.runs[next.id] = nil
      settle(next.id, JobFailure(error))
    }
  }

  private func submit(_ job: JobRecord) throws {
    let order = try writeOrder(of: job)
    let directory = ledger.files(of: job.id).directory
    let entry = SlurmJob(
      of: job.id, spool: spool.root,
      earlierAttempts: max(job.lastAttempt ?? 0, try JobAttempt.lastNumber(in: directory)))
    try begin(job) { job in
      job.slurm = entry
      job.step = "on its way to Slurm"
    }
    let options =
      [
        "--parsable", "--job-name=\(entry.name)", "--comment=quantease:\(entry.name)",
        "--dependency=singleton",
        "--requeue", "--open-mode=append", "--output=\(FileSystem.join(directory, "slurm.log"))",
        "--export=NONE", "--propagate=NONE", "--chdir=/", "--ntasks-per-node=1",
        "--cpus-per-task=\(configuration.threads)",
      ] + configuration.slurm.arguments
    slurm.runs[job.id] = SlurmQueue.Run()
    slurm.submission = (
      job.id,
      try command(
        program,
        [
          "enqueue", order, configuration.slurm.program ?? ThisProcess.program, "--mpi",
          configuration.slurm.mpi ?? SlurmSettings.standardMPI,
        ]
          + (configuration.slurm.timeLimit == .planned ? ["--plan-time"] : []) + ["--"] + options)
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
      if let command = slurm.cancellation, try outcome(of: command) != nil {
        slurm.cancellation = nil
        slurm.nextCancellation = .now
        // Whether it has helped, a look tells: of what is over it is said to fail.
        slurm.nextLook = min(slurm.nextLook, .now + patience.tail)
      }
    }
    // Nobody hears what they say, but ended they have to be.
    slurm.ended = slurm.ended.filter { command in
      do { return try outcome(of: command) == nil } catch { return false }
    }
    if ContinuousClock.now >= slurm.nextTail {
      slurm.nextTail = .now + patience.tail
      for id in slurm.runs.keys.sorted() where slurm.submission?.job != id { attempt { try hear(id) } }
    }
    attempt { try askSlurm() }
  }

  private func askSlurm() throws {
    let now = ContinuousClock.now
    if slurm.look == nil, slurm.isLooking, now >= slurm.nextLook {
      slurm.nextLook = now + patience.look
      do throws(FileError) { slurm.look = (try command("squeue", SlurmListing.arguments), now) } catch {
        try take(.failed(SlurmCommand.absence(of: "squeue", error), output: ""), ofLookSince: now)
      }
    }
    if slurm.cancellation == nil, now >= slurm.nextCancellation {
      slurm.nextCancellation = now + patience.tail
      if let index = slurm.nextCancellation(every: patience.look), let number = slurm.unwanted[index].number {
        slurm.unwanted[index].toldAt = now
        // By its name, too: a controller that lost its state gives numbers a second time. Without the command looks fail, too,
        // and say so.
        slurm.cancellation = try? command("scancel", ["--name=\(slurm.unwanted[index].name)", number])
      }
    }
  }

  // MARK: What Slurm says

  private func take(_ outcome: SlurmCommand.Outcome, ofHandingOver id: String) throws {
    guard slurm.runs[id] != nil else { return }
    // Until what came of it is on the disk, the name alone tells.
    slurm.runs[id]?.doubt = SlurmQueue.Doubt()
    let (said, reason) =
      switch outcome {
      case .succeeded(let text): (text, "no number was heard")
      case .failed(let reason, let output): (output, reason)
      }
    var failure: JobFailure?
    var number: String?
    // A program that fails says so in its own words, which stand in its events.
    for event in said.split(separator: "\n").compactMap({ WorkerEvent(line: $0.utf8) }) {
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
      slurm.runs[id]?.doubt = nil
      tell(.info, "is Slurm's job \(number)", of: id, [])
      // It may begin at once.
      slurm.nextLook = min(slurm.nextLook, .now + patience.tail)
      return
    }
    let what = failure ?? JobFailure(.blocked, "the job could not be given to Slurm: \(reason)", code: 75)
    if what.kind == .job {
      try leaveSlurm(id, cancelling: false)
      settle(id, what)
    } else {
      // Slurm may have taken it all the same, and only the answer was lost.
      slurm.runs[id]?.doubt = SlurmQueue.Doubt(failure: what)
      slurm.nextLook = .now
    }
  }

  private func take(_ outcome: SlurmCommand.Outcome, ofLookSince since: ContinuousClock.Instant) throws {
    switch outcome {
    case .failed(let reason, _):
      if slurm.silentSince == nil {
        slurm.silentSince = Date().timeIntervalSince1970
        log.warning("Slurm does not answer: \(reason)")
      }
      try showSilence(reason)
    case .succeeded(let text):
      if slurm.silentSince != nil { log.notice("Slurm answers again") }
      slurm.silentSince = nil
      let listing = SlurmListing(text)
      for entry in slurm.unwanted where since > entry.since { try look(at: entry, in: listing, since) }
      for id in slurm.runs.keys.sorted() { attempt { try look(at: id, in: listing, since) } }
    }
  }

  /// Forgets what Slurm has no more.
  private func look(
    at entry: SlurmQueue.Unwanted, in listing: SlurmListing, _ since: ContinuousClock.Instant
  ) throws {
    let active = listing.active(named: entry.name)
    if let number = entry.number {
      if active.contains(where: { $0.number == number }) { return }
    } else {
      let isTakenAgain = slurm.runs.keys.contains { ledger.job($0)?.slurm?.name == entry.name }
      if !isTakenAgain { for found in active { slurm.cancel(found.number, named: entry.name) } }
      // What was on its way to Slurm may take as long as an answer.
      if since < entry.since + patience.answer { return }
    }
    slurm.unwanted.removeAll { $0.name == entry.name && $0.number == entry.number }
    for job in ledger.jobs {
      guard let known = job.slurm, known.isUnwanted, known.name == entry.name, known.number == entry.number
      else { continue }
      try ledger.update(job.id) { $0.slurm = nil }
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
      .filter { !slurm.isUnwanted($0.number, named: known.name) }
    let entry = active.first { $0.number == known.number } ?? active.first
    // A second of the same name would wait for the first one, and then do its work again.
    for double in active where double != entry { slurm.cancel(double.number, named: double.name) }
    if let entry {
      (run.doubt, run.missing) = (nil, nil)
      slurm.runs[id] = run
      try show(entry, of: id, known)
      return
    }
    if let doubt = run.doubt {
      guard since > doubt.since else { return }
      guard let failure = doubt.failure else {
        return try leaveSlurm(id, cancelling: false) {
          Self.requeue(&$0, saying: "waits to be given to Slurm")
        }
      }
      try leaveSlurm(id, cancelling: false)
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
    let last = listing.entries.first { $0.number == known.number && $0.name == known.name }
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
    if let obstacle { tellPause(updated, obstacle, isTriedAgain: false) } else { tellResumption(id) }
    if now.state != known.state || now.node != known.node {
      // Its silence begins when it does.
      slurm.runs[id]?.lastEventAt = .now
      tell(.info, now.text, of: id, [])
    }
  }

  // MARK: What workers say

  /// Reads what the newest attempt at a job has said since, and ends the job if that was its last word, or the result is there.
  private func hear(_ id: String) throws {
    let files = ledger.files(of: id)
    // Whoever made it, it is complete and verified.
    let isDone = try FileSystem.exists(files.result)
    let end = try readEvents(id)
    if isDone {
      // What stands elsewhere an earlier attempt may have found, and not the one that brought this.
      if ledger.job(id)?.output != nil { try ledger.update(id) { ($0.output, $0.madeBy) = (nil, nil) } }
      return try endSlurmRun(
        id, .success(WorkerEvent.Summary(try Report(directory: files.result).totals)))
    }
    switch end {
    // An earlier job's result stands already where this one's would.
    case .success(let summary)? where ledger.job(id)?.madeBy != nil && ledger.job(id)?.output != nil:
      try endSlurmRun(id, .success(summary))
    case .failure(let failure)?: try endSlurmRun(id, .failure(failure))
    // Else the result appears in a moment.
    case .success?, nil: break
    }
    if let last = slurm.runs[id]?.lastEventAt, ledger.job(id)?.slurm?.state == "RUNNING",
      ContinuousClock.now - last > patience.silence
    {
      log.error("the worker hangs", .job(id))
      try endSlurmRun(id, .failure(JobFailure(.broken, "the worker has said nothing for an hour", code: 70)))
    }
  }

  /// - Returns: its last word, if it was heard
  private func readEvents(_ id: String) throws -> Result<WorkerEvent.Summary, JobFailure>? {
    guard let known = ledger.job(id)?.slurm,
      let attempt = try JobAttempt.all(in: ledger.files(of: id).directory).last,
      attempt.number > known.earlierAttempts, try FileSystem.exists(attempt.events)
    else { return nil }
    let isNew = attempt.number != known.heardAttempt
    let offset = isNew ? 0 : known.heardBytes
    guard let lines = try Self.lines(of: attempt.events, from: offset) else { return nil }
    slurm.runs[id]?.lastEventAt = .now
    if isNew {
      slurm.runs[id]?.lapStart = .now
      // What the one before found, it looks for anew.
      try ledger.update(id) { job in
        job.workedSince = Date().timeIntervalSince1970
        (job.output, job.madeBy) = (nil, nil)
      }
    }
    var heard = offset
    for line in lines.split(separator: UInt8(ascii: "\n")) {
      switch WorkerEvent(line: line) {
      // A last word is heard again by the next daemon, if this one does not come to act on it.
      case .finished(let summary)?:
        try note(heard, of: attempt, id)
        return .success(summary)
      case .failed(let failure)?:
        try note(heard, of: attempt, id)
        return .failure(failure)
      case let event?: try take(event, of: id) { slurm.runs[id]?.lap() ?? 0 }
      case nil: break
      }
      heard += line.count + 1
    }
    try note(heard, of: attempt, id)
    return nil
  }

  /// The whole lines of a file from an offset on, some MiB of them at most; nil where there is none. A line may be of any length:
  /// what is done of a great model is told in one.
  private static func lines(of file: String, from offset: Int) throws(FileError) -> [UInt8]? {
    var limit = 1 << 22
    while true {
      let bytes = try FileSystem.contents(of: file, from: offset, limit: limit)
      if let last = bytes.lastIndex(of: UInt8(ascii: "\n")) { return Array(bytes[...last]) }
      if bytes.count < limit { return nil }
      limit *= 2
    }
  }

  /// Notes how much is heard of what an attempt says.
  private func note(_ heardBytes: Int, of attempt: JobAttempt, _ id: String) throws {
    try ledger.update(id) { job in
      job.slurm?.heardAttempt = attempt.number
      job.slurm?.heardBytes = heardBytes
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
    try leaveSlurm(id, cancelling: true) { Self.requeue(&$0, saying: step) }
  }

  /// Gives a job anew that waits in Slurm for what does not come.
  /// - Returns: false of any other request
  func retryInSlurm(_ request: JobRequest) throws -> Bool {
    guard request.action == .retry, let id = request.job, slurm.runs[id] != nil, let job = ledger.job(id)
    else { return false }
    try request.check(job)
    pauses[id] = nil
    try withdraw(id, saying: "to be given to Slurm anew")
    tell(.notice, "retry as asked", of: id, [])
    return true
  }

  private static func requeue(_ job: inout JobRecord, saying step: String) {
    job.phase = .queued
    job.attempts -= 1
    job.step = step
  }

  /// Has Slurm and a job nothing more to do with one another.
  /// - Parameter isCancelling: whether Slurm may still have it
  private func leaveSlurm(
    _ id: String, cancelling isCancelling: Bool, _ change: (inout JobRecord) -> Void = { _ in }
  ) throws {
    let known = ledger.job(id)?.slurm
    // First: what is not on the disk has not happened, and is done again.
    try ledger.update(id) { job in
      change(&job)
      (job.pausedBecause, job.workedSince) = (nil, nil)
      if isCancelling { job.slurm?.isUnwanted = true } else { job.slurm = nil }
    }
    slurm.runs[id] = nil
    if let (job, command) = slurm.submission, job == id {
      command.kill()
      slurm.ended.append(command)
      slurm.submission = nil
    }
    if isCancelling, let known { slurm.cancel(known.number, named: known.name) }
  }
}
