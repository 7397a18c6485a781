import SystemIO
import Testing

@testable import Daemon

/// What is kept of jobs that are over.
struct RetentionTests {
  @Test(arguments: [
    ("all", Keeping.all), ("7d", .seconds(604_800)), ("2w", .seconds(1_209_600)), ("12h", .seconds(43_200)),
    ("20", .count(20)),
    ("0", .count(0)), ("500GB", .bytes(500_000_000_000)), ("1.5TB", .bytes(1_500_000_000_000)),
  ])
  func `amounts are read, and written as they are read`(text: String, keeping: Keeping) {
    #expect(Keeping(text) == keeping)
    #expect(Keeping(keeping.text) == keeping)
  }

  @Test(arguments: ["", "none", "-1", "7 d", "d", "1e9d", "-1GB", "nand", "infd", "5kB"])
  func `what is none is refused`(text: String) { #expect(Keeping(text) == nil) }

  @Test func `the oldest go, by age, by number or by size`() {
    // (age, size), the newest first.
    let items = [(1.0, 10), (2.0, 20), (5.0, 30), (9.0, 5)]
    func kept(_ keeping: Keeping) -> [Double] {
      let gone = keeping.surplus(of: items, age: { $0.0 }, size: { $0.1 }).map(\.0)
      return items.map(\.0).filter { !gone.contains($0) }
    }
    #expect(kept(.all) == [1, 2, 5, 9])
    #expect(kept(.seconds(5)) == [1, 2, 5])
    #expect(kept(.count(1)) == [1])
    #expect(kept(.count(0)) == [])
    // One that does not fit any more, and what is older.
    #expect(kept(.bytes(59)) == [1, 2])
    #expect(kept(.bytes(65)) == [1, 2, 5, 9])
  }

  /// A folder of another person's, below one that could be moved.
  @Test func `a source that cannot be looked at keeps no other one from going`() throws {
    let fixture = try LedgerFixture()
    let spool = fixture.spool
    for number in 1...2 {
      try fixture.makeSource(Self.id(number), in: spool.done)
      try fixture.save(LedgerFixture.job(.published, id: Self.id(number), name: "model"))
    }
    // No directory at all, so that looking into it fails, whoever asks.
    try FileSystem.removeTree("\(spool.done)/\(Self.id(1))")
    try AtomicFile.write("", to: "\(spool.done)/\(Self.id(1))")
    try fixture.withLedger { ledger throws in
      var faults = 0
      let surplus = try Retention(keepDone: .count(0), keepFailed: .all)
        .surplus(in: spool, jobs: ledger.jobs) { _ in faults += 1 }
      #expect(surplus.map(\.id) == [Self.id(2)])
      #expect(faults == 1)
    }
  }

  private static func id(_ number: Int) -> String { "2026112\(number)T231502Z-00a7-model" }

  @Test func `sources are removed, and neither outputs nor what a person or an unfinished job has there`()
    throws
  {
    let fixture = try LedgerFixture()
    let spool = fixture.spool
    for number in 1...4 {
      try fixture.makeSource(Self.id(number), in: number < 3 ? spool.done : spool.failed)
      var job = LedgerFixture.job(number < 3 ? .published : .failed, id: Self.id(number), name: "model")
      job.finishedAt = Double(number)
      if number > 2 { job.failure = JobFailure(.broken, "x", code: 70) }
      try fixture.save(job)
      try fixture.makeCheckpoint(Self.id(number))
    }
    try fixture.makeOutput("result", named: "model")
    try FileSystem.createDirectories(spool.done + "/my own things")
    try fixture.makeSource(Self.id(5))
    try fixture.save(LedgerFixture.job(.queued, id: Self.id(5), name: "model"))
    try fixture.withLedger { ledger throws in
      let retention = Retention(keepDone: .count(1), keepFailed: .seconds(1))
      let surplus = try retention.surplus(in: spool, jobs: ledger.jobs, now: 4.5)
      #expect(surplus.map(\.id) == [Self.id(1), Self.id(3)])
      #expect(surplus.allSatisfy { $0.byteCount > 0 })
      for item in surplus { try Retention.remove(item, in: spool) }
      #expect(try retention.surplus(in: spool, jobs: ledger.jobs, now: 4.5) == [])
      #expect(try FileSystem.names(in: spool.done) == [Self.id(2), "my own things"])
      #expect(try FileSystem.names(in: spool.failed) == [Self.id(4)])
      #expect(try FileSystem.names(in: spool.working) == [Self.id(5)])
      // What a broken job had made serves nobody without its source.
      #expect(try !FileSystem.exists("\(spool.partial)/\(Self.id(3))"))
      #expect(try FileSystem.exists("\(spool.partial)/\(Self.id(4))"))
      #expect(try fixture.output("model") == "result")
      #expect(throws: JobRequestError.sourceGone(Self.id(3))) {
        try ledger.carryOut(JobRequest(.retry, job: Self.id(3)))
      }
      _ = try ledger.recover()
      #expect(ledger.jobs.count == 5)
    }
  }
}
