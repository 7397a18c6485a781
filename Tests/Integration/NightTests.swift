import Checkpoint
import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

// What operators of a night service do and rely on; with the others of the daemon, one at a time.
extension DaemonTests {
  @Test func `a job is held back and let go, put first, and found in the history`() throws {
    let bench = try DaemonBench()
    #expect(try bench.quantease("pause").status == 66, "there is no spool yet")
    try bench.start()
    #expect(try bench.quantease("pause").output == "quanteased: pause done\n")
    for name in ["one", "two", "bad"] {
      try bench.drop(name, recipe: name == "bad" ? "bits: 7\n" : "bits: \(name == "one" ? 3 : 4)\n")
      try bench.wait("a claim") { try bench.quantease("why", name).output.contains("-\(name) ") }
    }
    let status = try bench.quantease("status")
    #expect(status.output.contains("no job is worked on: held back by 'quantease pause'"), "\(status.output)")
    #expect(try bench.quantease("why", "one").output.contains("waits: held back"))
    #expect(try bench.quantease("first", "two").status == 0)
    #expect(try bench.quantease("status").output.contains("-two  priority 1\n"))
    #expect(try bench.quantease("pause", "one").status == 0)
    // It outlasts the daemon, and can be ended without one.
    try bench.stop()
    #expect(try bench.snapshot.hold != nil)
    #expect(try bench.quantease("resume").output.contains("the daemon is not running"))
    try bench.start()
    try bench.waitForOutput("two")
    #expect(try bench.quantease("why", "one").output.contains("go on    quantease resume "))
    #expect(try bench.quantease("resume", "one").status == 0)
    try bench.waitForOutput("one")
    #expect(try bench.quantease("pause", "one").status == 65)

    func names(_ arguments: String...) throws -> [String] {
      let run = try Quantease(["history", "--config", bench.configuration] + arguments)
      #expect(run.status == 0, "\(run.errors)")
      return run.output.split(separator: "\n").map {
        String($0.split(separator: " ")[2].split(separator: "-")[2])
      }
    }
    #expect(try names() == ["one", "two", "bad"])
    #expect(try names("--outcome", "failed") == ["bad"])
    #expect(try names("--name", "two", "--since", "1h") == ["two"])
    #expect(try names("--since", "0h") == [])
    #expect(try names("--limit", "1") == ["one"])
    let json = try Quantease.json("history", "--outcome", "failed", "--config", bench.configuration)
    #expect(json.array?.first?["failure"]?["code"]?.int == 65)
    #expect(try bench.quantease("history", "--since", "soon").status == 64)

    // Mended where it stands.
    let bad = try #require(try FileSystem.names(in: bench.spool.failed).first)
    try AtomicFile.write("bits: 8\n", to: "\(bench.spool.failed)/\(bad)/quantease.yaml")
    #expect(try bench.quantease("retry", "--all").output == "\(bad): retry done\n")
    try bench.waitForOutput("bad")
    #expect(try bench.quantease("retry").status == 64)
    #expect(try bench.quantease("retry", "one", "--all").status == 64)
    #expect(try bench.quantease("retry", "--all").output.contains("no job has failed"))

    let dry = try bench.quantease("clean", "--keep-done", "1", "--dry-run")
    #expect(
      dry.output.contains("would remove \(bench.spool.done)/")
        && dry.output.hasSuffix("2 sources, \(dry.output.split(separator: ", ").last ?? "")"), "\(dry.output)"
    )
    #expect(try FileSystem.names(in: bench.spool.done).count == 3)
    #expect(try bench.quantease("clean").output.contains("all sources are kept"))
    #expect(try bench.quantease("clean", "--keep-done", "lots").status == 78)
    #expect(try bench.quantease("clean", "--keep-done", "1").status == 0)
    #expect(try FileSystem.names(in: bench.spool.done).count == 1)
    #expect(try bench.stop() == 0)
  }

  @Test func `the daemon keeps what its settings say, tells its programs, and serves other users`() throws {
    let bench = try DaemonBench()
    let hooks = bench.directory.file("hooks")
    try FileSystem.createDirectories(hooks)
    let told = bench.directory.file("told")
    for kind in ["done", "failed", "refused"] {
      let path = "\(hooks)/on-\(kind)"
      try AtomicFile.write(
        "#!/bin/sh\necho $QUANTEASE_EVENT $QUANTEASE_NAME $QUANTEASE_SECONDS >> \(told)\n", to: path)
      try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
    }
    let text = try String(contentsOfFile: bench.configuration, encoding: .utf8)
    try AtomicFile.write("hooks: \(hooks)\nkeep-done: 0\nkeep-failed: 1\n" + text, to: bench.configuration)
    try bench.start()
    try bench.drop("bad", recipe: "bits: 7\n")
    try bench.drop("worse", recipe: "bits: 9\n")
    try bench.drop("good")
    try bench.drop("link") {
      try FileManager.default.createSymbolicLink(atPath: $0 + "/x", withDestinationPath: "/")
    }
    func lines() -> [String] {
      ((try? String(contentsOfFile: told, encoding: .utf8)) ?? "").split(separator: "\n").map(String.init)
    }
    try bench.wait("the programs") { lines().count == 4 }
    #expect(
      Set(lines().map { $0.split(separator: " ").prefix(2).joined(separator: " ") })
        == ["failed bad", "failed worse", "done good", "refused link"])
    try bench.wait("the cleaning") {
      try FileSystem.names(in: bench.spool.done).isEmpty
        && FileSystem.names(in: bench.spool.failed).count == 1
    }
    #expect(try FileSystem.names(in: bench.spool.output).contains("good"))
    // The state is for the daemon's user alone, the answer for all.
    let state = bench.directory.file("state")
    try FileManager.default.setAttributes([.posixPermissions: 0], ofItemAtPath: state)
    #expect(try bench.snapshot.finished.count == 3)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: state)
    #expect(try bench.stop() == 0)
  }

  @Test func `a lost state is told of once, and its jobs are known again`() throws {
    let bench = try DaemonBench()
    try bench.start()
    try bench.drop("good")
    try bench.drop("bad", recipe: "bits: 7\n")
    try bench.waitForOutput("good")
    try bench.waitForFailure("bad")
    try bench.stop()
    try FileSystem.removeTree(bench.directory.file("state"))
    try bench.start()
    #expect(
      bench.log.contains("warning: the state database was not there: 2 jobs that are over are known again"))
    let snapshot = try bench.snapshot
    #expect(Set(snapshot.finished.map(\.name)) == ["good", "bad"] && snapshot.counters.published == 1)
    #expect(snapshot.finished.first { $0.name == "good" }?.meanRelativeError != nil)
    // The same job is not done again.
    try bench.drop("good")
    try bench.wait("the second") { try bench.snapshot.counters.published == 2 }
    #expect(bench.log.contains("the same job has been done") && bench.linearsLogged == 0)
    #expect(try bench.quantease("retry", "bad").status == 0)
    try bench.stop()
    try bench.start()
    #expect(!bench.log.contains("known again"))
    try bench.stop()
  }
}
