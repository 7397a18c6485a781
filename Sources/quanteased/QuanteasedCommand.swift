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
    // The commands below it are for itself.
    usage: "quanteased [options]",
    discussion: """
      Drop a checkpoint's directory into SPOOL/incoming; find it quantized in SPOOL/output, or in SPOOL/failed with \
      a reason. 'quantease status' tells how far it is, and so does the status page.

      Settings come from the configuration file, over that from variables QUANTEASED_KEY, over that from the \
      command line. --check-config shows every setting and where it comes from.

      Example, in the foreground and for a try:
        quanteased --spool ~/spool --state ~/spool/state --cache ~/spool/cache \\
          --set calibration=/data/prose.txt
      """,
    version: Producer.version,
    subcommands: [WorkerCommand.self, EnqueueCommand.self, HooksCommand.self])

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
    case is MissingSpool: MissingSpool.exitCode
    default: sysexit(of: error)
    }
  }

  @OptionGroup var options: ConfigurationOptions

  @Option(
    help: ArgumentHelp(
      "Serve the status page and /metrics here, e.g. 127.0.0.1:8188, where no systemd passes a socket.",
      valueName: "address"))
  var listen: String?

  @Flag(help: "Show every setting and where it comes from, and end: 0 if all are possible, 78 if not.")
  var checkConfig = false

  func run() throws {
    let configuration = try options.readConfiguration()
    if checkConfig {
      return try StandardOutput.write(configuration.describe() + "\n")
    }
    // Before any other thread of this program: variables are the whole process's.
    let signals = try SignalQueue([SIGTERM, SIGINT, SIGHUP])
    let passed = try ListenDescriptors.fromEnvironment()
    let log = Log()
    let notifier = ServiceNotifier { log.warning("systemd could not be told: \($0)") }
    let supervisor = try Supervisor(
      configuration: configuration, readConfiguration: options.readConfiguration, log: log,
      notifier: notifier,
      environment: ProcessInfo.processInfo.environment)
    let board = Board()
    var servers: [StatusServer] = []
    defer { for server in servers { server.stop() } }
    let sockets = try sockets(passed, log, configuration)
    try supervisor.run(signals: signals) { snapshot in
      board.show(snapshot, of: supervisor)
      // Whoever asks before there is anything true to say waits for it.
      guard servers.isEmpty else { return }
      for socket in sockets { servers.append(try serve(socket, board, log)) }
    }
  }

  private func serve(
    _ socket: (descriptor: Int32, isLocal: Bool), _ board: Board, _ log: Log
  ) throws -> StatusServer {
    var details: (@Sendable () -> StatusDetails)?
    if socket.isLocal { details = { board.details } }
    return try StatusServer(
      listening: socket.descriptor, onFailure: { log.warning("status page: \($0)") }, details: details,
      snapshot: { board.details.snapshot })
  }

  /// What is listened on: a socket that systemd passes or that was asked for, and the spool's own for the commands.
  private func sockets(
    _ passed: [ListenDescriptors.Named], _ log: Log, _ configuration: DaemonConfiguration
  ) throws -> [(descriptor: Int32, isLocal: Bool)] {
    var sockets: [(descriptor: Int32, isLocal: Bool)] = []
    if let passed = passed.first {
      sockets.append((passed.descriptor, false))
    } else if let listen {
      sockets.append((try StatusServer.listen(on: listen), false))
    }
    if passed.isEmpty, let listen, !StatusServer.isForThisMachine(listen) {
      log.warning(
        "the status page is for everybody who reaches \(listen), without a password",
        .mend("listen on 127.0.0.1, and take an ssh tunnel from elsewhere"))
    }
    do {
      let descriptor = try StatusServer.listen(atPath: Spool(root: configuration.spool).socket)
      sockets.append((descriptor, true))
    } catch {
      // They read the files then, which takes the right to.
      log.warning("'quantease status' cannot ask this daemon: \(error)")
    }
    return sockets
  }
}

/// The newest state, between the daemon's loop and the threads of the status pages.
private final class Board: Sendable {
  private let newest = Mutex<StatusDetails?>(nil)

  func show(_ snapshot: StatusSnapshot, of supervisor: Supervisor) {
    let details = StatusDetails(snapshot: snapshot, jobs: supervisor.jobs, drops: supervisor.drops)
    newest.withLock { $0 = details }
  }

  var details: StatusDetails {
    guard let details = newest.withLock({ $0 }) else { preconditionFailure("shown before anybody can ask") }
    return details
  }
}
