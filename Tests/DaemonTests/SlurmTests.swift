import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

extension SupervisorTests {
  /// The daemon's loop with Slurm as its queue; Slurm's commands are scripts, and so are the workers.
  @Suite struct SlurmTests {
    let loop: SupervisorTests
    let slurm: String
    private let program: String
    let report: String

    init() throws {
      loop = try SupervisorTests()
      slurm = loop.fixture.directory.file("slurm")
      program = loop.fixture.directory.file("program")
      try FileSystem.createDirectories(slurm)
      let bench = try WorkerBench()
      try bench.work()
      report = loop.fixture.directory.file("report.json")
      try FileSystem.copyFile(bench.files.result + "/quantease_report.json", to: report)
    }

    // MARK: Support

    var patience: Supervisor.Patience {
      var patience = loop.patience
      (patience.look, patience.tail, patience.answer, patience.missing) = (
        .milliseconds(60), .milliseconds(20), .seconds(5), .milliseconds(150)
      )
      patience.silence = .seconds(60)
      return patience
    }

    /// A daemon whose workers run a script for `sh`; `$files` in it is the job's directory, and `say EVENT…` tells events.
    func supervisor(
      _ script: String, parallel: Int = 4, patience: Supervisor.Patience? = nil, path: String? = nil
    ) throws -> Supervisor {
      let ready = """
        #!/bin/sh
        [ "$1" != hooks ] || exit 0
        files=$(dirname "$2")
        if [ "$1" = enqueue ]; then
          order=$2; shift 4
          if number=$(printf '#!/bin/sh\\nexec %s worker %s\\n' '\(program)' "$order" | sbatch "$@" 2>&1); then
            printf '{"submitted":{"_0":"%s"}}\\n' "$number"
          else
            printf '{"failed":{"_0":{"kind":"blocked","message":"%s","code":75}}}\\n' "$number"
          fi
          exit
        fi
        n=1; until mkdir "$files/attempt.$n" 2> /dev/null; do n=$((n + 1)); done
        say() { printf '%s\\n' "$@" >> "$files/attempt.$n/events"; }
        """
      try AtomicFile.write("\(ready)\n\(script)\n", to: program)
      try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: program)
      var configuration = loop.configuration
      (configuration.queue, configuration.parallel) = (.slurm, parallel)
      (configuration.slurm.partition, configuration.slurm.options) = ("night", ["--nice=5"])
      let read = { configuration }
      return try Supervisor(
        configuration: configuration, readConfiguration: read, log: Log(least: .critical),
        notifier: ServiceNotifier(environment: ProcessEnvironment(value: { _ in nil }, remove: { _ in })),
        patience: patience ?? self.patience, program: program,
        environment: [
          "PATH": path ?? "\(TestFiles.repositoryFile("Tests/Fixtures/slurm")):/usr/bin:/bin",
          "FAKE_SLURM_DIR": slurm,
          "SBATCH_PARTITION": "other",
        ])
    }

    /// Has Slurm's jobs begin at once.
    func startsJobs() throws { try note("run", "") }

    /// Has one of Slurm's jobs begin, or begin again.
    func startJob(_ number: Int, restarts: Int = 0) {
      _ = try? Process.run(
        URL(fileURLWithPath: "/usr/bin/env"),
        arguments: [
          "FAKE_SLURM_DIR=\(slurm)", "setsid", TestFiles.repositoryFile("Tests/Fixtures/slurm/fake-run"),
          "\(number)",
        ] + (restarts > 0 ? ["\(restarts)"] : []))
    }

    func note(_ name: String, _ text: String) throws {
      try AtomicFile.rewrite(Array(text.utf8), to: "\(slurm)/\(name)")
    }

    static let ids = (1...3).map { "20261123T23150\($0)Z-00a\($0)-model-\($0)" }

    /// Claimed checkpoints, the jobs in their order.
    func makeSources(_ count: Int = 1) throws {
      for id in Self.ids.prefix(count) { try loop.fixture.makeSource(id) }
    }

    /// A script's lines that leave a finished checkpoint.
    var finishing: String {
      """
      mkdir "$files/attempt.$n/checkpoint"
      cp \(report) "$files/attempt.$n/checkpoint/quantease_report.json"
      mv -T "$files/attempt.$n/checkpoint" "$files/result"
      """
    }

