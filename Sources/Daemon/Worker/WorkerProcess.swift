import SystemIO

/// A worker, as the daemon sees it: a process that writes events, and what has come of it so far.
final class WorkerProcess {
  let job: String
  private let process: ChildProcess
  private let sourceStamps: [String: FileStamp]
  private let source: String
  private var pending: [UInt8] = []
  let startedAt = ContinuousClock.now
  /// When it last said anything.
  private(set) var lastEventAt = ContinuousClock.now

  /// Starts this very program as a worker for the job whose order stands at `order`.
  /// - Throws: ``FileError``
  init(job: String, order: String, source: String, program: String, environment: [String: String]) throws {
    self.job = job
    self.source = source
    sourceStamps = try Self.stamps(of: source)
    process = try ChildProcess(program, arguments: ["worker", order], environment: environment)
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

  func kill() { process.kill() }

  func wait() throws -> ChildProcess.End { try process.wait() }

  /// Why a worker ended that did not say so itself.
  func diagnosis(of end: ChildProcess.End) -> JobFailure {
    let stamps = (try? Self.stamps(of: source)) ?? [:]
    for (name, before) in sourceStamps.sorted(by: { $0.key < $1.key }) where stamps[name] != before {
      let change =
        stamps[name].map { "had \(before.byteCount) bytes and now has \($0.byteCount)" } ?? "is gone"
      return JobFailure(
        .job,
        "\(FileSystem.join(source, name)) changed while it was read: it \(change); drop the whole checkpoint again",
        code: 65)
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

  private static func stamps(of directory: String) throws -> [String: FileStamp] {
    var stamps: [String: FileStamp] = [:]
    for name in try FileSystem.names(in: directory) {
      stamps[name] = try FileSystem.stamp(of: FileSystem.join(directory, name)).stamp
    }
    return stamps
  }
}
