import ArgumentParser
import Calibration
import Collective
import Compute
import ComputeOpenBLAS
import Daemon
import Devices
import Dispatch
import Foundation
import Pipeline
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
    let count = order.ranks ?? 1
    // Of a job's ranks the first one is who the daemon hears of. Slurm says which that is before MPI does.
    let isChief = count == 1 || ProcessEnvironment.process.value("SLURM_PROCID") == "0"
    if isShared, isChief {
      attempt = try JobAttempt.begin(in: order.directory, after: order.lastAttempt ?? 0)
      // Whatever the job becomes from now on retires this attempt; until now it may have become something else.
      order = try JobOrder(path: path)
    }
    let output = isChief ? WorkerOutput(file: attempt?.events) : nil
    func send(_ event: WorkerEvent) { output?.send(event) }
    if let warning = KernelSet.warning { send(.warning(warning)) }
    var ranks = Ranks.alone
    do {
      ranks = try Ranks.mpi(count, library: ProcessEnvironment.process.value("QUANTEASE_MPI"))
      // Slurm ends all ranks when one has ended, whatever the first one is doing.
      ranks.whenOneFails { output?.send(.failed(JobFailure($0))) }
      let device = order.deviceChoice
      let isExact = order.settings.precision == .exact
      if count > 1 {
        let backend = try DeviceChoice.processor.backend(
          threads: order.threads, isExact: isExact, begun: begun
        ) { _ in }
        try work(order, backend, ranks, attempt, output)
        return try ranks.end()
      }
      var backend = try device.backend(threads: order.threads, isExact: isExact, begun: begun) {
        send(.warning($0))
      }
      if device == .auto, let shortage = JobWorker.shortage(of: order, on: backend) {
        send(.warning(DeviceChoice.withoutGPU(shortage)))
        backend = try DeviceChoice.processor.backend(
          threads: order.threads, isExact: isExact, begun: begun
        ) { _ in }
      }
      output?.watch(backend)
      try JobWorker(order, backend: backend, attempt: attempt, restart: Self.restart, send: send).run()
    } catch {
      // What another one goes on with has not failed.
      if let attempt, attempt.isOutdated {
        ranks.abandon(reason: "another attempt goes on", status: EX_TEMPFAIL)
        throw ExitCode(EX_TEMPFAIL)
      }
      let failure = JobFailure(error)
      // Before any other rank hears of it, ends and has all ended.
      send(.failed(failure))
      ranks.abandon(reason: "\(error)", status: failure.statusAmongRanks)
      if output == nil {
        StandardError.write(Array("\(ranks.name(ranks.rank)): \(error)\n".utf8))
        Thread.sleep(forTimeInterval: Self.secondsToTell)
      }
      throw ExitCode(failure.code)
    }
  }

  /// So long the first rank has for telling the daemon what it hears of another one, which ends then.
  private static let secondsToTell = 2.0

  /// Does the job as one of its ranks.
  /// - Parameter output: the first one's
  private func work(
    _ order: JobOrder, _ backend: any ComputeBackend, _ ranks: Ranks, _ attempt: JobAttempt?,
    _ output: WorkerOutput?
  ) throws {
    guard (output != nil) == ranks.isChief else {
      throw JobFailure(
        .blocked,
        "MPI calls \(ranks.rank) what Slurm calls \(ProcessEnvironment.process.value("SLURM_PROCID") ?? "nothing"): look at "
          + "'slurm-mpi', and at which MPI tools/build-mpi was run with", code: 78)
    }
    try ranks.agree(on: "the job", order.id)
    try ranks.agree(on: order.settings)
    guard let output else { return try JobWorker.follow(order, by: backend, ranks: ranks) }
    output.watch(backend)
    try JobWorker(order, backend: backend, attempt: attempt, ranks: ranks, send: output.send).run()
    try ranks.dismissIdle()
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
  /// Held while an event is written: whether that was the last one.
  private let isOver = Mutex(false)

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
    isOver.withLock { isOver in
      if isOver { return }
      switch event {
      case .finished, .failed: isOver = true
      default: break
      }
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