    /// A script's line that waits for `go`, or for the end of the test.
    var waiting: String {
      "until [ -e \(slurm)/go ] || ! [ -e \(slurm) ]; do sleep 0.05; done"
    }

    func text(_ event: WorkerEvent) -> String {
      "'" + String(decoding: event.line().dropLast(), as: UTF8.self) + "'"
    }

    static let linear = WorkerEvent.linear(
      .init(name: "a", layer: 0, relativeError: 0.5), secondsRemaining: 1)

    /// What `sbatch` was given, a job each.
    var submissions: [[String]] {
      get throws {
        try FileSystem.names(in: slurm).filter { $0.hasSuffix(".args") }.sorted().map {
          String(decoding: try FileSystem.contents(of: "\(slurm)/\($0)", limit: 1 << 16), as: UTF8.self)
            .split(separator: "\n").map(String.init)
        }
      }
    }

    // MARK: Handing over

    @Test func `every job is given to Slurm once, so many at a time, and published`() throws {
      try makeSources(3)
      try startsJobs()
      let supervisor = try supervisor("say \(text(Self.linear)); sleep 0.2\n\(finishing)", parallel: 2)
      var most = 0
      try loop.run(supervisor) { snapshot in
        most = max(most, supervisor.ledger.jobs.count { $0.phase == .running })
        return snapshot.finished.count == 3
      }
      #expect(most == 2)
      #expect(supervisor.ledger.jobs.allSatisfy { $0.phase == .published && $0.slurm?.isUnwanted != false })
      #expect(supervisor.ledger.counters.linearsQuantized == 3)
      let submissions = try submissions
      #expect(submissions.count == 3)
      for (submission, id) in zip(submissions, Self.ids) {
        let name = SlurmJob(of: id, spool: loop.fixture.spool.root, earlierAttempts: 0).name
        for option in [
          "--job-name=\(name)", "--dependency=singleton", "--requeue", "--open-mode=append", "--export=NONE",
          "--cpus-per-task=1", "--partition=night", "--nice=5",
        ] { #expect(submission.contains(option), "\(option)") }
      }
      #expect(submissions.allSatisfy { !$0.contains("--partition=other") })
    }

    @Test func `a job whose number nobody heard is found by its name, and not given twice`() throws {
      try makeSources()
      try note("sbatch.lost", "sbatch: error: Socket timed out on send/recv operation")
      let supervisor = try supervisor(finishing)
      var isStarted = false
      try loop.run(supervisor) { snapshot in
        if !isStarted, supervisor.ledger.job(Self.ids[0])?.slurm?.number == "1" {
          isStarted = true
          try? FileSystem.removeTree("\(slurm)/sbatch.lost")
          startJob(1)
        }
        return !snapshot.finished.isEmpty
      }
      #expect(isStarted)
      #expect(try submissions.count == 1)
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
    }

    @Test func `what Slurm does not take waits, says why, and is given again`() throws {
      try makeSources()
      try startsJobs()
      try note("sbatch.fail", "sbatch: error: Batch job submission failed: Invalid partition name specified")
      let supervisor = try supervisor(finishing)
      var reason: String?
      try loop.run(supervisor) { snapshot in
        if let waits = supervisor.ledger.job(Self.ids[0])?.pausedBecause {
          reason = waits
          try? FileSystem.removeTree("\(slurm)/sbatch.fail")
        }
        return !snapshot.finished.isEmpty
      }
      #expect(reason?.contains("Invalid partition name specified") == true, "\(reason ?? "")")
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
    }

    /// The row of a daemon that ended after it had given a job to Slurm.
    func saveRow(number: String?) throws -> SlurmJob {
      var job = LedgerFixture.job(.running, id: Self.ids[0], name: "model-1")
      var slurm = SlurmJob(of: job.id, spool: loop.fixture.spool.root, earlierAttempts: 0)
      slurm.number = number
      (job.slurm, job.attempts) = (slurm, 1)
      try loop.fixture.save(job)
      return slurm
    }

    @Test(arguments: [true, false])
    func `a daemon that ended in between leaves a job that the next one takes over`(_ isKnown: Bool) throws {
      try makeSources()
      let name = try saveRow(number: isKnown ? "1" : nil).name
      try note("1.name", name)
      try note("state.1", "RUNNING")
      let supervisor = try supervisor("exit 1")
      let files = supervisor.ledger.files(of: Self.ids[0])
      var rounds = 0
      try loop.run(supervisor) { snapshot in
        guard let job = supervisor.ledger.job(Self.ids[0]), job.isWithSlurm, job.slurm?.state == "RUNNING"
        else {
          return !snapshot.finished.isEmpty
        }
        rounds += 1
        guard rounds == 1 else { return false }
        #expect(snapshot.current?.place == "on fake, in Slurm as job 1")
        try? FileSystem.createDirectories(files.directory + "/attempt.1/checkpoint")
        try? FileSystem.copyFile(report, to: files.directory + "/attempt.1/checkpoint/quantease_report.json")
        try? FileSystem.move(files.directory + "/attempt.1/checkpoint", to: files.result)
        return false
      }
      #expect(try submissions.isEmpty)
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
    }

    @Test func `a job that Slurm never got is given to it by the next daemon`() throws {
      try makeSources()
      _ = try saveRow(number: nil)
      try startsJobs()
      let supervisor = try supervisor(finishing)
      try loop.run(supervisor) { !$0.finished.isEmpty }
      #expect(try submissions.count == 1)
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
    }

    @Test func `what came to its end while no daemon ran is published, though Slurm has forgotten it`() throws
    {
      try makeSources()
      _ = try saveRow(number: "7")
      let checkpoint = JobFiles(FileSystem.join(loop.fixture.spool.partial, Self.ids[0])).result
      try FileSystem.createDirectories(checkpoint)
      try FileSystem.copyFile(report, to: checkpoint + "/quantease_report.json")
      let supervisor = try supervisor("exit 1")
      try loop.run(supervisor) { !$0.finished.isEmpty }
      #expect(try submissions.isEmpty)
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
    }

    // MARK: What becomes of them

    @Test func `a worker that is gone without a word is one that broke down, and another goes on`() throws {
      try makeSources()
      try startsJobs()
      // As after scancel, a time limit or a dead node.
      let supervisor = try supervisor("[ $n -gt 1 ] || kill -9 $$\n\(finishing)")
      try loop.run(supervisor) { !$0.finished.isEmpty }
      #expect(try submissions.count == 2)
      #expect(supervisor.ledger.counters == .init(published: 1, workerRestarts: 1))
    }

    @Test func `a job at fault fails with the worker's own words`() throws {
      try makeSources()
      try startsJobs()
      let supervisor = try supervisor(
        "say \(text(.failed(JobFailure(.job, "no such tensor", code: 65)))); exit 65")
      try loop.run(supervisor) { !$0.finished.isEmpty }
      #expect(supervisor.ledger.job(Self.ids[0])?.failure?.message == "no such tensor")
      #expect(try submissions.count == 1)
    }

    @Test func `what an earlier attempt said is not heard again`() throws {
      try makeSources()
      try startsJobs()
      // The second one finds the first one's last words, and takes a while.
      let supervisor = try supervisor(
        "if [ $n = 1 ]; then say \(text(.failed(JobFailure(.broken, "a disk", code: 74)))); exit 74; fi\nsleep 0.3\n\(finishing)"
      )
      try loop.run(supervisor) { !$0.finished.isEmpty }
      #expect(try submissions.count == 2)
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
      #expect(supervisor.ledger.counters == .init(published: 1, workerRestarts: 1))
    }

    @Test func `while Slurm does not answer nothing changes, and the status says so`() throws {
      try makeSources()
      try startsJobs()
      let supervisor = try supervisor("\(waiting)\n\(finishing)")
      var reason: String?
      try loop.run(supervisor) { snapshot in
        let job = supervisor.ledger.job(Self.ids[0])
        if job?.slurm?.state == "RUNNING", reason == nil {
          try? note(
            "squeue.fail", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
        }
        if let waits = job?.pausedBecause {
          reason = waits
          try? FileSystem.removeTree("\(slurm)/squeue.fail")
          try? note("go", "")
        }
        return !snapshot.finished.isEmpty
      }
      #expect(reason?.hasPrefix("Slurm does not answer since ") == true, "\(reason ?? "")")
      #expect(supervisor.ledger.counters == .init(published: 1))
      #expect(try submissions.count == 1)
    }

    @Test func `a job that Slurm holds is shown with what lets it go`() throws {
      try makeSources()
      let supervisor = try supervisor(finishing)
      try note("state.1", "PENDING|JobHeldUser")
      try loop.run(supervisor) { $0.current?.pausedBecause?.contains("'scontrol release 1'") == true }
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .running)
    }

    @Test func `a job that is cancelled is taken back from Slurm`() throws {
      try makeSources()
      try startsJobs()
      let supervisor = try supervisor("sleep 30")
      var isAsked = false
      try loop.run(supervisor) { _ in
        if !isAsked, supervisor.ledger.job(Self.ids[0])?.slurm?.state == "RUNNING" {
          isAsked = true
          try? JobRequest(.cancel, job: Self.ids[0]).leave(in: loop.fixture.spool)
        }
        return isAsked && (try? FileSystem.exists("\(slurm)/1.cancelled")) == true
          && supervisor.ledger.job(Self.ids[0])?.slurm == nil
      }
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .cancelled)
    }

