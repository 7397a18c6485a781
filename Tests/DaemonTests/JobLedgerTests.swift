import Export
import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// The moves of a job between the spool's directories.
struct JobLedgerTests {
  private let fixture: LedgerFixture
  private var spool: Spool { fixture.spool }
  private static let id = LedgerFixture.id
  private static let name = LedgerFixture.name

  init() throws { fixture = try LedgerFixture() }

  private func begun(_ body: (JobLedger) throws -> Void) throws {
    try fixture.makeSource()
    try fixture.withLedger { ledger throws in
      try ledger.enter(Self.id, name: Self.name, arrivedAt: 1)
      try fixture.makeCheckpoint()
      try fixture.makeCache()
      try body(ledger)
    }
  }

  @Test func `a published job's result, source and row are where they belong`() throws {
    try begun { ledger throws in
      try ledger.publish(Self.id, summary: .init(meanRelativeError: 0.5, bitsPerWeight: 4))
      #expect(ledger.job(Self.id)?.phase == .published)
      #expect(ledger.job(Self.id)?.output == spool.output + "/" + Self.name)
      #expect(ledger.counters.published == 1)
    }
    #expect(try fixture.output() == "result of \(Self.id)")
    #expect(try FileSystem.names(in: spool.done) == [Self.id])
    for empty in [spool.working, spool.partial, spool.failed, fixture.cacheDirectory] {
      #expect(try FileSystem.names(in: empty) == [], "\(empty)")
    }
    try fixture.withLedger { ledger throws in
      #expect(ledger.job(Self.id)?.summary?.meanRelativeError == 0.5)
      #expect(ledger.job(Self.id)?.finishedAt != nil)
    }
  }

  @Test func `what is published has all of the job's log, and a sum of it`() throws {
    try begun { ledger throws in
      let result = ledger.files(of: Self.id).result
      // What a worker has seen of it when it lists its files.
      ledger.files(of: Self.id).log.write(.info, "queued", [])
      try ledger.files(of: Self.id).log.copy(into: result)
      try ChecksumManifest.write(into: result)
      // What the daemon had not heard by then.
      ledger.files(of: Self.id).log.write(.warning, "a word", [.layer(3)])
      try ledger.publish(Self.id, summary: nil)
    }
    let output = spool.output + "/" + Self.name
    let log = try FileSystem.contents(of: output + "/quantease_job.log", limit: 1 << 20)
    #expect(String(decoding: log, as: UTF8.self).hasSuffix("Z warning: a word layer=3\n"))
    #expect(try ChecksumManifest.problems(in: output) == [])
  }

  @Test func `a log that no worker knew of is listed with the files that it is published with`() throws {
    try begun { ledger throws in
      try ChecksumManifest.write(into: ledger.files(of: Self.id).result)
      ledger.files(of: Self.id).log.write(.info, "queued", [])
      try ledger.publish(Self.id, summary: nil)
    }
    let output = spool.output + "/" + Self.name
    #expect(try FileSystem.exists(output + "/quantease_job.log"))
    #expect(try ChecksumManifest.problems(in: output) == [])
  }

  @Test func `a result that the disk refused is thrown away and made anew`() throws {
    try begun { ledger throws in
      ledger.synchronize = { path throws(FileError) in
        throw FileError(path: path, operation: .synchronize, errno: .ioError)
      }
      #expect(throws: FileError.self) { try ledger.publish(Self.id, summary: nil) }
      #expect(try !FileSystem.exists(ledger.files(of: Self.id).result))
      _ = try ledger.recover()
      #expect(ledger.job(Self.id)?.phase == .queued)
      #expect(try FileSystem.exists(ledger.files(of: Self.id).journal))
    }
    #expect(try !FileSystem.exists(spool.output + "/" + Self.name))
  }

