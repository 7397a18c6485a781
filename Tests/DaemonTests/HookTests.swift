import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// Programs that are told of events.
struct HookTests {
  private let fixture: LedgerFixture
  private let hooks: String

  init() throws {
    fixture = try LedgerFixture()
    hooks = fixture.directory.file("hooks")
    try FileSystem.createDirectories(hooks)
  }

  private func put(_ kind: HookEvent.Kind, _ script: String, mode: Int = 0o755) throws {
    let path = "\(hooks)/\(kind.program)"
    try AtomicFile.write("#!/bin/sh\n\(script)\n", to: path)
    try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
  }

  /// Runs them, and gives what is logged.
  private func run(limit: Duration = .seconds(20)) throws -> String {
    let pipe = Pipe()
    try HookRunner(
      spool: fixture.spool, directory: hooks, limit: limit, environment: ["PATH": "/usr/bin:/bin"],
      log: Log(form: .journal, descriptor: pipe.fileHandleForWriting.fileDescriptor)
    ).run()
    try pipe.fileHandleForWriting.close()
    #expect(try FileSystem.names(in: fixture.spool.hookEvents) == [])
    return String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
  }

  @Test func `a program gets the facts, and what it says is logged`() throws {
    try put(.failed, "env | grep ^QUANTEASE_ | sort; echo problem >&2")
    var event = HookEvent(.failed, name: "a \"b\"\nc")
    (event.job, event.reason, event.source, event.seconds) = ("j", "no\0luck", "/s", 61.6)
    try event.leave(in: fixture.spool)
    let log = try run()
    for line in [
      "<6>QUANTEASE_ERROR= hook=on-failed", "<6>QUANTEASE_EVENT=failed", "<6>QUANTEASE_JOB=j",
      "<6>QUANTEASE_MEND= ",
      "<6>QUANTEASE_NAME=a \"b\"", "<6>QUANTEASE_OUTPUT= ", "<6>QUANTEASE_REASON=noluck",
      "<6>QUANTEASE_REPORT= ",
      "<6>QUANTEASE_SECONDS=62", "<6>QUANTEASE_SOURCE=/s", "<6>problem hook=on-failed",
      "<6>told hook=on-failed",
    ] { #expect(log.contains(line), "\(line) is not in:\n\(log)") }
  }

  @Test func `one that fails, is none, hangs or talks without end is logged, and the next ones are told`()
    throws
  {
    try put(.failed, "exit 7")
    try put(.refused, "sleep 600 & sleep 600")
    try put(.paused, "yes")
    try put(.resumed, "exit 0", mode: 0o644)
    try put(.done, "kill -9 $$")
    for kind in HookEvent.Kind.allCases { try HookEvent(kind, name: "m").leave(in: fixture.spool) }
    try AtomicFile.write("no event", to: "\(fixture.spool.hookEvents)/junk")
    let log = try run(limit: .milliseconds(300))
    #expect(log.contains("<4>failed hook=on-failed name=m code=7"))
    #expect(log.contains("<4>ended after 0.3 seconds: it took too long hook=on-refused"))
    #expect(log.contains("<4>ended after 0.3 seconds: it took too long hook=on-paused"))
    #expect(log.contains("<4>was ended by signal 9 hook=on-done"))
    #expect(log.contains("cannot start \(hooks)/on-resumed"))
    #expect(log.components(separatedBy: "<6>y hook").count == 101)
  }

  @Test func `one that closes its output and hangs is ended`() throws {
    try put(.done, "exec >/dev/null 2>&1; sleep 600")
    try HookEvent(.done, name: "m").leave(in: fixture.spool)
    let start = ContinuousClock.now
    let log = try run(limit: .milliseconds(300))
    #expect(log.contains("<4>ended after 0.3 seconds: it took too long hook=on-done"))
    // It sleeps for ten minutes.
    #expect(ContinuousClock.now - start < .seconds(60))
  }

  @Test func `without a program nothing is left, and events that nobody takes do not pile up without end`()
    throws
  {
    for _ in 0..<1_010 { try HookEvent(.done, name: "m").leave(in: fixture.spool) }
    #expect(try FileSystem.names(in: fixture.spool.hookEvents).count == 1_000)
    #expect(try run() == "")
  }
}

// The daemon leaves what its programs are to be told of.
extension SupervisorTests {
  /// Puts programs for all events, each of which writes down what it is told, and runs the loop.
  private func told(
    worker: String, _ change: (inout DaemonConfiguration) -> Void = { _ in },
    until isOver: @escaping (StatusSnapshot) -> Bool
  ) throws -> [String] {
    var configuration = configuration
    change(&configuration)
    try FileSystem.createDirectories(configuration.hooks)
    let record = fixture.directory.file("told")
    for kind in HookEvent.Kind.allCases {
      let path = "\(configuration.hooks)/\(kind.program)"
      try AtomicFile.write("#!/bin/sh\n", to: path)
      try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
    }
    // The script stands in for the program: as a worker, and as what runs the hooks.
    let supervisor = try supervisor(
      worker: """
        if [ "$1" = hooks ]; then
          for event in \(fixture.spool.hookEvents)/*; do cat $event >> \(record); echo >> \(record); rm $event; done
          exit 0
        fi
        \(worker)
        """, configuration: configuration)
    try run(supervisor) { snapshot in
      isOver(snapshot) && ((try? FileSystem.names(in: fixture.spool.hookEvents)) ?? ["?"]).isEmpty
    }
    let lines = try fixture.text(record).split(separator: "\n")
    return try lines.map { try JSONDecoder().decode(HookEvent.self, from: Data($0.utf8)) }.map {
      "\($0.kind.program) \($0.name)\($0.reason.map { ": \($0)" } ?? "")"
    }
  }

