import FoundationEssentials
import SystemIO

/// What a person asks of a job, or of the whole daemon: a file in the spool's `.requests/`, which the daemon takes away
/// when it is done. Without a daemon, whoever asks takes the spool's lock and does it.
public struct JobRequest: Sendable, Equatable {
  public enum Action: String, Sendable, CaseIterable {
    case cancel, retry
    /// Holds a job back, or all of them, and lets it go on.
    case pause, resume
    /// Puts a job before all others.
    case first
  }

  public let action: Action
  /// Nil is the whole daemon, which can be paused and resumed.
  public let job: String?

  public init(_ action: Action, job: String?) {
    precondition(job != nil || action == .pause || action == .resume, "\(action) is about one job")
    self.action = action
    self.job = job
  }

  /// `cancel.<job>`; without a job, the action and a dot
  init?(fileName: String) {
    guard let dot = fileName.firstIndex(of: "."), let action = Action(rawValue: String(fileName[..<dot]))
    else { return nil }
    let job = fileName[fileName.index(after: dot)...]
    guard !job.isEmpty || action == .pause || action == .resume else { return nil }
    self.init(action, job: job.isEmpty ? nil : String(job))
  }

  var fileName: String { "\(action.rawValue).\(job ?? "")" }

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
  case sourceGone(String)

  public var description: String {
    switch self {
    case .unknownJob(let id): "\(id) is no job; 'quantease status' lists them"
    case .cannotRetry(let id, let phase):
      "\(id) is \(phase.rawValue); only a failed, cancelled or paused job can be tried again"
    case .over(let id, let phase): "\(id) is \(phase.rawValue) already"
    case .sourceGone(let id):
      "the checkpoint of \(id) is not in the spool any more; drop it again"
    }
  }
}

extension JobRequest {
  /// Refuses what makes no sense for the job as it stands.
  /// - Throws: ``JobRequestError``
  public func check(_ job: JobRecord) throws(JobRequestError) {
    switch action {
    case .retry:
      guard job.phase == .failed || job.phase == .cancelled || job.pausedBecause != nil else {
        throw .cannotRetry(job.id, job.phase)
      }
    case .cancel, .pause, .resume, .first: if job.phase.isOver { throw .over(job.id, job.phase) }
    }
  }
}

extension JobLedger {
  /// Does what is asked, for a job that no worker is at.
  public func carryOut(_ request: JobRequest) throws {
    guard let id = request.job else { return try hold(request.action == .pause) }
    guard let job = job(id) else { throw JobRequestError.unknownJob(id) }
    try request.check(job)
    switch request.action {
    case .cancel: try cancel(id)
    case .pause: try update(id) { $0.heldSince = $0.heldSince ?? Date().timeIntervalSince1970 }
    case .resume: try update(id) { $0.heldSince = nil }
    case .first:
      let highest = jobs.filter { !$0.phase.isOver && $0.id != id }.map { $0.priority ?? 0 }.max() ?? 0
      try update(id) { $0.priority = highest + 1 }
    case .retry where job.phase == .queued:
      // What waits for the machine to mend is tried now: whoever asks has mended it.
      try update(id) { ($0.pausedBecause, $0.retryAt, $0.shortage) = (nil, nil, nil) }
    case .retry where job.isWithSlurm:
      // What has come of it counts.
      try update(id) { job in
        job.phase = .queued
        job.slurm?.isUnwanted = true
        (job.pausedBecause, job.retryAt, job.shortage) = (nil, nil, nil)
      }
    case .retry:
      guard try spool.source(of: job) != nil else { throw JobRequestError.sourceGone(id) }
      try retry(id)
    }
  }
}
