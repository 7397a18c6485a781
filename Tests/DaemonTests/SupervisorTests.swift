import Calibration
import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// The daemon's loop, with scripts in the worker's place. One at a time: signals are the whole process's.
@Suite(.serialized) struct SupervisorTests {
  let fixture: LedgerFixture
  let patience: Supervisor.Patience

  init() throws {
    fixture = try LedgerFixture()
    try fixture.directory.write("none that anybody reads", to: "tokens.safetensors")
    var patience = Supervisor.Patience()
    (patience.pause, patience.restart, patience.silence) = (
      .milliseconds(20), .milliseconds(5), .milliseconds(300)
    )
    self.patience = patience
  }

  var configuration: DaemonConfiguration {
    var configuration = DaemonConfiguration()
    configuration.spool = fixture.spool.root
    configuration.stateDirectory = fixture.stateDirectory
    configuration.cacheDirectory = fixture.cacheDirectory
    (configuration.attempts, configuration.scanSeconds, configuration.threads) = (2, 1, 1)
    configuration.defaults.calibration = CalibrationSources([
      .init(path: fixture.directory.file("tokens.safetensors"))
    ])
    configuration.hooks = fixture.directory.file("hooks")
    return configuration
  }

  /// A supervisor whose workers run a script for `sh`. `$files` in it is the job's directory.
  func supervisor(
    worker script: String, configuration: DaemonConfiguration? = nil,
    readConfiguration: (() throws -> DaemonConfiguration)? = nil
  ) throws -> Supervisor {
    let path = fixture.directory.file("worker")
    try AtomicFile.write("#!/bin/sh\nfiles=$(dirname \"$2\")\n\(script)\n", to: path)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
    let configuration = configuration ?? self.configuration
    return try Supervisor(
      configuration: configuration, readConfiguration: readConfiguration ?? { configuration },
      log: Log(least: .critical),
      notifier: ServiceNotifier(environment: ProcessEnvironment(value: { _ in nil }, remove: { _ in })),
      patience: patience, program: path, environment: ["PATH": "/usr/bin:/bin"])
  }

  /// A script that says what a worker would say.
  func saying(_ events: WorkerEvent...) throws -> String {
    let name = "events-\(events.count)-\(UInt32.random(in: 0...UInt32.max))"
    return "cat \(try fixture.directory.write(events.flatMap { $0.line() }, to: name))"
  }

  /// A process takes a signal in one place for good.
  static let signals = Result { try SignalQueue([SIGUSR2, SIGHUP]) }

  /// Runs the loop until `isOver`, which is asked once in every round.
  func run(_ supervisor: Supervisor, until isOver: (StatusSnapshot) -> Bool) throws {
    let signals = try Self.signals.get()
    let deadline = ContinuousClock.now + .seconds(20)
    var isStopped = false
    try supervisor.run(signals: signals) { snapshot in
      let isLate = ContinuousClock.now > deadline
      guard !isStopped, isLate || isOver(snapshot) else { return }
      if isLate { Issue.record("not over in time: \(snapshot)") }
      isStopped = true
      signalThisThread(SIGUSR2)
    }
  }

  /// Sends a signal to a thread that takes it, as libraries start them before the queue is made.
  func signalThisThread(_ number: Int32) {
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    unsafe sigaddset(&signals, number)
    unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
    pthread_kill(pthread_self(), number)
  }

  static let id = LedgerFixture.id
  static let finished = WorkerEvent.finished(.init(meanRelativeError: 0.25, bitsPerWeight: 4))

