import ArgumentParser
import Daemon
import Foundation
import SystemIO

struct RetryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "retry", abstract: "Queues a failed or cancelled job again.",
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
  guard let job = view.job(name) else { throw SpoolError.unknownJob(name) }
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
  case .retry where job.phase != .failed && job.phase != .cancelled:
    throw JobRequestError.cannotRetry(job.id, job.phase)
  default: break
  }
}

struct SubmitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "submit", abstract: "Puts a checkpoint into the drop folder, complete in one step.",
    discussion: """
      Copies the files, through links as model caches have them, and lets them appear all at once. --move takes \
      the directory itself, which must be on the drop folder's file system.

      Example:
        quantease submit ~/models/llama --recipe w4.yaml
      """)

  @Argument(help: ArgumentHelp("The checkpoint's directory.", valueName: "dir"))
  var directory: String

  @Option(help: "The name of the drop and of the result. Default: the directory's.")
  var name: String?

  @Option(
    help: ArgumentHelp("A file of settings for this job: it becomes its quantease.yaml.", valueName: "file"))
  var recipe: String?

  @Flag(help: "Move the directory instead of copying it.")
  var move = false

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func validate() throws {
    if let name, name.isEmpty || name.contains("/") || name.hasPrefix(".") {
      throw ValidationError("--name is one name, and not hidden")
    }
  }

  func run() throws {
    let spool = Spool(root: try options.configuration().spool)
    let source = URL(fileURLWithPath: directory).standardizedFileURL.path
    guard try FileSystem.kind(of: source) == .directory else {
      throw FileError(path: source, operation: .list, errno: .notDirectory)
    }
    let name = name ?? FileSystem.name(of: source)
    let drop = FileSystem.join(spool.incoming, name)
    if try FileSystem.exists(drop) { throw SpoolError.alreadyThere(drop) }
    guard FileSystem.isWritable(spool.incoming) else {
      throw SpoolError.mayNotDrop(spool.incoming, group: FileSystem.groupName(of: spool.incoming))
    }
    if move {
      if let recipe { try FileSystem.copyFile(recipe, to: FileSystem.join(source, JobFile.name)) }
      try AtomicFile.write("", to: FileSystem.join(source, ".ready"))
      try FileSystem.move(source, to: drop)
    } else {
      let staging = try StagingDirectory(for: drop)
      let interruption = try Interruption { staging.abandon() }
      do {
        try withExtendedLifetime(interruption) { try fill(staging, from: source) }
      } catch {
        // The process may end without this object's.
        _ = staging.abandon()
        throw error
      }
    }
    try Console.line("\(name) is in \(spool.incoming); 'quantease why \(name)' tells what becomes of it")
  }

  private func fill(_ staging: StagingDirectory, from source: String) throws {
    try copy(source, to: staging.path)
    if let recipe {
      let place = FileSystem.join(staging.path, JobFile.name)
      try FileSystem.removeTree(place)
      try FileSystem.copyFile(recipe, to: place)
    }
    // Complete by its marker, should no daemon see the renaming.
    try AtomicFile.write("", to: FileSystem.join(staging.path, ".ready"))
    try staging.publish()
  }

  private func copy(_ source: String, to target: String) throws {
    for name in try FileSystem.names(in: source) where !name.hasPrefix(".") {
      let path = FileSystem.join(source, name)
      guard try FileSystem.kind(of: path) == .regular else { continue }
      Console.note("copying \(name), \(Console.bytes(try FileSystem.fileSize(path)))")
      try FileSystem.copyFile(path, to: FileSystem.join(target, name))
    }
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
