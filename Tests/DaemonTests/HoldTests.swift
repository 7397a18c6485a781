import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

// Times at which no job is worked on, and the order of jobs.
extension SupervisorTests {
  private func ask(_ action: JobRequest.Action, _ job: String? = nil) throws {
    try JobRequest(action, job: job).leave(in: fixture.spool)
  }

  private static let second = "20261123T231503Z-00a7-second"
  private static let third = "20261123T231504Z-00a7-third"

  /// It says something all the time, or it would be taken for one that hangs.
  private static let endless = "while :; do echo; sleep 0.05; done"

  /// Does a job at once, but for the first one's first try, which has no end.
  private func waitingOnce() throws -> String {
    """
    case "$2" in *\(LedgerFixture.name)*) if [ ! -e "$files/tried" ]; then touch "$files/tried"; \(Self.endless); fi;; esac
    mkdir "$files/result"; \(try saying(Self.finished))
    """
  }

  @Test(arguments: [nil, LedgerFixture.id])
  func `a pause ends the worker and counts as no attempt, and what is held goes on when it may`(job: String?)
    throws
  {
    try fixture.makeSource()
    let supervisor = try supervisor(worker: waitingOnce())
    var (asked, texts) = (0, Set<String>())
    try run(supervisor) { snapshot in
      if asked == 0, supervisor.worker != nil,
        (try? FileSystem.exists("\(fixture.spool.partial)/\(Self.id)/tried")) == true
      {
        try? ask(.pause, job)
        asked = 1
      } else if asked == 1, supervisor.worker == nil {
        let paused = snapshot.current?.pausedBecause ?? snapshot.queue.first?.reasons.first
        texts.insert(paused ?? "nothing")
        #expect(supervisor.ledger.job(Self.id)?.attempts == 0)
        try? ask(.resume, job)
        asked = 2
      }
      return !snapshot.finished.isEmpty
    }
    #expect(texts == ["held back by 'quantease pause'; 'quantease resume' lets it go on"])
    #expect(supervisor.ledger.job(Self.id)?.phase == .published)
  }