  @Test func `a result for which there was no space is published once there is`() throws {
    try begun { ledger throws in
      ledger.synchronize = { path throws(FileError) in
        throw FileError(path: path, operation: .synchronize, errno: .noSpace)
      }
      #expect(throws: FileError.self) { try ledger.publish(Self.id, summary: nil) }
      ledger.synchronize = FileSystem.synchronizeTree
      _ = try ledger.recover()
      #expect(ledger.job(Self.id)?.phase == .published)
    }
    #expect(try fixture.output() == "result of \(Self.id)")
  }

  @Test func `what stands in the output folder is never replaced`() throws {
    try fixture.makeOutput("somebody's")
    try fixture.makeOutput("somebody's too", named: "\(Self.name)-2")
    try begun { try $0.publish(Self.id, summary: nil) }
    #expect(try fixture.output() == "somebody's")
    #expect(try fixture.output("\(Self.name)-2") == "somebody's too")
    #expect(try fixture.output("\(Self.name)-3") == "result of \(Self.id)")
  }

  @Test func `not even an empty directory or a link that leads nowhere is replaced`() throws {
    try FileSystem.createDirectories(spool.output + "/" + Self.name)
    try FileManager.default.createSymbolicLink(
      atPath: spool.output + "/\(Self.name)-2", withDestinationPath: "/nowhere/at/all")
    try begun { try $0.publish(Self.id, summary: nil) }
    #expect(try fixture.output("\(Self.name)-3") == "result of \(Self.id)")
  }

  @Test func `a name as long as names may be gives way to its number`() throws {
    let name = String(repeating: "x", count: 255)
    try fixture.makeOutput("somebody's", named: name)
    try fixture.makeSource("id")
    try fixture.makeCheckpoint("id")
    try fixture.withLedger { ledger throws in
      try ledger.enter("id", name: name, arrivedAt: 1)
      try ledger.publish("id", summary: nil)
    }
    #expect(try fixture.output(name) == "somebody's")
    #expect(try fixture.output(String(repeating: "x", count: 253) + "-2") == "result of id")
  }

  @Test func `a job whose result stands already leaves nothing but its source`() throws {
    try begun { ledger throws in
      try ledger.update(Self.id) { $0.output = spool.output + "/t" }
      try ledger.publishAsItStands(Self.id, summary: .init(meanRelativeError: 0.5, bitsPerWeight: 4))
      #expect(ledger.job(Self.id)?.output == spool.output + "/t")
    }
    #expect(try FileSystem.names(in: spool.done) == [Self.id])
    #expect(try FileSystem.names(in: spool.output) == [".partial"])
    #expect(try FileSystem.names(in: spool.partial) == [])
  }

