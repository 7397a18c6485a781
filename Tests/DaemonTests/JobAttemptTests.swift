import ComputeOpenBLAS
import FoundationEssentials
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// Workers of one job that do not know of each other.
struct JobAttemptTests {
  private let bench: WorkerBench
  private let expected: [UInt8]

  init() throws {
    let undisturbed = try WorkerBench()
    try undisturbed.work()
    expected = try undisturbed.weights()
    bench = try WorkerBench()
    bench.order.isShared = true
  }

  /// Leaves an attempt as a worker does that ends when so many linears are done.
  private func workPartly(linears: Int) throws -> JobAttempt {
    let attempt = try JobAttempt.begin(in: bench.order.directory)
    try bench.workPartly(linears: linears, attempt: attempt)
    return attempt
  }

  @Test func `an attempt has a number and a directory of its own`() throws {
    let job = bench.order.directory
    let attempts = try (0..<12).map { _ in try JobAttempt.begin(in: job) }
    #expect(attempts.map(\.number) == Array(1...12))
    #expect(try JobAttempt.all(in: job) == attempts)
  }

  @Test func `the next attempt goes on with what the one before has journalled`() throws {
    let first = try workPartly(linears: 5)
    #expect(try !FileSystem.exists(bench.files.result))
    let second = try JobAttempt.begin(in: bench.order.directory)
    try bench.work(attempt: second)
    #expect(bench.resumedLinears == 5)
    #expect(try bench.weights() == expected)
    // Its own journal has what it did itself, and only that.
    #expect(try FileSystem.names(in: first.directory) == ["events", "journal"])
    #expect(try !FileSystem.exists(second.directory + "/checkpoint"))
  }

  @Test func `a record that is not whole counts for nothing, and is done again`() throws {
    let first = try workPartly(linears: 5)
    let journal = first.directory + "/journal"
    let bytes = try FileSystem.contents(of: journal, limit: 1 << 24)
    let last = try #require(journalRecords(in: bytes).last)
    try bench.flip(journal, at: last.lowerBound + 100)
    try bench.work(attempt: try JobAttempt.begin(in: bench.order.directory))
    #expect(bench.resumedLinears == 4)
    #expect(try bench.weights() == expected)
  }

  @Test func `three attempts in a row take what all before them did`() throws {
    _ = try workPartly(linears: 3)
    _ = try workPartly(linears: 4)
    try bench.work(attempt: try JobAttempt.begin(in: bench.order.directory))
    #expect(bench.resumedLinears == 7)
    #expect(try bench.weights() == expected)
  }

  @Test func `nothing comes of an attempt that was retired, and what it journalled counts`() throws {
    let job = bench.order.directory
    let first = try JobAttempt.begin(in: job)
    var count = 0
    #expect(throws: (any Error).self) {
      try bench.work(attempt: first) { event in
        guard case .linear = event else { return }
        count += 1
        // As 'quantease retry' does while the first worker lives on where nobody sees it.
        if count == 6 { try JobAttempt.retireAll(in: job) }
      }
    }
    #expect(try !FileSystem.exists(bench.files.result))
    #expect(try JobAttempt.all(in: job) == [])
    let second = try JobAttempt.begin(in: job)
    #expect(second.number == 2)
    try bench.work(attempt: second)
    #expect(try #require(bench.resumedLinears) >= 6)
    #expect(try bench.weights() == expected)
  }

  /// The host of the first one was cut off, and it goes on while the second works; both end.
  @Test(arguments: [1, 8, 14])
  func `a worker that nobody hears of any more spoils nothing`(_ linears: Int) throws {
    let job = bench.order.directory
    let first = try JobAttempt.begin(in: job)
    let other = try WorkerBench()
    other.order = bench.order
    var count = 0
    var second: [WorkerEvent] = []
    // It may end with an error, as what it made is not where it was.
    _ = try? bench.work(attempt: first) { event in
      guard case .linear = event else { return }
      count += 1
      if count == linears { second = try other.work(attempt: try JobAttempt.begin(in: job)) }
    }
    guard case .finished? = second.last else {
      Issue.record("the second worker did not end: \(second.suffix(2))")
      return
    }
    #expect(try bench.weights() == expected)
    #expect(try ChecksumManifest.problems(in: bench.files.result) == [])
    // A third finds the result.
    let third = try other.work(attempt: try JobAttempt.begin(in: job))
    guard case .finished? = third.first else {
      Issue.record("\(third)")
      return
    }
  }

  @Test func `a worker that is alone goes on with what attempts have journalled`() throws {
    _ = try workPartly(linears: 5)
    // Slurm was the queue, and is not any more.
    bench.order.isShared = nil
    try bench.work()
    #expect(bench.resumedLinears == 5)
    #expect(try bench.weights() == expected)
  }

  @Test(arguments: [true, false])
  func `what a retired worker finds out of its job stands for nothing`(_ isEarly: Bool) throws {
    let job = bench.order.directory
    let first = try JobAttempt.begin(in: job)
    let step = isEarly ? "reading \(bench.order.calibration)" : "reading the checkpoint"
    #expect(throws: (any Error).self) {
      try bench.work(attempt: first) { event in
        guard event == .step(step) else { return }
        // As 'quantease retry' does, with other settings from then on.
        try JobAttempt.retireAll(in: job)
        try bench.prepareRetry()
      }
    }
    for file in [bench.files.tokens, bench.files.contents, bench.files.identity] {
      #expect(try !FileSystem.exists(file), "\(file)")
    }
    #expect(first.isOutdated)
  }

  @Test func `a retired attempt whose directory its worker made anew hands nothing over`() throws {
    let job = bench.order.directory
    let first = try JobAttempt.begin(in: job)
    #expect(throws: (any Error).self) {
      try bench.work(attempt: first) { event in
        guard event == .step("verifying the result") else { return }
        try JobAttempt.retireAll(in: job)
        // As a run does that makes the place for its output.
        try FileSystem.createDirectories(first.directory)
        try FileSystem.move(job + "/retired.1/checkpoint", to: first.directory + "/checkpoint")
      }
    }
    #expect(try !FileSystem.exists(bench.files.result))
    // It is not in the way of the next retry, either.
    try JobAttempt.retireAll(in: job)
    #expect(try JobAttempt.all(in: job).isEmpty && FileSystem.exists(job + "/retired.1"))
  }

  @Test func `a job that is tried again goes on by the kernels of its first worker`() throws {
    bench.backend = OpenBLASBackend(threads: 2, bfloat16: .converting)
    let first = try workPartly(linears: 3)
    try JobAttempt.retireAll(in: bench.order.directory)
    try bench.prepareRetry()
    #expect(first.isOutdated)
    // Nobody knows yet what it is.
    #expect(try JobWorker.kernels(ofJobIn: bench.order.directory) == nil)
    bench.backend = OpenBLASBackend(threads: 2)
    var kernels: [String?] = []
    bench.restart = { kernels.append(try? JobWorker.kernels(ofJobIn: self.bench.order.directory)) }
    try bench.work(attempt: JobAttempt.begin(in: bench.order.directory))
    #expect(kernels == [OpenBLASBackend(threads: 2, bfloat16: .converting).kernels(for: .bfloat16)])
  }

  @Test func `the first attempt takes the journal's space before the work`() throws {
    let attempt = try workPartly(linears: 1)
    let size = try FileSystem.fileSize(attempt.directory + "/journal")
    _ = try workPartly(linears: 9)
    // As long with one linear as with nine.
    #expect(try FileSystem.fileSize(attempt.directory + "/journal") == size && size > 20_000)
  }
}