  @Test func `a job that is held lets others pass`() throws {
    for id in [Self.id, Self.second] { try fixture.makeSource(id) }
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      try ledger.carryOut(JobRequest(.pause, job: Self.id))
    }
    let supervisor = try supervisor(worker: "mkdir \"$files/result\"; \(saying(Self.finished))")
    try run(supervisor) { !$0.finished.isEmpty }
    #expect(supervisor.ledger.jobs.map(\.phase) == [.queued, .published])
    #expect(supervisor.ledger.job(Self.id)?.isHeld == true)
  }

  @Test func `outside of the schedule nothing is worked on, and a change of it is taken up`() throws {
    try fixture.makeSource()
    // An hour that is not now, whatever the time.
    let minute = Schedule.LocalTime(Date().timeIntervalSince1970).minute
    let hour = (minute / 60 + 12) % 24
    var closed = configuration
    closed.schedule = Schedule([try #require(Schedule.Window("\(hour):00-\(hour):59"))])
    let open = configuration
    let supervisor = try supervisor(
      worker: "mkdir \"$files/result\"; \(saying(Self.finished))", configuration: closed,
      readConfiguration: { open })
    var rounds = 0
    try run(supervisor) { snapshot in
      rounds += 1
      if rounds == 1 {
        #expect(supervisor.worker == nil)
        #expect(snapshot.hold?.reason == "outside of the schedule")
        #expect(try! #require(snapshot.hold?.until) > Date().timeIntervalSince1970)
        #expect(snapshot.stateText.hasPrefix("no job is worked on: outside of the schedule, until "))
        signalThisThread(SIGHUP)
      }
      return !snapshot.finished.isEmpty
    }
    #expect(supervisor.ledger.job(Self.id)?.phase == .published)
  }

  @Test func `a worker is ended when the schedule closes, and the loop rests`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(worker: Self.endless)
    var (rounds, start) = (0, ContinuousClock.Instant?.none)
    try run(supervisor) { snapshot in
      if supervisor.worker != nil { supervisor.configuration.schedule = Self.closed }
      guard snapshot.hold != nil, supervisor.worker == nil else { return false }
      rounds += 1
      start = start ?? .now
      #expect(snapshot.current?.pausedBecause?.hasPrefix("outside of the schedule, until ") == true)
      return ContinuousClock.now - (start ?? .now) > .milliseconds(1_200)
    }
    #expect(rounds < 10, "\(rounds) rounds in a little more than a second")
    #expect(supervisor.ledger.job(Self.id)?.attempts == 0)
  }

  private static var closed: Schedule {
    let hour = (Schedule.LocalTime(Date().timeIntervalSince1970).minute / 60 + 12) % 24
    return Schedule(Schedule.Window("\(hour):00-\(hour):59").map { [$0] } ?? [])
  }

  @Test func `jobs are done by priority, then by arrival, and one can be put first`() throws {
    for id in [Self.id, Self.second, Self.third] { try fixture.makeSource(id) }
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      try ledger.update(Self.second) { $0.priority = 5 }
      #expect(ledger.jobs.inTurn.map(\.id) == [Self.second, Self.id, Self.third])
      try ledger.carryOut(JobRequest(.first, job: Self.third))
      #expect(ledger.jobs.inTurn.map(\.id) == [Self.third, Self.second, Self.id])
    }
    let supervisor = try supervisor(worker: "mkdir \"$files/result\"; \(saying(Self.finished))")
    var order: [String] = []
    try run(supervisor) { snapshot in
      order = snapshot.finished.map(\.id).reversed()
      return order.count == 3
    }
    #expect(order == [Self.third, Self.second, Self.id])
  }

  @Test func `a drop's settings are looked at when it is claimed, while another job is at work`() throws {
    try fixture.makeSource()
    for (name, recipe) in [
      ("wrong", "bitz: 3\n"), ("mute", "calibration: prose.txt\n"), ("early", "priority: 7\n"),
    ] {
      let path = "\(fixture.spool.incoming)/\(name)"
      try FileSystem.createDirectories(path)
      try FileSystem.copyFile(TestFiles.model("llama") + "/config.json", to: "\(path)/config.json")
      try FileSystem.copyFile(
        TestFiles.model("llama") + "/model.safetensors", to: "\(path)/model.safetensors")
      try AtomicFile.write(recipe, to: "\(path)/quantease.yaml")
      try AtomicFile.write("", to: "\(path)/.ready")
    }
    let supervisor = try supervisor(worker: Self.endless)
    try run(supervisor) { $0.finished.count == 2 }
    let jobs = Dictionary(uniqueKeysWithValues: supervisor.ledger.jobs.map { ($0.name, $0) })
    #expect(jobs["wrong"]?.failure?.message.contains("bitz") == true)
    #expect(jobs["mute"]?.failure?.message.contains("prose.txt: the calibration text is not there") == true)
    #expect(jobs["early"]?.phase == .queued && jobs["early"]?.priority == 7)
    let mute = try #require(jobs["mute"])
    let log = try fixture.text("\(fixture.spool.failed)/\(mute.id)/\(JobLog.fileName)")
    #expect(log.contains("Z queued name=mute") && log.contains("Z error: failed: "))
    // Tried again, its log goes on, and stands no longer among the model's files.
    try supervisor.ledger.retry(mute.id)
    #expect(try !FileSystem.names(in: "\(fixture.spool.working)/\(mute.id)").contains(JobLog.fileName))
    #expect(try fixture.text(JobLog(directory: "\(fixture.spool.partial)/\(mute.id)").path) == log)
  }

  @Test func `a state directory that is removed while the daemon runs is made anew`() throws {
    try fixture.makeSource()
    let supervisor = try supervisor(worker: Self.endless)
    var isRemoved = false
    try run(supervisor) { _ in
      if !isRemoved, supervisor.worker != nil {
        try? FileSystem.removeTree(fixture.stateDirectory)
        isRemoved = true
      }
      return isRemoved && (try? FileSystem.exists("\(fixture.stateDirectory)/\(StateStore.fileName)")) == true
    }
    #expect(supervisor.ledger.job(Self.id) != nil)
    #expect(try StateStore.reading(directory: fixture.stateDirectory)?.jobs().map(\.id) == [Self.id])
  }
}
