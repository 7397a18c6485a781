import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// Recovery after every step that a daemon can have ended at.
struct RecoveryTests {
  /// What is there when the daemon starts.
  struct Remains: Sendable, CustomTestStringConvertible {
    let phase: JobRecord.Phase
    let hasSource: Bool
    let hasCheckpoint: Bool
    let hasOutput: Bool

    static let all = [
      JobRecord.Phase.queued, .running, .publishing, .published, .failed, .cancelled,
    ].flatMap { phase in
      (0..<8).map { bits in
        Remains(phase: phase, hasSource: bits & 1 > 0, hasCheckpoint: bits & 2 > 0, hasOutput: bits & 4 > 0)
      }
    }

    var testDescription: String {
      ([phase.rawValue] + (hasSource ? ["source"] : []) + (hasCheckpoint ? ["checkpoint"] : [])
        + (hasOutput ? ["output"] : [])).joined(separator: " + ")
    }

    /// What is right to come of it.
    var outcome: JobRecord.Phase {
      switch phase {
      case .queued, .running: hasSource ? .queued : .failed
      case .publishing: hasCheckpoint || hasOutput ? .published : hasSource ? .queued : .failed
      case .published, .failed, .cancelled: phase
      }
    }
  }

  @Test(arguments: Remains.all)
  func `whatever is there, rows and directories come together`(_ remains: Remains) throws {
    let fixture = try LedgerFixture()
    let (id, spool) = (LedgerFixture.id, fixture.spool)
    var job = LedgerFixture.job(remains.phase)
    if remains.phase == .publishing || remains.phase == .published {
      job.output = FileSystem.join(spool.output, LedgerFixture.name)
    }
    if remains.phase == .failed { job.failure = JobFailure(.job, "bad", code: 65) }
    try fixture.save(job)
    if remains.hasSource { try fixture.makeSource() }
    if remains.hasCheckpoint { try fixture.makeCheckpoint() }
    if remains.hasOutput { try fixture.makeOutput("there before") }
    try fixture.makeCache()

    try fixture.withLedger { ledger throws in
      // What is done last may leave something to the next look; then all is settled.
      _ = try ledger.recover()
      _ = try ledger.recover()
      #expect(try ledger.recover().news == [])
    }
    try fixture.withLedger { ledger throws in
      #expect(try ledger.recover().news == [])
      let job = try #require(ledger.job(id))
      #expect(job.phase == remains.outcome)
      #expect(try FileSystem.names(in: spool.working) == (job.phase == .queued ? [id] : []))
      let isNew = job.phase != remains.phase
      #expect(ledger.counters.published == (isNew && job.phase == .published ? 1 : 0))
      #expect(ledger.counters.failed == (isNew && job.phase == .failed ? 1 : 0))
      switch job.phase {
      case .published:
        #expect(try FileSystem.names(in: spool.done) == (remains.hasSource ? [id] : []))
      case .failed, .cancelled:
        #expect(try FileSystem.names(in: spool.failed) == (remains.hasSource ? [id] : []))
        if remains.hasSource { #expect(try FileSystem.exists("\(spool.failed)/\(id)/reason.json")) }
      default: break
      }
      if job.phase.isOver { #expect(try FileSystem.names(in: spool.partial) == []) }
      if job.phase == .queued && remains.hasCheckpoint {
        #expect(try FileSystem.names(in: spool.partial) == [id])
      }
    }
    // What stood in the output folder is as it was, and a result is there once.
    if remains.hasOutput { #expect(try fixture.output() == "there before") }
    let isPublishedNow = remains.phase == .publishing && remains.hasCheckpoint
    let outputs = try FileSystem.names(in: spool.output).dropFirst()
    #expect(outputs.count == (remains.hasOutput ? 1 : 0) + (isPublishedNow ? 1 : 0))
    if isPublishedNow, let name = outputs.last { #expect(try fixture.output(name) == "result of \(id)") }
  }

  @Test func `what stands in the way of one job holds up no other`() throws {
    let fixture = try LedgerFixture()
    let (first, second) = (LedgerFixture.id, "20261123T231503Z-00a7-second")
    var failed = LedgerFixture.job(.failed)
    failed.failure = JobFailure(.job, "bad", code: 65)
    try fixture.save(failed)
    try fixture.makeSource(first)
    // Where its reason is to stand.
    try FileSystem.createDirectories("\(fixture.spool.working)/\(first)/reason.json/in the way")
    var job = LedgerFixture.job(.publishing, id: second, name: "second")
    job.output = FileSystem.join(fixture.spool.output, "second")
    try fixture.save(job)
    try fixture.makeCheckpoint(second)
    try fixture.withLedger { ledger throws in
      let recovery = try ledger.recover()
      #expect(recovery.faults.count == 1)
      #expect(recovery.news == ["\(second): published"])
      #expect(try fixture.output("second") == "result of \(second)")
      try FileSystem.removeTree("\(fixture.spool.working)/\(first)/reason.json")
      #expect(try ledger.recover().faults.isEmpty)
      #expect(try FileSystem.names(in: fixture.spool.failed) == [first])
    }
  }

  /// An empty spool where the jobs' own is not mounted.
  @Test func `jobs are not lost with a file system that is not there`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeSource()
    try fixture.makeCheckpoint()
    try fixture.withLedger { ledger throws in
      try ledger.enter(LedgerFixture.id, name: LedgerFixture.name, arrivedAt: 1)
      #expect(try ledger.recover().news == [])
    }
    let elsewhere = fixture.directory.file("unmounted")
    try FileSystem.move(fixture.spool.root, to: elsewhere)
    try fixture.spool.create()
    try fixture.withLedger { ledger throws in
      #expect(throws: MissingSpool.self) { try ledger.recover() }
      #expect(ledger.job(LedgerFixture.id)?.phase == .queued)
    }
    try FileSystem.removeTree(fixture.spool.root)
    try FileSystem.move(elsewhere, to: fixture.spool.root)
    try fixture.withLedger { ledger throws in
      #expect(try ledger.recover().news == [])
      #expect(try FileSystem.names(in: fixture.spool.partial) == [LedgerFixture.id])
      // With nothing left to lose, a new spool is as good.
      try ledger.cancel(LedgerFixture.id)
    }
    try FileSystem.removeTree(fixture.spool.root)
    try fixture.spool.create()
    try fixture.withLedger { ledger throws in #expect(try ledger.recover().faults.isEmpty) }
  }

  @Test func `a claim that was not entered is entered`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeSource()
    try fixture.withLedger { ledger throws in
      #expect(try ledger.recover().news.count == 1)
      let job = try #require(ledger.job(LedgerFixture.id))
      #expect(job.name == LedgerFixture.name)
      #expect(job.phase == .queued)
      #expect(try ledger.recover().news == [])
    }
  }

  @Test func `jobs are found again by their directories when the state is lost`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeSource()
    try fixture.makeCheckpoint()
    try fixture.withLedger { try $0.enter(LedgerFixture.id, name: LedgerFixture.name, arrivedAt: 1) }
    let path = FileSystem.join(fixture.stateDirectory, StateStore.fileName)
    try FileSystem.removeTree(path)
    try AtomicFile.write("no database at all", to: path)
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      #expect(ledger.jobs.map(\.name) == [LedgerFixture.name])
      // The worker goes on from there.
      #expect(try FileSystem.names(in: fixture.spool.partial) == [LedgerFixture.id])
    }
  }

  /// Where a daemon that ended may have left the source of a job: where it was dropped, or half moved.
  @Test(arguments: [
    "incoming/my-model-7b", "incoming/\(LedgerFixture.id).working", "working/\(LedgerFixture.id)",
  ])
  func `a claimed source is found wherever it stands`(_ place: String) throws {
    let fixture = try LedgerFixture()
    let spool = fixture.spool
    try fixture.makeSource(
      FileSystem.name(of: place), in: FileSystem.join(spool.root, FileSystem.parent(of: place)))
    let inode = try FileSystem.stamp(of: FileSystem.join(spool.root, place)).stamp.inode
    var job = JobRecord(id: LedgerFixture.id, name: LedgerFixture.name, inode: inode, arrivedAt: 1)
    job.phase = .running
    try fixture.save(job)
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      #expect(try ledger.source(of: job.id) == spool.place(job.id, .working))
      #expect(ledger.job(job.id)?.phase == .queued)
      try fixture.makeCheckpoint(job.id)
      try ledger.publish(job.id, summary: nil)
      #expect(try spool.source(of: job) == spool.place(job.id, .done))
    }
    #expect(try FileSystem.names(in: spool.incoming) == [])
  }

