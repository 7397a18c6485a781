import SystemIO

/// What a person asks of a job: a file in the spool's `.requests/`, which the daemon takes away when it is done.
/// Without a daemon, whoever asks takes the spool's lock and does it.
public struct JobRequest: Sendable, Equatable {
  public enum Action: String, Sendable, CaseIterable {
    case cancel, retry
  }

  public let action: Action
  public let job: String

  public init(_ action: Action, job: String) {
    self.action = action
    self.job = job
  }

  /// `cancel.<job>`
  init?(fileName: String) {
    guard let dot = fileName.firstIndex(of: "."), let action = Action(rawValue: String(fileName[..<dot]))
    else { return nil }
    self.init(action, job: String(fileName[fileName.index(after: dot)...]))
  }

  var fileName: String { "\(action.rawValue).\(job)" }

  func path(in spool: Spool) -> String { FileSystem.join(spool.requests, fileName) }

  /// Leaves the request for the daemon.
  public func leave(in spool: Spool) throws(FileError) {
    try AtomicFile.write("", to: path(in: spool))
  }

  /// Whether the daemon has taken the request away.
  public func isDone(in spool: Spool) throws(FileError) -> Bool { try !FileSystem.exists(path(in: spool)) }

  static func all(in spool: Spool) throws(FileError) -> [JobRequest] {
    try FileSystem.names(in: spool.requests).compactMap { JobRequest(fileName: $0) }
  }
}

/// Why a request cannot be met.
public enum JobRequestError: Error, Sendable, Equatable, CustomStringConvertible {
  case unknownJob(String)
  case cannotRetry(String, JobRecord.Phase)
  case over(String, JobRecord.Phase)

  public var description: String {
    switch self {
    case .unknownJob(let id): "\(id) is no job; 'quantease status' lists them"
    case .cannotRetry(let id, let phase):
      "\(id) is \(phase.rawValue); only a failed, cancelled or paused job can be tried again"
    case .over(let id, let phase): "\(id) is \(phase.rawValue) already"
    }
  }
}

extension JobLedger {
  /// Does what is asked, for a job that no worker is at.
  public func carryOut(_ request: JobRequest) throws {
    guard let job = job(request.job) else { throw JobRequestError.unknownJob(request.job) }
    switch request.action {
    case .cancel:
      if job.phase.isOver { throw JobRequestError.over(job.id, job.phase) }
      try cancel(job.id)
    case .retry:
      // What waits for the machine to mend is tried now: whoever asks has mended it.
      if job.phase == .queued, job.pausedBecause != nil {
        try update(job.id) { $0.pausedBecause = nil }
        return
      }
      guard job.phase == .failed || job.phase == .cancelled else {
        throw JobRequestError.cannotRetry(job.id, job.phase)
      }
      try retry(job.id)
    }
  }
}
