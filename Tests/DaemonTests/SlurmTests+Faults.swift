import Foundation
import SystemIO
import Testing

@testable import Daemon

/// What goes wrong, and what is taken back.
extension SupervisorTests.SlurmTests {
  // MARK: What nobody wants any more

  @Test func `what is over when it is taken back is not asked for again and again`() throws {
    try makeSources(2)
    try startsJobs()
    let supervisor = try supervisor(finishing)
    try loop.run(supervisor) { snapshot in
      snapshot.finished.count == 2 && supervisor.ledger.jobs.allSatisfy { $0.slurm == nil }
    }
    #expect(supervisor.slurm.unwanted.isEmpty)
  }

  @Test func `a job that goes on after it was cancelled is asked for until it is gone`() throws {
    try makeSources()
    try startsJobs()
    try note("scancel.late", "")
    let supervisor = try supervisor("sleep 30")
    var rounds = 0
    try loop.run(supervisor) { _ in
      if rounds == 0, supervisor.ledger.job(Self.ids[0])?.slurm?.state == "RUNNING" {
        rounds = 1
        try? JobRequest(.cancel, job: Self.ids[0]).leave(in: loop.fixture.spool)
      } else if rounds > 0, (try? FileSystem.exists("\(slurm)/1.asked")) == true {
        rounds += 1
        if rounds == 10 { try? FileSystem.removeTree("\(slurm)/scancel.late") }
      }
      return rounds > 0 && supervisor.ledger.job(Self.ids[0])?.slurm == nil
    }
    #expect(try FileSystem.exists("\(slurm)/1.cancelled"))
  }

  @Test func `a job in doubt is not taken for the one before it that is being cancelled`() throws {
    try makeSources()
    try startsJobs()
    try note("scancel.late", "")
    let supervisor = try supervisor("[ $n -gt 1 ] || exec sleep 30\n\(finishing)")
    var step = 0
    try loop.run(supervisor) { snapshot in
      let job = supervisor.ledger.job(Self.ids[0])
      if step == 0, job?.slurm?.state == "RUNNING" {
        step = 1
        try? note("sbatch.fail", "sbatch: error: Socket timed out on send/recv operation")
        try? JobRequest(.pause, job: Self.ids[0]).leave(in: loop.fixture.spool)
      } else if step == 1, job?.phase == .queued, job?.isHeld == true {
        step = 2
        try? JobRequest(.resume, job: Self.ids[0]).leave(in: loop.fixture.spool)
      } else if step == 2, job?.pausedBecause?.contains("Socket timed out") == true {
        step = 3
        for file in ["sbatch.fail", "scancel.late"] { try? FileSystem.removeTree("\(slurm)/\(file)") }
      }
      return !snapshot.finished.isEmpty
    }
    #expect(step == 3)
    #expect(try submissions.count == 2)
    #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
  }

  // MARK: Faults

  @Test func `a job's silence begins when it does`() throws {
    try makeSources()
    var patience = patience
    patience.silence = .milliseconds(400)
    let supervisor = try supervisor("sleep 0.1\n\(finishing)", patience: patience)
    let start = ContinuousClock.now
    var isStarted = false
    try loop.run(supervisor) { snapshot in
      if !isStarted, ContinuousClock.now - start > .milliseconds(900), (try? submissions.isEmpty) == false {
        isStarted = true
        startJob(1)
      }
      return !snapshot.finished.isEmpty
    }
    #expect(supervisor.ledger.counters == .init(published: 1))
  }

  @Test func `what an attempt found that is over, the next one has not found`() throws {
    try makeSources()
    try startsJobs()
    let before = FileSystem.join(loop.fixture.spool.output, "model-1")
    try FileSystem.createDirectories(before)
    let supervisor = try supervisor(
      """
      if [ $n = 1 ]; then say \(text(.identity("old"))) \(text(.reused(job: "earlier", output: before))); exec sleep 30; fi
      \(waiting)
      \(finishing)
      """)
    var isAgain = false
    try loop.run(supervisor) { snapshot in
      if !isAgain, supervisor.ledger.job(Self.ids[0])?.output == before {
        isAgain = true
        // Its host was cut off; Slurm starts the job elsewhere.
        startJob(1, restarts: 1)
        try? note("go", "")
      }
      return !snapshot.finished.isEmpty
    }
    #expect(supervisor.ledger.job(Self.ids[0])?.output == before + "-2")
    #expect(supervisor.ledger.job(Self.ids[0])?.madeBy == nil)
    #expect(try FileSystem.exists(before + "-2/quantease_report.json"))
  }

  @Test func `a published job is told of, though something of it could not be cleared away`() throws {
    try makeSources()
    try startsJobs()
    try FileSystem.createDirectories(loop.configuration.hooks)
    try AtomicFile.write("", to: "\(loop.configuration.hooks)/on-done")
    let supervisor = try supervisor("rm -r \(loop.fixture.spool.done)\n\(finishing)")
    try loop.run(supervisor) { _ in
      (try? FileSystem.names(in: loop.fixture.spool.hookEvents))?.isEmpty == false
    }
    #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
  }

  @Test
  func `a job whose pause is over and that finds no free place is waited for, and not asked for on and on`()
    throws
  {
    try makeSources(2)
    try startsJobs()
    let supervisor = try supervisor(
      """
      case "$files" in *model-1*) say \(text(.failed(JobFailure(.blocked, "no", code: 75)))); exit 75;; esac
      \(waiting)
      \(finishing)
      """, parallel: 1)
    var start: ContinuousClock.Instant?
    var rounds = 0
    try loop.run(supervisor) { snapshot in
      guard supervisor.ledger.job(Self.ids[0])?.pausedBecause != nil,
        supervisor.ledger.job(Self.ids[1])?.slurm?.state == "RUNNING"
      else { return false }
      rounds += 1
      start = start ?? .now + .milliseconds(200)
      return start.map { ContinuousClock.now > $0 + .milliseconds(800) } ?? false
    }
    // A look every 60 ms and one at events every 20, each with its commands' ends.
    #expect(rounds < 400, "\(rounds)")
    try note("go", "")
  }

  @Test func `a line of any length is heard`() throws {
    try makeSources()
    try startsJobs()
    let linears = (0..<60_000).map { index in
      WorkerEvent.Linear(
        name: "model.layers.\(index / 800).mlp.experts.\(index % 800).down_proj.weight", layer: 0,
        relativeError: 0.001)
    }
    let line = WorkerEvent.resumed(linears).line()
    try #require(line.count > 1 << 22)
    let file = try loop.fixture.directory.write(line, to: "resumed")
    let supervisor = try supervisor("cat \(file) >> \"$files/attempt.$n/events\"; sleep 30")
    try loop.run(supervisor) { _ in supervisor.ledger.job(Self.ids[0])?.linears.count == 60_000 }
  }

  @Test func `a daemon without Slurm's commands says so of its jobs`() throws {
    try makeSources()
    _ = try saveRow(number: "1")
    let supervisor = try supervisor("exit 1", path: "/nowhere")
    try loop.run(supervisor) { _ in
      supervisor.ledger.job(Self.ids[0])?.pausedBecause?.contains("squeue") == true
    }
  }
}