  @Test func `another drop under the name of a job whose source is gone is not its source`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeSource(LedgerFixture.name, in: fixture.spool.incoming)
    let inode = try FileSystem.stamp(of: "\(fixture.spool.incoming)/\(LedgerFixture.name)").stamp.inode
    try fixture.save(
      JobRecord(id: LedgerFixture.id, name: LedgerFixture.name, inode: inode + 1, arrivedAt: 1))
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      #expect(ledger.job(LedgerFixture.id)?.phase == .failed)
    }
    #expect(try FileSystem.names(in: fixture.spool.incoming) == [LedgerFixture.name])
  }

  @Test func `sources that stay in the folder are jobs again when the state is lost`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeSource("\(LedgerFixture.id).working", in: fixture.spool.incoming)
    try fixture.makeSource("20261123T231502Z-00a8-other.done", in: fixture.spool.incoming)
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      #expect(ledger.jobs.map(\.id) == [LedgerFixture.id])
      #expect(ledger.jobs.map(\.name) == [LedgerFixture.name])
    }
  }

  @Test func `what belongs to no job is removed from where jobs are worked on`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeCheckpoint("20261123T231502Z-00a7-gone")
    try fixture.withLedger { ledger throws in
      #expect(try ledger.recover().news.count == 1)
      #expect(try FileSystem.names(in: fixture.spool.partial) == [])
    }
  }

  @Test func `a retry that was cut off leaves a failed job that can be tried again`() throws {
    let fixture = try LedgerFixture()
    var job = LedgerFixture.job(.failed)
    job.failure = JobFailure(.job, "bad", code: 65)
    try fixture.save(job)
    // Moved, and the row not yet changed.
    try fixture.makeSource()
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      #expect(ledger.job(job.id)?.phase == .failed)
      try ledger.carryOut(JobRequest(.retry, job: job.id))
      #expect(try FileSystem.names(in: "\(fixture.spool.working)/\(job.id)") == ["model.safetensors"])
    }
  }

  @Test func `the job that a worker is at is left alone`() throws {
    let fixture = try LedgerFixture()
    try fixture.makeSource()
    try fixture.save(LedgerFixture.job(.running))
    try fixture.withLedger { ledger throws in
      #expect(try ledger.recover(sparing: [LedgerFixture.id]).news == [])
      #expect(ledger.job(LedgerFixture.id)?.phase == .running)
    }
  }

  @Test func `a file among the claimed sources does not keep the daemon from starting`() throws {
    let fixture = try LedgerFixture()
    try AtomicFile.write("x", to: FileSystem.join(fixture.spool.working, "stray"))
    try fixture.withLedger { ledger throws in
      _ = try ledger.recover()
      try ledger.fail("stray", JobFailure(.job, "no directory", code: 65))
      #expect(try ledger.recover().news == [])
    }
    #expect(try FileSystem.names(in: fixture.spool.failed) == ["stray"])
  }
}
