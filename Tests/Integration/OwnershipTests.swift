import Checkpoint
import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

enum TwoUsers {
  /// nobody
  static let user: UInt32 = 65_534

  /// Whether the program runs as another user: only root can try, and a toolchain in root's home is for root alone.
  static let arePossible: Bool = {
    guard geteuid() == 0, let directory = try? TemporaryDirectory() else { return false }
    let copy = directory.file("quanteased")
    let arguments = ["--reuid", "\(user)", "--regid", "\(user)", "--clear-groups", copy, "--version"]
    do {
      try Quantease.install(DaemonBench.binary, as: copy)
      return try Quantease(arguments, program: "/usr/bin/setpriv").status == 0
    } catch { return false }
  }()
}

/// A daemon that is a user of its own, and drops of root's: what it may read it takes, what it may not it refuses.
///
/// The rows of the table in docs/OPERATIONS.md, without a systemd; tools/live-test has them with one.
@Suite(
  .serialized,
  .enabled(if: TwoUsers.arePossible, "needs root, and a Swift runtime that anybody may read"))
struct OwnershipTests {
  private static let user = TwoUsers.user

  /// Drops the fixture as root, with these modes.
  private func drop(_ bench: DaemonBench, _ name: String, directory: mode_t, files: mode_t) throws {
    try bench.drop(name) { path in
      for file in try FileSystem.names(in: path) { try #require(unsafe chmod("\(path)/\(file)", files) == 0) }
      try #require(unsafe chmod(path, directory) == 0)
    }
  }

  private func source(_ bench: DaemonBench, _ name: String) throws -> String? {
    try bench.snapshot.finished.first { $0.name == name }?.source
  }

  @Test(arguments: [(0o755, 0o644), (0o2755, 0o644), (0o777, 0o644), (0o555, 0o444)] as [(mode_t, mode_t)])
  func `whatever may be read is taken, and its source ends under a name that says so`(
    _ directory: mode_t, _ files: mode_t
  ) throws {
    let bench = try DaemonBench(user: Self.user)
    try bench.start()
    try drop(bench, "tiny", directory: directory, files: files)
    try bench.waitForOutput("tiny")
    #expect(try bench.weights("tiny") == bench.expectedWeights())
    let job = try #require(try bench.snapshot.finished.first)
    // A directory that the daemon may write to can change its parent.
    let place =
      directory & 0o002 != 0 ? "\(bench.spool.done)/\(job.id)" : "\(bench.spool.incoming)/\(job.id).done"
    try bench.wait("the last move") { try source(bench, "tiny") == place }
    #expect(try bench.quantease("why", "tiny").output.contains(place))
    #expect(try FileSystem.names(in: bench.spool.working) == [])
    // It is no drop, and its name is free.
    #expect(try bench.snapshot.queue == [])
    try drop(bench, "tiny", directory: 0o755, files: 0o644)
    try bench.wait("the second") { try bench.snapshot.finished.count == 2 }
    #expect(try bench.stop() == 0)
  }

  @Test(arguments: [(0o755, 0o600), (0o700, 0o644), (0o750, 0o640)] as [(mode_t, mode_t)])
  func `what may not be read is refused once, and taken when the mend was followed`(
    _ directory: mode_t, _ files: mode_t
  ) throws {
    let bench = try DaemonBench(user: Self.user)
    try bench.start()
    try drop(bench, "closed", directory: directory, files: files)
    let words = "refused: the daemon may not read"
    try bench.wait("the refusal") { bench.log.contains(words) }
    let path = "\(bench.spool.incoming)/closed"
    let item = try #require(try bench.snapshot.queue.first)
    #expect(item.state == .refused && item.reasons.first?.contains("the daemon may not read") == true)
    let why = try bench.quantease("why", "closed").output
    let mend = try #require(why.split(separator: "\n").last?.split(separator: ";").first)
    #expect(mend.hasPrefix("  mend     chgrp -R nogroup '\(path)' && chmod -R g+rX '\(path)'"), "\(why)")
    try drop(bench, "open", directory: 0o755, files: 0o644)
    try bench.waitForOutput("open")
    #expect(bench.log.components(separatedBy: words).count == 2, "it is said more than once:\n\(bench.log)")

    let command = String(mend.dropFirst("  mend     ".count))
    #expect(try Quantease(["-c", command], program: "/bin/sh").status == 0)
    try bench.waitForOutput("closed")
    #expect(try bench.stop() == 0)
  }

  @Test func `a failed source that cannot be moved has its reason in failed, and is tried again where it is`()
    throws
  {
    let bench = try DaemonBench(user: Self.user)
    try bench.start()
    try bench.drop("bad", recipe: "bits: 7\n") { try #require(unsafe chmod($0, 0o755) == 0) }
    try bench.waitForFailure("bad")
    let job = try #require(try bench.snapshot.finished.first)
    let place = "\(bench.spool.incoming)/\(job.id).failed"
    #expect(try bench.reason(of: "bad")?["source"]?.string == place)
    #expect(try bench.message(of: "bad").contains("\(place)/quantease.yaml"))
    try AtomicFile.write("bits: 4\n", to: "\(place)/quantease.yaml")
    try #require(unsafe chmod("\(place)/quantease.yaml", 0o644) == 0)
    #expect(try bench.quantease("retry", "bad").status == 0)
    try bench.waitForOutput("bad")
    #expect(try bench.weights("bad") == bench.expectedWeights())
    #expect(try FileSystem.names(in: bench.spool.failed) == [])
    #expect(try bench.stop() == 0)
  }

  @Test func `a job whose source stays in the folder goes on after a kill, to the same bytes`() throws {
    let bench = try DaemonBench(samples: 600, user: Self.user)
    try bench.start()
    try drop(bench, "tiny", directory: 0o755, files: 0o644)
    try bench.wait("a linear") { bench.linearsLogged >= 2 }
    try bench.stop(SIGKILL)
    #expect(try FileSystem.names(in: bench.spool.incoming).allSatisfy { $0.hasSuffix(".working") })
    try bench.start()
    try bench.waitForOutput("tiny")
    #expect(bench.log.contains("goes on"))
    #expect(try bench.weights("tiny") == bench.expectedWeights())
    #expect(try bench.stop() == 0)
  }

  @Test func `a source on a read-only mount keeps its name, and is taken once`() throws {
    let bench = try DaemonBench(user: Self.user)
    let original = bench.directory.file("original")
    try FileManager.default.copyItem(atPath: TestFiles.model("llama"), toPath: original)
    try FileSystem.createDirectories("\(bench.spool.incoming)/mounted")
    func shell(_ command: String) throws -> Int32 {
      try Quantease(["-c", command], program: "/bin/sh").status
    }
    let mount = "\(bench.spool.incoming)/mounted"
    // Not in every container.
    guard try shell("mount --bind '\(original)' '\(mount)' && mount -o remount,bind,ro '\(mount)'") == 0
    else { return }
    defer { _ = try? shell("umount -l '\(mount)'") }
    try bench.start()
    try bench.waitForOutput("mounted")
    try bench.wait("the end") { try source(bench, "mounted") == mount }
    try bench.stop()
    try bench.start()
    // Three scans settle a drop, a second apart.
    usleep(4_500_000)
    #expect(try bench.snapshot.queue == [] && bench.snapshot.finished.count == 1)
    #expect(try bench.stop() == 0)
  }

  @Test func `a source that the submitter may not read is an error with its name, and nothing of it stays`()
    throws
  {
    let bench = try DaemonBench(user: Self.user)
    try bench.start()
    let model = bench.directory.file("model")
    try FileManager.default.copyItem(atPath: TestFiles.model("llama"), toPath: model)
    try #require(unsafe chmod(model + "/model.safetensors", 0o600) == 0)
    let client = bench.directory.file("quantease")
    try Quantease.install(Quantease.binary, as: client)
    let member = ["--reuid", "\(Self.user)", "--regid", "\(Self.user)", "--clear-groups", client]
    let run = try Quantease(
      member + ["submit", model, "--config", bench.configuration], program: "/usr/bin/setpriv")
    #expect(
      run.status == 77 && run.errors.contains("\(model)/model.safetensors: Permission denied"),
      "\(run.errors)")
    #expect(try FileSystem.names(in: bench.spool.incoming) == [])
    #expect(try bench.stop() == 0)
  }

  @Test func `who may not drop is told how to be allowed to`() throws {
    let bench = try DaemonBench(user: Self.user)
    try bench.start()
    let model = bench.directory.file("model")
    try FileManager.default.copyItem(atPath: TestFiles.model("llama"), toPath: model)
    let client = bench.directory.file("quantease")
    try Quantease.install(Quantease.binary, as: client)
    let stranger = ["--reuid", "65533", "--regid", "65533", "--clear-groups", client]
    let run = try Quantease(
      stranger + ["submit", model, "--config", bench.configuration], program: "/usr/bin/setpriv")
    #expect(run.status == 77)
    #expect(
      run.errors.contains("you may not write to \(bench.spool.incoming); mend: sudo usermod"), "\(run.errors)"
    )
    #expect(try bench.stop() == 0)
  }
}
