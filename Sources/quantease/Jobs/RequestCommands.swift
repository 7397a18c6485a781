import ArgumentParser
import Daemon
import Foundation
import SystemIO

struct RetryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "retry", abstract: "Queues a failed or cancelled job again, and tries a paused one now.",
    discussion: "A job whose worker broke down goes on after the last linear that is done.")

  @Argument(help: ArgumentHelp("A job's identifier, or the name it was dropped with.", valueName: "job"))
  var job: String

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws { try request(.retry, job, options) }
}

struct CancelCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cancel", abstract: "Gives up a job that waits or is at work.",
    discussion: "Its source goes to the folder failed/; nothing of it is published.")

  @Argument(help: ArgumentHelp("A job's identifier, or the name it was dropped with.", valueName: "job"))
  var job: String

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws { try request(.cancel, job, options) }
}

/// Has a running daemon do it, or does it where there is none.
private func request(_ action: JobRequest.Action, _ name: String, _ options: SpoolOptions) throws {
  let view = try SpoolView(options)
  guard let job = view.job(name) else {
    if view.drops.contains(where: { $0.name == name }) {
      throw SpoolError.notTaken(name, FileSystem.join(view.spool.incoming, name))
    }
    throw SpoolError.unknownJob(name)
  }
  let request = JobRequest(action, job: job.id)
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
    try Console.line("\(job.id): \(action.rawValue) done; the daemon is not running")
  } catch FileLockError.held {
    try ledgerCheck(request, job)
    try request.leave(in: view.spool)
    for _ in 0..<100 {
      if try request.isDone(in: view.spool) { return try Console.line("\(job.id): \(action.rawValue) done") }
      Thread.sleep(forTimeInterval: 0.1)
    }
    throw SpoolError.notDone("\(action.rawValue) \(job.id)")
  }
}

/// Refuses at once what the daemon would refuse in its log.
private func ledgerCheck(_ request: JobRequest, _ job: JobRecord) throws {
  switch request.action {
  case .cancel where job.phase.isOver: throw JobRequestError.over(job.id, job.phase)
  case .retry where job.phase != .failed && job.phase != .cancelled && job.pausedBecause == nil:
    throw JobRequestError.cannotRetry(job.id, job.phase)
  default: break
  }
}

struct VerifyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify",
    abstract: "Checks a finished output: every byte, and that it opens as a checkpoint.")

  @Argument(help: ArgumentHelp("A directory in the spool's output folder.", valueName: "output"))
  var output: String

  func run() throws {
    let problems = try OutputVerification.problems(of: output)
    guard problems.isEmpty else {
      for problem in problems { Console.note(problem) }
      throw SpoolError.problems(output, count: problems.count)
    }
    try Console.line("\(output): every file is what was written, and opens")
  }
}
