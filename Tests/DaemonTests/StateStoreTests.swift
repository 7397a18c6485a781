import CLMDB
import Glibc
import SystemIO
import TestSupport
import Testing

@testable import Daemon

struct StateStoreTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func open() throws -> StateStore { try StateStore.open(directory: directory.path) }

  /// A job with every field set, of the size that a large model's has.
  private static func fullJob(_ id: String, linears: Int = 320) -> JobRecord {
    var job = JobRecord(id: id, name: "m", arrivedAt: 1.5)
    (job.phase, job.startedAt, job.finishedAt, job.attempts) = (.failed, 2.25, 3.5, 2)
    (job.secondsWorked, job.digest, job.output, job.step) = (7.125, "abc", "/o/m", "eine Stufe")
    job.plan = WorkerEvent.Plan(architecture: "llama", layerCount: 80, linearCount: linears, memoryBytes: 1)
    job.linears = (0..<linears).map {
      WorkerEvent.Linear(
        name: "model.layers.\($0).self_attn.q_proj", layer: $0, relativeError: 1 / Double($0 + 3))
    }
    (job.secondsRemaining, job.pausedBecause) = (0.1, "no \"space\"\n")
    (job.retryAt, job.heldSince, job.priority, job.lastProgressAt) = (9.5, 1.25, -3, 8.5)
    job.shortage = job.failure?.shortage
    job.catchingUp = WorkerEvent.CatchingUp(layer: 1, until: 3, secondsRemaining: 2)
    job.breakdowns = ["signal 9"]
    job.summary = WorkerEvent.Summary(meanRelativeError: 0.1, bitsPerWeight: 4.25)
    job.failure = JobFailure(.noSpace, "full", code: 73, shortage: .init(path: "/o", neededBytes: 5))
    return job
  }

  @Test func `rows survive reopening, every field of them`() throws {
    let jobs = (0..<20).map { Self.fullJob("job-\($0 + 10)", linears: 20 * $0) }
    let counters = StatusSnapshot.Counters(published: 1, failed: 2, linearsQuantized: 3, workerRestarts: 4)
    do {
      let store = try open()
      for job in jobs { try store.save(job) }
      try store.save(jobs[3], counters: counters)
    }
    #expect(try open().jobs() == jobs)
    #expect(try open().counters() == counters)
  }

  @Test func `a row is replaced, and long ones grow no file without end`() throws {
    let store = try open()
    for attempt in 1...200 {
      var job = Self.fullJob("a")
      job.attempts = attempt
      try store.save(job)
    }
    #expect(try store.jobs().map(\.attempts) == [200])
    #expect(try FileSystem.fileSize(store.path) < 2_000_000)
  }

  @Test func `a full map grows, and nothing is lost`() throws {
    let store = try StateStore(
      path: directory.file(StateStore.fileName), isReadOnly: false, initialMapBytes: 1 << 17)
    let jobs = (10..<50).map { Self.fullJob("job-\($0)") }
    for job in jobs { try store.save(job) }
    #expect(try store.jobs() == jobs)
    #expect(try open().jobs() == jobs)
  }

  @Test func `a reader that was killed keeps no page from being used again`() async throws {
    let store = try open()
    try store.save(Self.fullJob("a"))
    await #expect(processExitsWith: .signal(SIGKILL)) { [path = directory.path as String] in
      var (environment, transaction): (OpaquePointer?, OpaquePointer?) = (nil, nil)
      unsafe mdb_env_create(&environment)
      let flags = UInt32(MDB_NOSUBDIR | MDB_NOTLS | MDB_RDONLY)
      #expect(unsafe mdb_env_open(environment, "\(path)/\(StateStore.fileName)", flags, 0o600) == MDB_SUCCESS)
      #expect(unsafe mdb_txn_begin(environment, nil, UInt32(MDB_RDONLY), &transaction) == MDB_SUCCESS)
      raise(SIGKILL)
    }
    for _ in 1...200 { try store.save(Self.fullJob("a")) }
    #expect(try FileSystem.fileSize(store.path) < 2_000_000)
  }

  @Test func `without a state there is nothing to read, and nothing is made`() throws {
    #expect(try StateStore.reading(directory: directory.path) == nil)
    #expect(try StateStore.reading(directory: directory.file("missing")) == nil)
    #expect(try FileSystem.names(in: directory.path) == [])
  }

  @Test func `another process reads beside the one that writes`() async throws {
    let store = try open()
    try store.save(Self.fullJob("first"))
    await #expect(processExitsWith: .success) { [path = directory.path as String] in
      let reader = try #require(try StateStore.reading(directory: path))
      #expect(try reader.jobs().map(\.id) == ["first"])
    }
    try store.save(Self.fullJob("second"))
    await #expect(processExitsWith: .success) { [path = directory.path as String] in
      let reader = try #require(try StateStore.reading(directory: path))
      #expect(try reader.jobs().map(\.id) == ["first", "second"])
      #expect(throws: StateError.self) { try reader.save(Self.fullJob("third")) }
    }
    #expect(try store.jobs().map(\.id) == ["first", "second"])
  }

  @Test func `a row that this version cannot read is none, and hides no other`() throws {
    do {
      let store = try open()
      try store.save(Self.fullJob("b"))
      try store.save(Self.fullJob("a"))
    }
    // A name of the same length that no version has.
    let path = directory.file(StateStore.fileName)
    var bytes = try FileSystem.contents(of: path, limit: 1 << 24)
    let row = try #require(Self.place(of: #""id":"a""#, in: bytes))
    let name = try #require(Self.place(of: #""name""#, in: bytes, from: max(0, row - 40_000)))
    bytes.replaceSubrange(name..<name + 6, with: Array(#""nama""#.utf8))
    try FileSystem.removeTree(path)
    try directory.write(bytes, to: StateStore.fileName)
    #expect(try open().jobs().count == 1)
  }

  private static func place(of text: String, in bytes: [UInt8], from start: Int = 0) -> Int? {
    let pattern = Array(text.utf8)
    return bytes.indices.dropFirst(start).first { bytes[$0...].starts(with: pattern) }
  }

  // MARK: Damage

  @Test(arguments: [1, 100, 5_000, 8_192, 12_288, 20_000])
  func `a file that lost its end is put aside, and no signal ends the process`(_ length: Int) async throws {
    do {
      let store = try open()
      for number in 0..<10 { try store.save(Self.fullJob("job-\(number)")) }
    }
    let path = directory.file(StateStore.fileName)
    let bytes = try FileSystem.contents(of: path, limit: 1 << 24)
    #expect(bytes.count > 20_000)
    try FileSystem.removeTree(path)
    try directory.write(Array(bytes[..<length]), to: StateStore.fileName)
    await #expect(processExitsWith: .success) { [directory = directory.path as String] in
      let store = try StateStore.open(directory: directory)
      try store.save(Self.fullJob("new", linears: 0))
      #expect(try store.jobs().contains { $0.id == "new" })
    }
    #expect(try FileSystem.names(in: directory.path).contains("state.mdb.damaged"))
  }

  @Test func `whoever only reads a file that lost its end is told so`() async throws {
    do {
      let store = try open()
      for number in 0..<10 { try store.save(Self.fullJob("job-\(number)")) }
    }
    let path = directory.file(StateStore.fileName)
    let bytes = try FileSystem.contents(of: path, limit: 1 << 24)
    try FileSystem.removeTree(path)
    try directory.write(Array(bytes[..<12_288]), to: StateStore.fileName)
    await #expect(processExitsWith: .success) { [directory = directory.path as String] in
      #expect(throws: StateError.self) { try StateStore.reading(directory: directory)?.jobs() }
    }
    #expect(try FileSystem.names(in: directory.path).contains("state.mdb"))
  }

  @Test func `a file of something else is put aside, and an older one gives way to it`() throws {
    for text in ["first", "second"] {
      let garbage = [UInt8](repeating: 0x41, count: 10_000) + Array(text.utf8)
      try FileSystem.removeTree(directory.file(StateStore.fileName))
      try directory.write(garbage, to: StateStore.fileName)
      #expect(try open().jobs() == [])
      let aside = directory.file("state.mdb.damaged")
      #expect(try FileSystem.contents(of: aside, limit: 1 << 20) == garbage)
    }
  }

  @Test func `a directory that may not be used is an error and no damage`() throws {
    try FileSystem.createDirectories(directory.file("state.mdb"))
    #expect(throws: StateError.self) { try open() }
    #expect(try FileSystem.names(in: directory.path).contains("state.mdb"))
  }
}