  @Test func `a failed job's source has its reason beside it`() throws {
    try begun { try $0.fail(Self.id, JobFailure(.job, "no \"weights\" in /x", code: 65)) }
    let reason =
      try JSONSerialization.jsonObject(
        with: Data(contentsOf: URL(fileURLWithPath: spool.failed + "/\(Self.id)/reason.json")))
      as? [String: Any]
    #expect(reason?["id"] as? String == Self.id)
    #expect(reason?["name"] as? String == Self.name)
    #expect(reason?["outcome"] as? String == "failed")
    #expect(reason?["message"] as? String == "no \"weights\" in /x")
    #expect(reason?["code"] as? Int == 65)
    #expect(reason?["failed_at"] as? Double ?? 0 > 1e9)
    #expect(try FileSystem.names(in: spool.partial) == [])
    #expect(try FileSystem.names(in: fixture.cacheDirectory) == [])
    try fixture.withLedger { #expect($0.counters.failed == 1) }
  }

  @Test func `what a worker that broke down has done is kept for another try`() throws {
    try begun { ledger throws in
      try ledger.fail(Self.id, JobFailure(.broken, "killed", code: 70))
      #expect(try ledger.recover().news == [])
      #expect(try FileSystem.names(in: spool.partial) == [Self.id])
      try ledger.carryOut(JobRequest(.retry, job: Self.id))
      // The journal says itself what it is of; the result does not.
      #expect(try FileSystem.names(in: "\(spool.partial)/\(Self.id)") == ["journal"])
    }
  }

  @Test(arguments: [true, false])
  func `a job that is tried again is as one that came now`(_ isCancelled: Bool) throws {
    try begun { ledger throws in
      try ledger.update(Self.id) { $0.attempts = 3 }
      if isCancelled {
        try ledger.carryOut(JobRequest(.cancel, job: Self.id))
        #expect(ledger.job(Self.id)?.phase == .cancelled)
      } else {
        try ledger.fail(Self.id, JobFailure(.job, "broken", code: 65))
      }
      #expect(try FileSystem.names(in: spool.failed) == [Self.id])
      try ledger.carryOut(JobRequest(.retry, job: Self.id))
      let job = try #require(ledger.job(Self.id))
      #expect(job.phase == .queued && job.attempts == 0 && job.failure == nil && job.finishedAt == nil)
      #expect(try FileSystem.names(in: spool.working + "/" + Self.id) == ["model.safetensors"])
      #expect(try FileSystem.names(in: spool.failed) == [])
      #expect(try ledger.recover().news == [])
    }
  }

  @Test
  func `a job whose source somebody removed cannot be tried again, and one that loses it fails by its name`()
    throws
  {
    try begun { ledger throws in
      try FileSystem.removeTree(spool.working + "/" + Self.id)
      _ = try ledger.recover()
      let reason = "the checkpoint that was dropped as \(LedgerFixture.name) is not in the spool any more"
      #expect(ledger.job(Self.id)?.failure?.message.hasPrefix(reason) == true)
      #expect(throws: JobRequestError.sourceGone(Self.id)) {
        try ledger.carryOut(JobRequest(.retry, job: Self.id))
      }
      #expect(ledger.job(Self.id)?.phase == .failed)
    }
  }

  @Test func `a new drop that has a failed job's inode is not taken for its source`() throws {
    let drop = FileSystem.join(spool.incoming, LedgerFixture.name)
    try FileSystem.createDirectories(drop)
    try AtomicFile.write("old", to: drop + "/a")
    let contents = try DropContents(directory: drop).digest
    var job = JobRecord(
      id: Self.id, name: LedgerFixture.name, inode: try FileSystem.stamp(of: drop).stamp.inode,
      contents: contents,
      arrivedAt: 1)
    job.phase = .failed
    #expect(try spool.source(of: job) == drop)
    try FileSystem.removeTree(drop + "/a")
    try AtomicFile.write("new", to: drop + "/a")
    #expect(try spool.source(of: job) == nil)
    job.phase = .queued
    #expect(try spool.source(of: job) == drop)
  }

  @Test func `requests that cannot be met say why`() throws {
    try begun { ledger throws in
      func failure(_ action: JobRequest.Action, _ id: String = Self.id) -> JobRequestError? {
        #expect(throws: JobRequestError.self) { try ledger.carryOut(JobRequest(action, job: id)) }
      }
      #expect(failure(.cancel, "x") == .unknownJob("x"))
      #expect(failure(.retry) == .cannotRetry(Self.id, .queued))
      try ledger.publish(Self.id, summary: nil)
      #expect(failure(.cancel) == .over(Self.id, .published))
      #expect(failure(.retry) == .cannotRetry(Self.id, .published))
    }
  }

  @Test(arguments: ["x", LedgerFixture.id, "a.b", "cancel.retry", "-"])
  func `a request is left as a file and read again`(_ id: String) throws {
    for action in JobRequest.Action.allCases {
      let request = JobRequest(action, job: id)
      try request.leave(in: spool)
      #expect(try JobRequest.all(in: spool) == [request])
      #expect(try !request.isDone(in: spool))
      try FileSystem.removeTree(request.path(in: spool))
      #expect(try request.isDone(in: spool))
    }
  }

  @Test(arguments: ["cancel", "delete.x", ".cancel.x", "", "Cancel.x"])
  func `any other file among the requests is none`(_ name: String) {
    #expect(JobRequest(fileName: name) == nil)
  }

