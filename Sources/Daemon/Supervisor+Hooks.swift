import FoundationEssentials
import SystemIO

/// What is said of jobs: to the log, to a job's own, and to the programs that want to hear of it.
extension Supervisor {
  /// Says something of a job.
  func tell(_ priority: Log.Priority, _ event: String, of job: String, _ fields: [Log.Field]) {
    log.write(priority, event, [.job(job)] + fields)
    JobLog(directory: ledger.files(of: job).directory).write(priority, event, fields)
  }

  /// Has a program told of an event, if there is one for it. No job is ever touched by it.
  func leave(_ event: HookEvent) {
    do {
      guard try FileSystem.kind(of: FileSystem.join(configuration.hooks, event.kind.program)) == .regular
      else {
        return
      }
      // It may have been removed since.
      try FileSystem.createDirectories(spool.hookEvents)
      try event.leave(in: spool)
      startHooks()
    } catch {
      log.warning("nobody is told by \(event.kind.program): \(error)", .name(event.name))
    }
  }

  /// An event about a job.
  func leave(_ kind: HookEvent.Kind, _ job: JobRecord, reason: String? = nil) {
    var event = HookEvent(kind, name: job.name)
    (event.job, event.reason, event.output) = (job.id, reason, job.output)
    event.source = try? spool.source(of: job)
    event.seconds = job.secondsWorked
    event.meanRelativeError = job.summary?.meanRelativeError
    leave(event)
  }

  /// Under systemd a unit with a network runs the programs. Elsewhere a child process of the daemon does.
  private func startHooks() {
    guard !notifier.isActive, hookRunner == nil else { return }
    let settings = ["hooks=\(configuration.hooks)", "hook-seconds=\(configuration.hookSeconds)"]
    do {
      hookRunner = try ChildProcess(
        program, arguments: ["hooks", "--spool", spool.root] + settings.flatMap { ["--set", $0] },
        environment: environment)
    } catch {
      log.warning("nobody is told of events: \(error)")
    }
  }

  /// Takes note that the process which runs the programs has ended; what came since is told by another.
  func hear(_ runner: ChildProcess) throws {
    guard try runner.read().isEmpty else { return }
    hookRunner = nil
    let end = try runner.wait()
    if end != .exited(status: 0) {
      log.warning("the process that tells of events ended: \(end)")
    } else if try !FileSystem.names(in: spool.hookEvents).isEmpty {
      startHooks()
    }
  }
}