    @Test func `while all is paused Slurm has nothing, and then goes on`() throws {
      try makeSources()
      try startsJobs()
      let supervisor = try supervisor("[ $n -gt 1 ] || sleep 30\n\(finishing)")
      var steps = 0
      try loop.run(supervisor) { snapshot in
        let job = supervisor.ledger.job(Self.ids[0])
        if steps == 0, job?.slurm?.state == "RUNNING" {
          steps = 1
          try? JobRequest(.pause, job: nil).leave(in: loop.fixture.spool)
        } else if steps == 1, job?.phase == .queued, (try? FileSystem.exists("\(slurm)/1.cancelled")) == true
        {
          steps = 2
          try? JobRequest(.resume, job: nil).leave(in: loop.fixture.spool)
        }
        return !snapshot.finished.isEmpty
      }
      #expect(steps == 2)
      #expect(supervisor.ledger.counters == .init(published: 1))
    }

    @Test func `a drop that was done before ends, though its worker leaves no checkpoint`() throws {
      try makeSources()
      try startsJobs()
      let before = FileSystem.join(loop.fixture.spool.output, "model-1")
      try FileSystem.createDirectories(before)
      let supervisor = try supervisor(
        "say \(text(.identity("digest"))) \(text(.reused(job: "earlier", output: before))) \(text(SupervisorTests.finished))"
      )
      try loop.run(supervisor) { !$0.finished.isEmpty }
      let job = try #require(supervisor.ledger.job(Self.ids[0]))
      #expect(
        job.phase == .published && job.output == before && job.madeBy == "earlier" && job.digest == "digest")
      #expect(try submissions.count == 1)
    }

    @Test func `what a worker says last is heard, though its result is there already`() throws {
      try makeSources()
      try startsJobs()
      let supervisor = try supervisor(
        "say \(text(.identity("digest"))) \(text(.warning("zeros"))) \(text(SupervisorTests.finished))\n\(finishing)"
      )
      try loop.run(supervisor) { !$0.finished.isEmpty }
      let job = try #require(supervisor.ledger.job(Self.ids[0]))
      #expect(job.phase == .published && job.digest == "digest" && job.warnings == ["zeros"])
    }

    @Test func `a number that Slurm gave a second time is another job's`() throws {
      try makeSources()
      _ = try saveRow(number: "1")
      // The controller was killed before it had saved ours.
      try FileSystem.createDirectories("\(slurm)/1.job")
      try note("1.name", "quantease-of-another")
      try note("state.1", "RUNNING")
      try note("1.pid", "999999")
      let supervisor = try supervisor(finishing)
      var isStarted = false
      try loop.run(supervisor) { snapshot in
        if !isStarted, (try? submissions.isEmpty) == false {
          isStarted = true
          startJob(2)
        }
        return !snapshot.finished.isEmpty
      }
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
      #expect(try !FileSystem.exists("\(slurm)/1.cancelled"))
    }

    @Test func `a job that Slurm will not start is given anew when it is tried again`() throws {
      try makeSources()
      let supervisor = try supervisor(finishing, parallel: 1)
      try note("state.1", "PENDING|PartitionTimeLimit")
      var isAsked = false
      try loop.run(supervisor) { snapshot in
        if !isAsked, snapshot.current?.pausedBecause != nil {
          isAsked = true
          try? startsJobs()
          try? JobRequest(.retry, job: Self.ids[0]).leave(in: loop.fixture.spool)
        }
        return !snapshot.finished.isEmpty
      }
      #expect(try submissions.count == 2)
      #expect(try FileSystem.exists("\(slurm)/1.cancelled"))
      #expect(supervisor.ledger.job(Self.ids[0])?.phase == .published)
    }
  }
}
