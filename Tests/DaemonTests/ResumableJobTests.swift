import ComputeOpenBLAS
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// A command's job in a directory of its own; what it does end to end is in `ResumeCommandTests`.
struct ResumableJobTests {
  @Test func `a cache on the network is refused before anything is made`() throws {
    let bench = try WorkerBench()
    let output = bench.directory.file("output")
    let error = try #require(throws: ResumableJobError.self) {
      try ResumableJob(bench.order, output: output) { _ in true }
    }
    #expect(error.exitCode == 78 && "\(error)".contains("--cache-dir"))
    #expect(try !FileSystem.exists(bench.files.order))
  }

  @Test func `a result that was to be published when the process ended is published by the next`() throws {
    let bench = try WorkerBench()
    let output = bench.directory.file("output")
    let backend = OpenBLASBackend(threads: 2)
    _ = try ResumableJob(bench.order, output: output)
    // The work is done, and the rename is not.
    try bench.work()
    let events = Events()
    let job = try ResumableJob(bench.order, output: output)
    #expect(try job.finished() == nil)
    _ = try job.run(by: backend) { events.list.append($0) }
    #expect(!events.list.contains { if case .linear = $0 { true } else { false } })
    #expect(try job.finished() != nil)
  }

  private final class Events { var list: [WorkerEvent] = [] }
}
