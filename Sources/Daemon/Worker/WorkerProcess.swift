import SystemIO

/// A worker, as the daemon sees it: a process that writes events, and what has come of it so far.
final class WorkerProcess {
  let job: String
  private let process: ChildProcess
  private let source: (files: SourceFiles, directory: String)
  private var pending: [UInt8] = []
  /// Up to when its time has been added to the job's.
  private(set) var lapStart = ContinuousClock.now
  /// When it last said anything.
  private(set) var lastEventAt = ContinuousClock.now

  /// Starts this very program as a worker for the job whose order stands at `order`.
  /// - Parameter source: the claimed checkpoint, and its files as they were then
  /// - Throws: ``FileError``
  init(
    job: String, order: String, source: (files: SourceFiles, directory: String), program: String,
    environment: [String: String]
  ) throws {
    self.job = job
    self.source = source
    // In a group of its own, as it starts others: a tokenizer or a converter must not go on without it.
    process = try ChildProcess(
      program, arguments: ["worker", order], environment: environment, isAlone: true)
  }

  var descriptor: Int32 { process.descriptor }

  /// The events that have come; nil when the worker has closed its output, which it does at its end.
  func read() throws -> [WorkerEvent]? {
    let bytes = try process.read()
    if bytes.isEmpty { return nil }
    lastEventAt = .now
    pending += bytes
    var events: [WorkerEvent] = []
    while let end = pending.firstIndex(of: UInt8(ascii: "\n")) {
      if let event = WorkerEvent(line: pending[..<end]) { events.append(event) }
      pending.removeSubrange(...end)
    }
    return events
  }

  /// The seconds since the last call, or since its start.
  func lap() -> Double {
    let now = ContinuousClock.now
    defer { lapStart = now }
    return (now - lapStart).seconds
  }

  func kill() { process.killAll() }

  func wait() throws -> ChildProcess.End { try process.wait() }

  /// Why a worker ended that did not say so itself.
  func diagnosis(of end: ChildProcess.End) -> JobFailure {
    do { try source.files.check(in: source.directory, symlinks: .refuse) } catch {
      return JobFailure(error)
    }
    switch end {
    case .exited(let status):
      return JobFailure(.broken, "the worker ended with status \(status) and no word", code: 70)
    case .killed(let signal):
      let guess =
        signal == 9
        ? "the kernel may have run out of memory (dmesg tells); set 'memory' lower, or 'threads'"
        : "the log holds its last words"
      return JobFailure(.broken, "the worker was ended by signal \(signal); \(guess)", code: 70)
    }
  }
}
