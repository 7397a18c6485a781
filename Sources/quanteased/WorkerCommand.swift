import ArgumentParser
import Compute
import ComputeOpenBLAS
import Daemon
import Devices
import Dispatch
import Foundation
import Synchronization
import SystemIO

/// Does one job for the daemon, which starts it as a process of its own, or has a scheduler start it on another host.
struct WorkerCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "worker", abstract: "Does one job; the daemon starts it.", shouldDisplay: false)

  @Argument(help: "The job's order.")
  var order: String

  func run() throws {
    let path = order
    var order = try JobOrder(path: path)
    let isShared = order.isShared ?? false
    if isShared { ThisProcess.ignoreTermination() } else { ThisProcess.endWithParent() }
    let begun = ProcessorKernels.take(begun: try JobWorker.kernels(ofJobIn: order.directory))
    ProcessMemory.returnLargeBlocks()
    var attempt: JobAttempt?
    if isShared {
      attempt = try JobAttempt.begin(in: order.directory, after: order.lastAttempt ?? 0)
      // Whatever the job becomes from now on retires this attempt; until now it may have become something else.
      order = try JobOrder(path: path)
    }
    let output = WorkerOutput(file: attempt?.events)
    if let warning = KernelSet.warning { output.send(.warning(warning)) }
    do {
      let device = order.deviceChoice
      let isExact = order.settings.precision == .exact
      var backend = try device.backend(threads: order.threads, isExact: isExact, begun: begun) {
        output.send(.warning($0))
      }
      if device == .auto, let shortage = JobWorker.shortage(of: order, on: backend) {
        output.send(.warning(DeviceChoice.withoutGPU(shortage)))
        backend = try DeviceChoice.processor.backend(
          threads: order.threads, isExact: isExact, begun: begun
        ) { _ in }
      }
      output.watch(backend)
      try JobWorker(order, backend: backend, attempt: attempt, restart: Self.restart, send: output.send).run()
    } catch {
      // What another one goes on with has not failed.
      if let attempt, attempt.isOutdated { throw ExitCode(EX_TEMPFAIL) }
      let failure = JobFailure(error)
      output.send(.failed(failure))
      throw ExitCode(failure.code)
    }
  }
}

extension WorkerCommand {
  private static let variable = "QUANTEASE_WORKER_RESTARTED"

  /// Begins anew, once: by then it is known what the job was begun with.
  private static func restart() {
    if ProcessEnvironment.process.value(variable) == nil { ThisProcess.restart(setting: [variable: "1"]) }
  }
}

/// What the daemon hears: through a pipe, or by a file that it reads from another host.
private final class WorkerOutput: Sendable {
  private let file: String?
  private let pace: Duration
  /// When the daemon was last told that the work goes on.
  private let lastAdvance = Mutex(ContinuousClock.now)
  private let isWriting = Mutex(())

  /// - Parameter file: where events are appended; nil for standard output
  init(file: String?) {
    self.file = file
    pace = file == nil ? .seconds(1) : .seconds(10)
  }

  func send(_ event: WorkerEvent) {
    if event == .advanced {
      let isNews = lastAdvance.withLock { last in
        guard ContinuousClock.now - last > pace else { return false }
        last = .now
        return true
      }
      guard isNews else { return }
    }
    isWriting.withLock { _ in
      if let file {
        do throws(FileError) { try OutputFile.append(event.line(), to: file, isMaking: false) } catch {
          // The attempt's directory is gone: its result is published, or nothing can come of it any more.
          if error.errno == .noSuchFileOrDirectory { Foundation.exit(EX_OK) }
        }
      } else {
        // A daemon that is gone takes its worker with it.
        try? StandardOutput.write(event.line())
      }
    }
  }

  /// Tells of progress within an operation, which may take an hour: only when parts of it get done.
  func watch(_ backend: any ComputeBackend) {
    let thread = Thread { [self] in
      var seen = 0
      while true {
        Thread.sleep(forTimeInterval: 10)
        let progress = backend.progress
        if progress != seen { send(.advanced) }
        seen = progress
      }
    }
    thread.start()
  }
}
