import ArgumentParser
import Daemon
import Foundation
import SystemIO

private let jobHelp = ArgumentHelp("A job's identifier, or the name it was dropped with.", valueName: "job")

struct RetryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "retry", abstract: "Queues a failed or cancelled job again, and tries a paused one now.",
    discussion: "A job whose worker broke down goes on after the last linear that is done.")

  @Argument(help: jobHelp) var job: String?

  @Flag(help: "Every job that failed and whose checkpoint is still there.")
  var all = false

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func validate() throws {
    if (job == nil) != all { throw ValidationError("name one job, or say --all") }
  }

  func run() throws {
    let desk = try RequestDesk(options)
    if let job { return try desk.ask(.retry, job) }
    let failed = desk.view.jobs.filter { job in
      job.phase == .failed && (try? desk.view.spool.source(of: job)) != nil
    }
    if failed.isEmpty { try Console.line("no job has failed whose checkpoint is still there") }
    for job in failed { try desk.ask(.retry, job.id) }
  }
}

struct CancelCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cancel", abstract: "Gives up a job that waits or is at work.",
    discussion: "Its source goes to the folder failed/; nothing of it is published.")

  @Argument(help: jobHelp) var job: String

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws { try RequestDesk(options).ask(.cancel, job) }
}

struct PauseCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pause", abstract: "Holds a job back, or all of them, until 'quantease resume'.",
    discussion: """
      The worker of a job at work is ended; what it has done is kept, and at most one linear is computed again. It \
      outlasts a restart of the daemon and of the machine.
      """)

  @Argument(help: "A job's identifier or name. Default: all jobs, those that are still to come, too.")
  var job: String?

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws { try RequestDesk(options).ask(.pause, job) }
}

struct ResumeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "resume", abstract: "Lets go on what 'quantease pause' holds back.",
    discussion: """
      Without a job it ends the pause of the whole daemon; jobs that are held back by name stay so until they are named.
      """)

  @Argument(help: "A job's identifier or name. Default: the daemon.")
  var job: String?

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws { try RequestDesk(options).ask(.resume, job) }
}

struct FirstCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "first", abstract: "Puts a job before all others that wait.",
    discussion: "The job at work is not interrupted. A recipe can say 'priority: 5' from the beginning.")

  @Argument(help: jobHelp) var job: String

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws { try RequestDesk(options).ask(.first, job) }
}

/// Has a running daemon do what is asked, or does it where there is none.
private struct RequestDesk {
  let view: SpoolView

  init(_ options: SpoolOptions) throws { view = try SpoolView(options) }

  /// - Parameter name: of a job; nil is the daemon
  func ask(_ action: JobRequest.Action, _ name: String?) throws {
    let job = try name.map(find)
    let request = JobRequest(action, job: job?.id)
    let what = job?.id ?? "quanteased"
    // The lock is for those who may do all that the daemon may.
    if view.isTold { return try leave(request, about: what, job) }
    do {
      let lock = try FileLock(path: view.spool.lock, purpose: "quantease \(action.rawValue)")
      try withExtendedLifetime(lock) {
        let ledger = try JobLedger(
          spool: view.spool, state: try StateStore.open(directory: view.configuration.stateDirectory),
          cacheDirectory: view.configuration.cacheDirectory)
        // A job may have been left half moved.
        _ = try ledger.recover()
        try ledger.carryOut(request)
      }
      try Console.line("\(what): \(action.rawValue) done; the daemon is not running")
    } catch FileLockError.held {
      try leave(request, about: what, job)
    }
  }

  private func leave(_ request: JobRequest, about what: String, _ job: JobRecord?) throws {
    // Refused at once is what the daemon would refuse in its log.
    if let job { try request.check(job) }
    try request.leave(in: view.spool)
    for _ in 0..<100 {
      if try request.isDone(in: view.spool) {
        return try Console.line("\(what): \(request.action.rawValue) done")
      }
      Thread.sleep(forTimeInterval: 0.1)
    }
    throw SpoolError.notDone("\(request.action.rawValue) \(what)")
  }

  private func find(_ name: String) throws -> JobRecord {
    if let job = view.job(name) { return job }
    // Whether or not the daemon has seen it.
    let drop = FileSystem.join(view.spool.incoming, name)
    if !name.contains("/"), try FileSystem.exists(drop) { throw SpoolError.notTaken(name, drop) }
    throw SpoolError.unknownJob(name)
  }
}