  @Test func `a pause, its end and the result are told, each once`() throws {
    try fixture.makeSource()
    let blocked = try saying(.failed(JobFailure(.blocked, "1 too few", code: 69)))
    let more = try saying(.failed(JobFailure(.blocked, "2 too few", code: 69)))
    let events = try told(
      worker: """
        echo >> "$files/tries"
        case $(wc -l < "$files/tries") in 1) \(blocked); exit 69;; 2 | 3) \(more); exit 69;; esac
        mkdir -p "$files/result"
        \(saying(.linear(.init(name: "a", layer: 0, relativeError: 0.5), secondsRemaining: 1), Self.finished))
        """
    ) { !$0.finished.isEmpty }
    #expect(
      events == [
        "on-paused \(LedgerFixture.name): 1 too few", "on-resumed \(LedgerFixture.name)",
        "on-done \(LedgerFixture.name)",
      ])
  }

  /// A daemon that ended before it told, by the row that says so.
  @Test func `what was published as a daemon ended is told by the next`() throws {
    try fixture.makeSource()
    try fixture.makeCheckpoint()
    var job = LedgerFixture.job(.publishing)
    job.output = FileSystem.join(fixture.spool.output, LedgerFixture.name)
    try fixture.save(job)
    #expect(try told(worker: "exit 1") { !$0.finished.isEmpty } == ["on-done \(LedgerFixture.name)"])
  }

  @Test func `a program that does not end holds nothing up`() throws {
    let second = "20261123T231503Z-00a7-second"
    for id in [Self.id, second] { try fixture.makeSource(id) }
    try FileSystem.createDirectories(configuration.hooks)
    try AtomicFile.write("", to: "\(configuration.hooks)/on-failed")
    let supervisor = try supervisor(
      worker: """
        if [ "$1" = hooks ]; then exec sleep 60; fi
        case "$2" in *second*) mkdir "$files/result"; \(saying(Self.finished));; *) \(saying(.failed(JobFailure(.job, "bad", code: 65))));; esac
        """)
    try run(supervisor) { $0.finished.count == 2 }
    #expect(supervisor.ledger.jobs.map(\.phase) == [.failed, .published])
    supervisor.hookRunner?.kill()
  }

  @Test func `a failure and a refusal are told`() throws {
    try fixture.makeSource()
    try FileManager.default.createSymbolicLink(
      atPath: fixture.spool.incoming + "/link", withDestinationPath: "/etc")
    let events = try told(worker: saying(.failed(JobFailure(.job, "bad", code: 65)))) {
      !$0.finished.isEmpty && $0.queueLength(.refused) == 1
    }
    #expect(
      Set(events) == [
        "on-failed \(LedgerFixture.name): bad",
        "on-refused link: link is a symbolic link, which may lead anywhere",
      ])
  }
}
