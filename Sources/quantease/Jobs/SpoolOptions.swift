import ArgumentParser
import Daemon
import Foundation
import SystemIO

/// Which daemon a command is about.
struct SpoolOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "The daemon's configuration file. Default: \(DaemonConfiguration.defaultFile).", valueName: "file"),
    completion: .file())
  var config: String?

  @Option(
    help: ArgumentHelp("The drop folder, if it is not the configured one.", valueName: "dir"),
    completion: .directory)
  var spool: String?

  @Option(
    help: ArgumentHelp("The state directory, if it is not the configured one.", valueName: "dir"),
    completion: .directory)
  var state: String?

  /// The options that were given, as a command that is to be about the same daemon needs them; empty without any.
  var asTyped: String {
    [("config", config), ("spool", spool), ("state", state)].compactMap { name, value in
      value.map { " --\(name) '\($0.replacing("'", with: "'\\''"))'" }
    }.joined()
  }

  /// - Parameter settings: keys with values over those of the file
  func configuration(settings: [(key: String, value: String)] = []) throws -> DaemonConfiguration {
    let places = [("spool", spool), ("state", state)].compactMap { key, value in
      value.map { (key: key, value: URL(fileURLWithPath: $0).path) }
    }
    let configuration = try DaemonConfiguration.load(
      file: config, environment: ProcessInfo.processInfo.environment, arguments: settings + places)
    guard try FileSystem.kind(of: configuration.spool) == .directory else {
      throw SpoolError.noSpool(configuration.spool)
    }
    return configuration
  }
}

enum SpoolError: Error, CustomStringConvertible {
  case noSpool(String)
  case unknownJob(String)
  case notTaken(String, String)
  case notDone(String)
  case alreadyThere(String)
  case link(String)
  case mayNotDrop(String, group: String?)
  case problems(String, count: Int)
  case refused(String, String, mend: String)
  case failed(String, String, code: Int32)
  case noDaemon(String)

  var description: String {
    switch self {
    case .noSpool(let path):
      "\(path): there is no drop folder; start quanteased once, or name it with --spool or --config"
    case .unknownJob(let name):
      "\(name) is neither a job nor in the drop folder; 'quantease status' lists them"
    case .notTaken(let name, let path):
      "\(name) is no job yet: 'quantease why \(name)' tells what it waits for; to take it back, remove \(path)"
    case .notDone(let what):
      "the daemon has not taken up the request to \(what) yet; it will, see 'quantease status' and its log"
    case .mayNotDrop(let path, let group):
      "permission denied: you may not write to \(path); mend: sudo usermod --append --groups "
        + "\(group ?? "its-group") \"$USER\", then log in again; or have root submit it"
    case .link(let path):
      "\(path) is a link, which --move would take from its place and not the file: leave --move out"
    case .alreadyThere(let path): "\(path) exists already; give another --name"
    case .refused(let name, let reason, let mend): "\(name) is refused: \(reason); \(mend)"
    case .failed(let job, let message, _): "\(job) came to nothing: \(message)"
    case .noDaemon(let name):
      "quanteased is not running: \(name) waits in the drop folder until it is; start it, and see 'quantease status'"
    case .problems(let path, let count): "\(path): \(count) \(count == 1 ? "problem" : "problems")"
    }
  }

  var exitCode: Int32 {
    switch self {
    case .noSpool, .unknownJob, .notTaken: 66
    case .notDone: 75
    case .alreadyThere, .link: 73
    case .mayNotDrop: 77
    case .problems, .refused: 65
    case .failed(_, _, let code): code
    case .noDaemon: 75
    }
  }
}

/// The exit status of an error of the commands around the daemon, by sysexits(3); nil for others.
func sysexit(ofDaemon error: any Error) -> Int32? {
  switch error {
  case let error as SpoolError: error.exitCode
  case let error as ConfigurationError: error.exitCode
  case let error as FileLockError: error.exitCode
  case is JobRequestError: 65
  case let error as ResumableJobError: error.exitCode
  case let error as JobFailure: error.code
  case let error as SubmissionError: error.exitCode
  case is StateError: 74
  case is MissingSpool: MissingSpool.exitCode
  default: nil
  }
}

/// What a daemon knows, or spool and state tell where none answers.
struct SpoolView {
  let configuration: DaemonConfiguration
  let spool: Spool
  /// In the order of arrival.
  let jobs: [JobRecord]
  let drops: [Drop]
  let snapshot: StatusSnapshot
  /// Whether a daemon has said so.
  let isTold: Bool
  /// What a command of `quantease` needs at its end to be about the same daemon.
  let asTyped: String

  /// - Parameter settings: keys with values over those of the configuration file
  init(_ options: SpoolOptions, settings: [(key: String, value: String)] = []) throws {
    asTyped = options.asTyped
    configuration = try options.configuration(settings: settings)
    spool = Spool(root: configuration.spool)
    if let details = StatusClient.details(of: spool) {
      (jobs, drops, snapshot) = (details.jobs, details.drops, details.snapshot)
      isTold = true
      return
    }
    isTold = false
    let store = try StateStore.reading(directory: configuration.stateDirectory)
    jobs = try store?.jobs().sorted { ($0.arrivedAt, $0.id) < ($1.arrivedAt, $1.id) } ?? []
    let refusals = try store?.refusals() ?? [:]
    drops = DropFolder(spool: spool, settleTime: .seconds(configuration.settleSeconds))
      .scan(now: .now, claims: Spool.claims(of: jobs)).map { $0.knowing(refusals[$0.name]) }
    snapshot = StatusSnapshot(
      jobs: jobs, counters: try store?.counters() ?? StatusSnapshot.Counters(), drops: drops,
      service: try FileLock.isHeld(spool.lock) ? .running : .stopped,
      hold: Supervisor.hold(heldSince: try store?.heldSince(), configuration.schedule), spool: spool,
      cacheDirectory: configuration.cacheDirectory, attempts: configuration.attempts)
  }

  /// A job by its identifier, or the newest of a name.
  func job(_ name: String) -> JobRecord? {
    jobs.first { $0.id == name } ?? jobs.last { $0.name == name }
  }
}
