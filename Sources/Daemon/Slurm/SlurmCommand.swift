import FoundationEssentials
import SystemIO

/// A command of Slurm's that is at work: it may wait for a controller that does not answer, and nothing here waits for it.
final class SlurmCommand {
  enum Outcome: Equatable {
    case succeeded(String)
    /// Why, in words, and all that it said.
    case failed(String, output: String)
  }

  private let process: ChildProcess
  private let name: String
  private let deadline: ContinuousClock.Instant
  private var output: [UInt8] = []
  private var isOverdue = false

  /// Starts a program of the path.
  /// - Parameter limit: after which it is ended
  /// - Throws: ``FileError``
  init(
    _ program: String, _ arguments: [String], environment: [String: String], limit: Duration
  ) throws(FileError) {
    name = program.contains("/") ? arguments.first ?? program : program
    deadline = .now + limit
    process = try ChildProcess(
      Self.path(of: program, environment), arguments: arguments, environment: environment, isAlone: true,
      readsErrors: true)
  }

  var descriptor: Int32 { process.descriptor }

  /// Ends it, and whatever it has started.
  func kill() { process.killAll() }

  /// Takes what there is of its output.
  /// - Parameter isReadable: whether there is some, or its end
  /// - Returns: nil while it goes on
  func advance(isReadable: Bool) throws -> Outcome? {
    if isReadable {
      let bytes = try process.read()
      output += bytes
      if bytes.isEmpty {
        let end = try process.wait()
        let text = String(decoding: output, as: UTF8.self)
        if end == .exited(status: 0), !isOverdue { return .succeeded(text) }
        return .failed(
          isOverdue ? "\(name) had no answer in time" : Self.reason(text) ?? "\(name) failed", output: text)
      }
    }
    if !isOverdue, ContinuousClock.now > deadline {
      isOverdue = true
      process.killAll()
    }
    return nil
  }

  /// Until it is to be looked at, whether or not it says anything: what hangs in a file system cannot be ended.
  var timeLeft: Duration { isOverdue ? .seconds(1) : deadline - .now }

  /// What one of Slurm's programs says of its failure: the last line, without the program's name in front of it.
  static func reason(_ text: String) -> String? {
    text.split(separator: "\n").last.map {
      $0.split(separator: "error: ").last.map(String.init) ?? String($0)
    }
  }

  /// The first of that name on the path; the name alone where there is none.
  static func path(of program: String, _ environment: [String: String]) -> String {
    if program.contains("/") { return program }
    let directories = (environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin").split(separator: ":")
    return directories.map { FileSystem.join(String($0), program) }
      .first { (try? FileSystem.exists($0)) ?? false } ?? program
  }

  /// What is said of a program that could not be started.
  static func absence(of program: String, _ error: FileError) -> String {
    error.errno == .noSuchFileOrDirectory
      ? "\(program) is not there: Slurm's programs have to be installed on this host (Debian: slurm-client), and on the PATH"
      : "\(error)"
  }

  /// A shell's variables may be options that nobody sees, and a daemon's own job would be its jobs'.
  static func environment(_ own: [String: String]) -> [String: String] {
    own.filter { name, _ in
      name == "SLURM_CONF" || !["SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_"].contains { name.hasPrefix($0) }
    }
  }
}
