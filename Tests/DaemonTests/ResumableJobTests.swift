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
    var order = bench.order
    order.directory = bench.directory.file("job")
    _ = try ResumableJob(order, output: output)
    // The work is done, and the rename is not.
    bench.order.directory = order.directory
    try bench.work()
    let events = Events()
    let job = try ResumableJob(order, output: output)
    #expect(try job.finished() == nil)
    _ = try job.run(by: backend) { events.list.append($0) }
    #expect(!events.list.contains { if case .linear = $0 { true } else { false } })
    #expect(try job.finished() != nil)
  }

  @Test func `a directory with something else in it is left alone`() throws {
    let bench = try WorkerBench()
    var order = bench.order
    order.directory = bench.directory.file("home")
    try FileSystem.createDirectories(bench.directory.file("home/.git"))
    let error = try #require(throws: ResumableJobError.self) {
      try ResumableJob(order, output: bench.directory.file("output"))
    }
    #expect(error == .notAJob(directory: order.directory, name: ".git") && error.exitCode == 64)
    #expect(try FileSystem.names(in: order.directory) == [".git"])
    // What a command leaves that ends before it has written its order.
    try FileSystem.removeTree(bench.directory.file("home/.git"))
    try bench.directory.write("", to: "home/lock")
    let digest = try SHA256Digest.of(file: order.calibration.files[0].path, symlinks: .follow)
    try bench.directory.write(digest, to: "home/calibration")
    _ = try ResumableJob(order, output: bench.directory.file("output"))
    order.directory = order.model + "/job"
    let inside = try #require(throws: ResumableJobError.self) {
      try ResumableJob(order, output: bench.directory.file("output"))
    }
    #expect(inside == .insideModel(directory: order.directory, model: order.model))
    #expect(try !FileSystem.exists(order.directory))
  }

  @Test func `results of one name have caches of their own, and the directory has one process at a time`()
    throws
  {
    let bench = try WorkerBench()
    var (one, other) = (bench.order, bench.order)
    (one.directory, other.directory) = (bench.directory.file("job-1"), bench.directory.file("job-2"))
    let first = try ResumableJob(one, output: bench.directory.file("a/llama"))
    try withExtendedLifetime(first) {
      _ = try ResumableJob(other, output: bench.directory.file("b/llama"))
      #expect(throws: FileLockError.self) { try ResumableJob(one, output: bench.directory.file("a/llama")) }
    }
    let ids = try [one, other].map { try JobOrder(path: JobFiles($0.directory).order).id }
    #expect(ids[0] != ids[1] && ids.allSatisfy { $0.hasPrefix("job-") })
  }

  private final class Events { var list: [WorkerEvent] = [] }
}