  @Test func `a worker's result is published`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(
      worker: """
        mkdir -p "$files/result"; echo result > "$files/result/model.safetensors"
        \(saying(.step("x"), .linear(.init(name: "a", layer: 0, relativeError: 0.5), secondsRemaining: 1), Self.finished))
        """)
    try run(supervisor) { !$0.finished.isEmpty }
    #expect(supervisor.ledger.job(Self.id)?.phase == .published)
    #expect(supervisor.ledger.counters == .init(published: 1, linearsQuantized: 1))
    #expect(try fixture.output() == "result\n")
  }

  @Test func `what looks wrong and stops nothing is shown, once each`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(
      worker: """
        mkdir -p "$files/result"; echo result > "$files/result/model.safetensors"
        \(saying(.warning("zeros"), .warning("damage"), .warning("zeros"), Self.finished))
        """)
    try run(supervisor) { !$0.finished.isEmpty }
    let snapshot = StatusSnapshot(
      jobs: supervisor.ledger.jobs, counters: .init(), drops: [], service: .running, spool: fixture.spool,
      cacheDirectory: fixture.cacheDirectory)
    #expect(snapshot.finished.first?.warnings == ["zeros", "damage"])
    #expect(StatusPage(snapshot).html.contains("<li>damage</li>"))
  }

  @Test func `a job that breaks its worker is given up, and then the daemon rests`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(worker: "exit 3")
    var rounds = 0
    var overSince: ContinuousClock.Instant?
    try run(supervisor) { snapshot in
      guard !snapshot.finished.isEmpty else { return false }
      rounds += 1
      let start = overSince ?? .now
      overSince = start
      return ContinuousClock.now - start > .milliseconds(1_200)
    }
    #expect(rounds < 10, "\(rounds) rounds in a little more than a second")
    let failure = try #require(supervisor.ledger.job(Self.id)?.failure)
    #expect(failure.message == "given up after 2 attempts: the worker ended with status 3 and no word")
    #expect(supervisor.ledger.counters == .init(failed: 1, workerRestarts: 1))
  }

  @Test func `a worker that says nothing is ended`() throws {
    try fixture.makeSource()
    var configuration = configuration
    configuration.attempts = 1
    let supervisor = try supervisor(worker: "exec sleep 60", configuration: configuration)
    try run(supervisor) { !$0.finished.isEmpty }
    #expect(supervisor.ledger.job(Self.id)?.failure?.message.contains("signal 9") == true)
  }

  @Test func `what the machine lacks is waited for and counts as no attempt`() throws {
    try fixture.makeSource()
    let blocked = try saying(.failed(JobFailure(.blocked, "no python3", code: 69)))
    let supervisor = try supervisor(
      worker: """
        echo >> "$files/tries"
        if [ $(wc -l < "$files/tries") -lt 5 ]; then \(blocked); exit 69; fi
        mkdir -p "$files/result"
        \(saying(Self.finished))
        """)
    var reasons: Set<String> = []
    try run(supervisor) { snapshot in
      if let reason = snapshot.current?.pausedBecause {
        reasons.insert(reason)
        // The cache's directory is still to be made.
        #expect(snapshot.cacheBytes == 0 && snapshot.cacheFreeBytes ?? 0 > 0)
        #expect(
          snapshot.queue.isEmpty
            && snapshot.stateText.hasPrefix("\(LedgerFixture.name) waits: \(reason), tried again at "))
      }
      return !snapshot.finished.isEmpty
    }
    #expect(reasons == ["no python3"])
    let job = try #require(supervisor.ledger.job(Self.id))
    #expect(job.phase == .published && job.attempts == 1 && job.pausedBecause == nil)
  }

  @Test func `a job whose result stands under its name already is published as it stands`() throws {
    try fixture.makeOutput("result")
    try fixture.makeSource()
    let output = fixture.spool.output + "/" + LedgerFixture.name
    let supervisor = try supervisor(
      worker: saying(.identity("d"), .reused(job: "twin", output: output), Self.finished))
    try run(supervisor) { !$0.finished.isEmpty }
    let job = try #require(supervisor.ledger.job(Self.id))
    #expect(job.phase == .published && job.madeBy == "twin" && job.output == output)
    #expect(supervisor.ledger.counters == .init(published: 1))
    #expect(try FileSystem.names(in: fixture.spool.output) == [".partial", LedgerFixture.name])
  }

  @Test func `what an attempt found that broke down binds the next one to nothing`() throws {
    try fixture.makeSource()
    let output = fixture.spool.output + "/elsewhere"
    let supervisor = try supervisor(
      worker: """
        if [ ! -e "$files/tried" ]; then touch "$files/tried"; \(saying(.reused(job: "twin", output: output))); exit 1; fi
        mkdir -p "$files/result"; \(saying(.identity("d"), Self.finished))
        """)
    try run(supervisor) { !$0.finished.isEmpty }
    let job = try #require(supervisor.ledger.job(Self.id))
    #expect(job.output == fixture.spool.output + "/" + LedgerFixture.name && job.madeBy == nil)
  }

  @Test func `linears of an earlier try are not counted with those of the next`() throws {
    let linears = (0..<5).map { WorkerEvent.Linear(name: "l\($0)", layer: 0, relativeError: 0.5) }
    var job = LedgerFixture.job(.queued)
    job.linears = linears
    try fixture.save(job)
    try fixture.makeSource()
    let plan = WorkerEvent.Plan(architecture: "llama", layerCount: 1, linearCount: 5, memoryBytes: 1)
    let supervisor = try supervisor(
      worker: saying(
        .planned(plan), .linear(linears[0], secondsRemaining: 1), .failed(JobFailure(.job, "bad", code: 65)))
        + "; sleep 0.2")
    var counts: [Int] = []
    try run(supervisor) { snapshot in
      if let current = snapshot.current { counts.append(current.linearsDone) }
      return !snapshot.finished.isEmpty
    }
    #expect(counts.last == 1)
  }

  @Test func `linears that the journal has are counted`() throws {
    let linears = (0..<5).map { WorkerEvent.Linear(name: "l\($0)", layer: 0, relativeError: 0.5) }
    try fixture.makeSource()
    let plan = WorkerEvent.Plan(architecture: "llama", layerCount: 1, linearCount: 5, memoryBytes: 1)
    let supervisor = try supervisor(
      worker: saying(
        .planned(plan), .resumed(Array(linears[..<4])), .linear(linears[4], secondsRemaining: 0),
        .failed(JobFailure(.job, "bad", code: 65))) + "; sleep 0.2")
    var (counts, texts): ([Int], [String]) = ([], [])
    try run(supervisor) { snapshot in
      if let current = snapshot.current {
        counts.append(current.linearsDone)
        texts.append(snapshot.stateText)
      }
      return !snapshot.finished.isEmpty
    }
    #expect(counts.last == 5)
    #expect(texts.last == "\(LedgerFixture.name) layer 1/1 l4 · error 50.0 % · 0 s left")
    #expect(supervisor.ledger.counters.linearsQuantized == 1)
  }

  @Test func `the cache is given up when workers break down on it`() throws {
    try fixture.makeSource()
    try fixture.makeCache()
    var configuration = configuration
    configuration.attempts = 3
    let cache = fixture.cacheDirectory
    let supervisor = try supervisor(
      worker: "ls \(cache) | wc -l >> \(fixture.directory.file("seen")); exit 9", configuration: configuration
    )
    try run(supervisor) { !$0.finished.isEmpty }
    #expect(try fixture.text(fixture.directory.file("seen")) == "2\n2\n0\n")
  }

  @Test func `cancel ends the worker, and the next job begins`() throws {
    try fixture.makeSource()
    try fixture.makeSource("20261123T231503Z-00a7-second")
    let supervisor = try supervisor(
      worker: """
        case "$2" in *second*) mkdir "$files/result"; \(saying(Self.finished));; *) exec sleep 60;; esac
        """)
    var isAsked = false
    try run(supervisor) { snapshot in
      if snapshot.current?.id == Self.id, !isAsked {
        isAsked = (try? JobRequest(.cancel, job: Self.id).leave(in: fixture.spool)) != nil
      }
      return snapshot.finished.count == 2
    }
    #expect(supervisor.ledger.jobs.map(\.phase) == [.cancelled, .published])
    #expect(try JobRequest.all(in: fixture.spool) == [])
    #expect(try FileSystem.names(in: fixture.spool.failed) == [Self.id])
  }

  @Test func `what a worker has started ends with it`() throws {
    try fixture.makeSource()
    let helper = fixture.directory.file("helper")
    let supervisor = try supervisor(
      worker: "sleep 600 & echo $! > \(helper).draft; mv \(helper).draft \(helper); wait")
    try run(supervisor) { _ in (try? FileSystem.exists(helper)) == true }
    let process = try fixture.text(helper).trimmingCharacters(in: .whitespacesAndNewlines)
    // The kernel takes its moment, and it may be a zombie then, of whoever takes orphans.
    let deadline = ContinuousClock.now + .seconds(20)
    var state: Character?
    repeat {
      state = try? fixture.text("/proc/\(process)/stat").components(separatedBy: ") ")[1].first
    } while state != nil && state != "Z" && ContinuousClock.now < deadline
    #expect(state == nil || state == "Z")
  }

  @Test func `a drop folder that is removed is made anew`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(
      worker: "rm -r \(fixture.spool.incoming); mkdir \"$files/result\"; \(saying(Self.finished))")
    try run(supervisor) { snapshot in
      !snapshot.finished.isEmpty && (try? FileSystem.exists(self.fixture.spool.incoming)) == true
    }
    #expect(try FileSystem.exists(fixture.spool.incoming))
  }

  @Test func `an end that was asked for is no attempt`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(worker: "exec sleep 60")
    try run(supervisor) { $0.current != nil }
    let job = try #require(supervisor.ledger.job(Self.id))
    #expect(job.phase == .queued && job.attempts == 0)
  }

  @Test func `a configuration that is read anew moves no directory, and a broken one changes nothing`() throws
  {
    var (news, isBroken, reads) = (configuration, false, 0)
    news.settleSeconds = 7
    news.cacheDirectory = "/elsewhere"
    let supervisor = try supervisor(
      worker: "exit 1",
      readConfiguration: {
        reads += 1
        if isBroken { throw ConfigurationError(.builtIn, key: "bits", problem: "no", mend: "yes") }
        return news
      })
    var isAsked = (first: false, second: false)
    try run(supervisor) { _ in
      if !isAsked.first {
        isAsked.first = true
        signalThisThread(SIGHUP)
      } else if reads == 1, !isAsked.second {
        #expect(supervisor.configuration.settleSeconds == 7)
        #expect(supervisor.configuration.cacheDirectory == fixture.cacheDirectory)
        (news.settleSeconds, isBroken, isAsked.second) = (9, true, true)
        signalThisThread(SIGHUP)
      }
      return reads == 2
    }
    #expect(supervisor.configuration.settleSeconds == 7)
  }
}
