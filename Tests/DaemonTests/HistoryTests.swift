import Export
import FoundationEssentials
import SystemIO
import Testing

@testable import Daemon

/// A history that is found again in the folders.
struct HistoryTests {
  private let fixture: LedgerFixture

  init() throws { fixture = try LedgerFixture() }

  private func report(job: String?, error: Double = 0.25) throws -> Report {
    var totals = Report.Totals(of: [])
    (totals.meanRelativeError, totals.bitsPerWeight, totals.seconds) = (error, 4.5, 12)
    var report = Report(
      model: .init(name: "m", architecture: "llama"),
      settings: .init(
        bits: 4, groupSize: -1, symmetric: false, solver: "quantease", target: "layer", targetSamples: nil,
        formats: [.dense], calibration: .init(samples: 1, sequenceLength: 2, seed: 0, source: "t")),
      linears: [], totals: totals, loadsIn: [])
    (report.job, report.identity) = (job, "digest of \(job ?? "nobody")")
    return report
  }

  private static func id(_ name: String) -> String { "20261123T231502Z-00a7-\(name)" }

  private func loseState() throws {
    for name in try FileSystem.names(in: fixture.stateDirectory) {
      try FileSystem.removeTree("\(fixture.stateDirectory)/\(name)")
    }
  }

  @Test func `published, failed and cancelled jobs are known again, and can be tried again`() throws {
    let spool = fixture.spool
    for name in ["bad", "dropped", "stays"] { try fixture.makeSource(Self.id(name)) }
    try fixture.withLedger { ledger throws in
      for name in ["bad", "dropped", "stays"] { try ledger.enter(Self.id(name), name: name, arrivedAt: 1) }
      try ledger.fail(
        Self.id("bad"), JobFailure(.broken, "no luck in \(spool.working)/\(Self.id("bad"))", code: 74))
      try ledger.cancel(Self.id("dropped"))
    }
    // Under the next free name, and with its source where it could be moved.
    try fixture.makeSource(Self.id("good"), in: spool.done)
    try fixture.makeOutput("result", named: "good-2")
    try report(job: Self.id("good")).write(to: Report.Place(directory: spool.output + "/good-2"))
    // Of one whose source was removed, one that could not be moved, and one that came to what there was.
    try fixture.makeOutput("result", named: "alone")
    try report(job: Self.id("alone"), error: 0.5).write(to: Report.Place(directory: spool.output + "/alone"))
    try FileSystem.createDirectories("\(spool.incoming)/\(Self.id("kept")).done")
    try fixture.makeOutput("result", named: "by hand")
    try report(job: nil).write(to: Report.Place(directory: spool.output + "/by hand"))
    try fixture.makeOutput("no report", named: "other")
    try loseState()

    try fixture.withLedger { ledger throws in
      #expect(ledger.stateOrigin == .made)
      #expect(try ledger.rebuild() == 5)
      #expect(try ledger.recover().news == ["\(Self.id("stays")): claimed, and not yet entered"])
      #expect(ledger.counters == .init(published: 3, failed: 1))
      let jobs = Dictionary(uniqueKeysWithValues: ledger.jobs.map { ($0.name, $0) })
      #expect(Set(jobs.keys) == ["bad", "dropped", "good", "alone", "kept", "stays"])
      let bad = try #require(jobs["bad"])
      #expect(bad.phase == .failed && bad.failure?.kind == .broken && bad.failure?.code == 74)
      #expect(bad.failure?.message == "no luck in \(spool.failed)/\(Self.id("bad"))")
      #expect(bad.arrivedAt == 1_795_475_702 && bad.finishedAt ?? 0 > 1e9)
      #expect(jobs["dropped"]?.phase == .cancelled && jobs["stays"]?.phase == .queued)
      let good = try #require(jobs["good"])
      #expect(good.phase == .published && good.output == spool.output + "/good-2" && good.secondsWorked == 12)
      #expect(good.summary == .init(meanRelativeError: 0.25, bitsPerWeight: 4.5))
      #expect(jobs["alone"]?.summary?.meanRelativeError == 0.5)
      #expect(jobs["kept"]?.phase == .published && jobs["kept"]?.output == nil)
      // What there was can be used again.
      #expect(
        ledger.results.contains { $0.identity == "digest of \(Self.id("good"))" && $0.output == good.output })
      try ledger.carryOut(JobRequest(.retry, job: bad.id))
      #expect(ledger.job(bad.id)?.phase == .queued)
      #expect(try FileSystem.names(in: spool.working) == [bad.id, Self.id("stays")])
      #expect(try FileSystem.names(in: "\(spool.working)/\(bad.id)") == ["model.safetensors"])
    }
    try fixture.withLedger { ledger throws in
      #expect(ledger.stateOrigin == .found)
      #expect(ledger.jobs.count == 6)
    }
  }

  @Test func `a reason that cannot be read is no reason to forget the job`() throws {
    try fixture.makeSource(LedgerFixture.id, in: fixture.spool.failed)
    try AtomicFile.write("{", to: "\(fixture.spool.failed)/\(LedgerFixture.id)/reason.json")
    try fixture.withLedger { ledger throws in
      #expect(try ledger.rebuild() == 1)
      #expect(ledger.job(LedgerFixture.id)?.failure?.code == 70)
    }
  }

  @Test func `a state that is removed or replaced under the daemon is made anew, with all that was in it`()
    throws
  {
    try fixture.makeSource()
    try fixture.withLedger { ledger throws in
      try ledger.enter(LedgerFixture.id, name: LedgerFixture.name, arrivedAt: 1)
      try ledger.hold(true)
      #expect(try !ledger.restoreState())
      try FileSystem.removeTree(fixture.stateDirectory)
      #expect(try ledger.restoreState())
      #expect(try !ledger.restoreState())
      try FileSystem.removeTree("\(fixture.stateDirectory)/\(StateStore.fileName)")
      try AtomicFile.write("no database at all", to: "\(fixture.stateDirectory)/elsewhere")
      #expect(try ledger.restoreState())
      try ledger.update(LedgerFixture.id, counting: { $0.linearsQuantized = 7 }) { $0.step = "after" }
    }
    try fixture.withLedger { ledger throws in
      #expect(ledger.stateOrigin == .found)
      #expect(ledger.job(LedgerFixture.id)?.step == "after")
      #expect(ledger.counters.linearsQuantized == 7 && ledger.heldSince != nil)
    }
  }
}
