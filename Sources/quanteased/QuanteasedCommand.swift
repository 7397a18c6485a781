import ArgumentParser
import Daemon
import Export
import Foundation
import Pipeline
import ProgramSupport
import Synchronization
import SystemIO

@main
struct QuanteasedCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "quanteased",
    abstract: "Quantizes the checkpoints that are dropped into a folder.",
    discussion: """
      Drop a checkpoint's directory into SPOOL/incoming; find it quantized in SPOOL/output, or in SPOOL/failed with \
      a reason. 'quantease status' tells how far it is, and so does the status page.

      Settings come from the configuration file, over that from variables QUANTEASED_KEY, over that from the \
      command line. --check-config shows every setting and where it comes from.

      Example, in the foreground and for a try:
        quanteased --spool ~/spool --state ~/spool/state --cache ~/spool/cache --set calibration=/data/prose.txt
      """,
    version: Producer.version,
    subcommands: [WorkerCommand.self])

  static func main() {
    runProgram(report: { Log().error($0) }, status: exitStatus)
  }

  /// By sysexits(3); nil for errors of the command line itself.
  private static func exitStatus(of error: any Error) -> Int32? {
    switch error {
    case let error as ConfigurationError: error.exitCode
    case let error as FileLockError: error.exitCode
    case let error as SocketError: error.exitCode
    case is StateError: 74
    default: sysexit(of: error)
    }
  }

  @Option(
    help: ArgumentHelp(
      "The configuration file. Default: \(DaemonConfiguration.defaultFile).", valueName: "file"))
  var config: String?

  @Option(help: ArgumentHelp("The drop folder.", valueName: "dir"))
  var spool: String?

  @Option(help: ArgumentHelp("Where the state of the jobs is kept.", valueName: "dir"))
  var state: String?

  @Option(help: ArgumentHelp("Where activation caches are made.", valueName: "dir"))
  var cache: String?

  @Option(
    name: .customLong("set"),
    help: ArgumentHelp("Any setting of the configuration file; may be repeated.", valueName: "key=value"))
  var settings: [String] = []

  @Option(
    help: ArgumentHelp(
      "Serve the status page and /metrics here, e.g. 127.0.0.1:8188, where no systemd passes a socket.",
      valueName: "address"))
  var listen: String?

  @Flag(help: "Show every setting and where it comes from, and end: 0 if all are possible, 78 if not.")
  var checkConfig = false

  func validate() throws {
    for setting in settings where !setting.contains("=") {
      throw ValidationError("--set \(setting): write KEY=VALUE")
    }
  }

  private func readConfiguration() throws -> DaemonConfiguration {
    var arguments = settings.map { setting in
      let parts = setting.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      return (key: String(parts[0]), value: String(parts[1]))
    }
    for (key, value) in [("spool", spool), ("state", state), ("cache", cache)] {
      if let value { arguments.append((key, URL(fileURLWithPath: value).path)) }
    }
    return try DaemonConfiguration.load(
      file: config, environment: ProcessInfo.processInfo.environment, arguments: arguments)
  }

  func run() throws {
    let configuration = try readConfiguration()
    if checkConfig {
      return try StandardOutput.write(configuration.describe() + "\n")
    }
    // Before any other thread of this program: variables are the whole process's.
    let signals = try SignalQueue([SIGTERM, SIGINT, SIGHUP])
    let passed = try ListenDescriptors.fromEnvironment()
    let log = Log()
    let notifier = ServiceNotifier { log.warning("systemd could not be told: \($0)") }
    let supervisor = try Supervisor(
      configuration: configuration, readConfiguration: readConfiguration, log: log, notifier: notifier,
      environment: ProcessInfo.processInfo.environment)
    let socket = try passed.first?.descriptor ?? listen.map { try StatusServer.listen(on: $0) }
    var page: (board: Board, server: StatusServer)?
    try supervisor.run(signals: signals) { snapshot in
      guard let socket else { return }
      if let page {
        page.board.snapshot = snapshot
      } else {
        // Whoever asks before there is anything true to say waits for it.
        let board = Board(snapshot)
        let server = try StatusServer(
          listening: socket, onFailure: { log.warning("status page: \($0)") }, snapshot: { board.snapshot })
        page = (board, server)
      }
    }
    page?.server.stop()
  }
}

/// The newest snapshot, between the daemon's loop and the status page's thread.
private final class Board: Sendable {
  private let newest: Mutex<StatusSnapshot>

  init(_ snapshot: StatusSnapshot) { newest = Mutex(snapshot) }

  var snapshot: StatusSnapshot {
    get { newest.withLock { $0 } }
    set { newest.withLock { $0 = newValue } }
  }
}
