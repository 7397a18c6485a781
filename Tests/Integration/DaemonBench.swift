import Checkpoint
import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

/// A daemon of its own: the program that was built with these tests, with a spool in a temporary directory.
final class DaemonBench {
  let directory: TemporaryDirectory
  let spool: Spool
  /// Of the program, and of the commands around it.
  let configuration: String
  private var process: Process?
  private var starts = 0
  /// Whom the daemon runs as; as whoever runs the tests, if nil.
  private let user: UInt32?

  /// - Parameter samples: sequences of 128 tokens; a job of a thousand takes a second or two
  ///   - user: whom the daemon runs as, for which the tests have to run as root
  init(samples: Int = 8, user: UInt32? = nil) throws {
    self.user = user
    directory = try TemporaryDirectory()
    spool = Spool(root: directory.file("spool"))
    configuration = directory.file("quanteased.yaml")
    _ = try directory.write(randomTokens: samples, of: 128, vocabulary: 64, seed: 9)
    try configure("  samples: \(samples)")
  }

  deinit { process?.terminationHandler = nil; if isRunning { signal(SIGKILL) } }

  /// Writes the configuration.
  /// - Parameter defaults: lines of its section
  func configure(_ defaults: String...) throws {
    let text = """
      spool: \(spool.root)
      state: \(directory.file("state"))
      cache: \(directory.file("cache"))
      threads: 2
      settle-seconds: 1
      scan-seconds: 1
      defaults:
        calibration: \(directory.file("tokens.safetensors"))
        sequence-length: 128
      """
    try AtomicFile.write(([text] + defaults).joined(separator: "\n") + "\n", to: configuration)
  }

  // MARK: The process

  static var binary: String {
    get throws { FileSystem.join(FileSystem.parent(of: try Quantease.binary), "quanteased") }
  }

  /// Starts it, and waits until it is ready.
  func start(environment: [String: String] = [:], isAwaited: Bool = true) throws {
    starts += 1
    let log = try Quantease.handle(of: directory.write("", to: "log-\(starts)"))
    let process = Process()
    let program = try user == nil ? Self.binary : ownBinary
    process.executableURL = URL(fileURLWithPath: user == nil ? program : "/usr/bin/setpriv")
    process.arguments =
      user.map { ["--reuid", "\($0)", "--regid", "\($0)", "--clear-groups", program] } ?? []
    process.arguments?.append(contentsOf: ["--config", configuration])
    // OpenBLAS may be told by its environment which processor to compute for: other kernels, other last digits than
    // those of the command that a result is compared with.
    process.environment = ProcessInfo.processInfo.environment.filter { $0.key.hasPrefix("OPENBLAS_") }
      .merging(["PATH": "/usr/bin:/bin"]) { $1 }.merging(environment) { $1 }
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    process.standardError = log
    try process.run()
    self.process = process
    if isAwaited { try wait("ready") { self.log.contains("ready path=") } }
  }

  /// The program where any user may run it, and everything that the daemon needs to be that user's.
  private var ownBinary: String {
    get throws {
      let copy = directory.file("quanteased")
      if try !FileSystem.exists(copy) { try Quantease.install(Self.binary, as: copy) }
      try spool.create()
      for path in [directory.file("state"), directory.file("cache")] {
        try FileSystem.createDirectories(path)
      }
      let places = [
        spool.root, spool.incoming, spool.working, spool.done, spool.failed, spool.output, spool.partial,
        spool.requests, directory.file("state"), directory.file("cache"),
      ]
      for path in places { unsafe try #require(chown(path, user ?? 0, user ?? 0) == 0) }
      return copy
    }
  }

  var isRunning: Bool { process?.isRunning ?? false }

  func signal(_ number: Int32) { if let process { kill(process.processIdentifier, number) } }

  /// Ends it and waits for that.
  @discardableResult
  func stop(_ number: Int32 = SIGTERM) throws -> Int32 {
    let process = try #require(process)
    signal(number)
    process.waitUntilExit()
    return process.terminationStatus
  }

  /// What it has written since it was started last.
  var log: String { (try? String(contentsOfFile: directory.file("log-\(starts)"), encoding: .utf8)) ?? "" }

  /// The linears that it has told of since it was started last.
  var linearsLogged: Int { log.components(separatedBy: "quantized job=").count - 1 }

  func wait(_ what: String, seconds: Double = 30, until isTrue: () throws -> Bool) throws {
    let deadline = ContinuousClock.now + .seconds(seconds)
    while try !isTrue() {
      if ContinuousClock.now > deadline || !isRunning {
        Issue.record("\(what) did not come; log:\n\(log)")
        throw Timeout()
      }
      usleep(10_000)
    }
  }

  struct Timeout: Error {}

  // MARK: Jobs

  /// Puts a copy of a fixture into the drop folder, all at once.
  func drop(
    _ name: String, fixture: String = "llama", recipe: String? = nil,
    _ change: (String) throws -> Void = { _ in }
  ) throws {
    let path = directory.file("upload-\(name)")
    try FileManager.default.copyItem(atPath: TestFiles.model(fixture), toPath: path)
    try FileManager.default.removeItem(atPath: path + "/expected.safetensors")
    if let recipe { try recipe.write(toFile: path + "/quantease.yaml", atomically: true, encoding: .utf8) }
    try change(path)
    try FileSystem.createDirectories(spool.incoming)
    try FileSystem.move(path, to: "\(spool.incoming)/\(name)")
  }

  func waitForOutput(_ name: String) throws {
    try wait("output \(name)") { try snapshot.published.contains(name) }
  }
  func waitForFailure(_ name: String) throws { try wait("failure \(name)") { try reason(of: name) != nil } }

  /// `reason.json` of a failed drop, if it has failed.
  func reason(of name: String) throws -> JSONValue? {
    guard let id = try FileSystem.names(in: spool.failed).first(where: { $0.hasSuffix("-\(name)") }),
      try FileSystem.exists("\(spool.failed)/\(id)/reason.json")
    else { return nil }
    return try JSONValue(contentsOf: "\(spool.failed)/\(id)/reason.json")
  }

  func message(of name: String) throws -> String { try reason(of: name)?["message"]?.string ?? "" }

  /// What `status --json` says.
  var snapshot: StatusSnapshot {
    get throws {
      let run = try quantease("status", "--json")
      try #require(run.status == 0, "\(run.errors)")
      return try StatusSnapshot(json: Array(run.output.utf8))
    }
  }

  func quantease(_ command: String, _ arguments: String...) throws -> Quantease {
    try Quantease([command] + arguments + ["--config", configuration])
  }

  func weights(_ output: String) throws -> Data {
    try Data(contentsOf: URL(fileURLWithPath: "\(spool.output)/\(output)/model.safetensors"))
  }

  /// What the command-line program makes of the same model, in one go.
  func expectedWeights(_ more: String...) throws -> Data {
    let output = directory.file("expected")
    let samples = try #require(
      String(contentsOfFile: configuration, encoding: .utf8).split(separator: "\n").last?.split(
        separator: " "
      ).last)
    let run = try Quantease(
      [
        "quantize", TestFiles.model("llama"), "--output", output, "--calibration",
        directory.file("tokens.safetensors"),
        "--samples", String(samples), "--sequence-length", "128", "--threads", "2",
      ] + more)
    try #require(run.status == 0, "\(run.errors)")
    return try Data(contentsOf: URL(fileURLWithPath: output + "/model.safetensors"))
  }
}

extension StatusSnapshot {
  var published: [String] { finished.filter { $0.outcome == .published }.map(\.name) }
}