  @Test func `what Slurm has is left to it, though no daemon runs`() throws {
    try begun { ledger throws in
      try ledger.update(Self.id) { job in
        job.phase = .running
        job.slurm = SlurmJob(of: Self.id, spool: spool.root, earlierAttempts: 0)
        job.slurm?.number = "7"
      }
      // As a command does that holds another job back.
      #expect(try ledger.recover().news == [])
      #expect(ledger.job(Self.id)?.phase == .running && ledger.job(Self.id)?.slurm?.number == "7")
    }
  }

  @Test func `a result in its place is not published a second time when another worker brings it`() throws {
    try begun { ledger throws in
      let output = FileSystem.join(spool.output, Self.name)
      let bench = try WorkerBench()
      try bench.work()
      var report = try Report(directory: bench.files.result)
      report.job = Self.id
      // The daemon ended after the move, and a worker that was cut off hands its result over, too.
      try FileSystem.createDirectories(output)
      try report.write(to: Report.Place(directory: output))
      try ledger.update(Self.id) { job in
        job.phase = .publishing
        job.output = output
      }
      _ = try ledger.recover()
      #expect(ledger.job(Self.id)?.phase == .published && ledger.job(Self.id)?.output == output)
      let names = try FileSystem.names(in: spool.output).filter { !$0.hasPrefix(".") }
      #expect(names == [Self.name])
    }
  }

  @Test func `the number of an attempt is not given again, though its directory is gone`() throws {
    try begun { ledger throws in
      let directory = ledger.files(of: Self.id).directory
      for _ in 0..<2 { _ = try JobAttempt.begin(in: directory) }
      try ledger.cancel(Self.id)
      #expect(try !FileSystem.exists(directory))
      try ledger.retry(Self.id)
      try FileSystem.createDirectories(directory)
      let last = try #require(ledger.job(Self.id)?.lastAttempt)
      #expect(try JobAttempt.begin(in: directory, after: last).number == 3)
    }
  }

  @Test func `a job whose result is gone is done again, though another's has its name`() throws {
    try begun { ledger throws in
      let output = FileSystem.join(spool.output, Self.name)
      let bench = try WorkerBench()
      try bench.work()
      var report = try Report(directory: bench.files.result)
      report.job = "another"
      try FileSystem.createDirectories(output)
      try report.write(to: Report.Place(directory: output))
      try FileSystem.removeTree(ledger.files(of: Self.id).result)
      try ledger.update(Self.id) { job in
        job.phase = .publishing
        job.output = output
      }
      _ = try ledger.recover()
      #expect(ledger.job(Self.id)?.phase == .queued)
    }
  }

  @Test func `what Slurm's queue has lost sight of is queued again`() throws {
    try begun { ledger throws in
      try ledger.update(Self.id) { job in
        job.phase = .running
        job.slurm = SlurmJob(of: Self.id, spool: spool.root, earlierAttempts: 0)
      }
      _ = try ledger.recover(sparing: [Self.id])
      #expect(ledger.job(Self.id)?.phase == .running)
      _ = try ledger.recover(sparing: [])
      #expect(ledger.job(Self.id)?.phase == .queued)
    }
  }

  @Test func `a job paused in Slurm that is tried again without a daemon keeps what has come of it`() throws {
    try begun { ledger throws in
      try ledger.update(Self.id) { job in
        job.phase = .running
        job.pausedBecause = "held"
        job.slurm = SlurmJob(of: Self.id, spool: spool.root, earlierAttempts: 0)
      }
      try ledger.carryOut(JobRequest(.retry, job: Self.id))
      #expect(try FileSystem.exists(ledger.files(of: Self.id).result))
      let job = try #require(ledger.job(Self.id))
      #expect(job.phase == .queued && job.pausedBecause == nil && job.slurm?.isUnwanted == true)
    }
  }
}
