import SystemIO
import TestSupport

@testable import Daemon

/// A spool with its state, and what the daemon's steps leave in it.
final class LedgerFixture {
  let directory: TemporaryDirectory
  let spool: Spool
  let stateDirectory: String
  let cacheDirectory: String

  static let id = "20261123T231502Z-00a7-my-model-7b"
  static let name = "my-model-7b"

  init() throws {
    directory = try TemporaryDirectory(isInMemory: true)
    spool = Spool(root: directory.file("spool"))
    stateDirectory = directory.file("state")
    cacheDirectory = directory.file("cache")
    try spool.create()
  }

  /// Opens the ledger as a daemon does that starts. No two may be open at once: the database is locked by process.
  func withLedger<Result>(_ body: (JobLedger) throws -> Result) throws -> Result {
    try body(
      JobLedger(
        spool: spool, state: try StateStore.open(directory: stateDirectory), cacheDirectory: cacheDirectory))
  }

  /// Saves a row as a daemon that ended had it.
  func save(_ job: JobRecord) throws { try StateStore.open(directory: stateDirectory).save(job) }

  static func job(_ phase: JobRecord.Phase = .queued, id: String = id, name: String = name) -> JobRecord {
    var job = JobRecord(id: id, name: name, arrivedAt: 1_000)
    job.phase = phase
    return job
  }

  // MARK: Directories

  func makeSource(_ id: String = id, in folder: String? = nil) throws {
    let path = FileSystem.join(folder ?? spool.working, id)
    try FileSystem.createDirectories(path)
    try AtomicFile.write("weights of \(id)", to: FileSystem.join(path, "model.safetensors"))
  }

  func makeCheckpoint(_ id: String = id) throws {
    let files = JobFiles(FileSystem.join(spool.partial, id))
    try FileSystem.createDirectories(files.result)
    try AtomicFile.write("result of \(id)", to: FileSystem.join(files.result, "model.safetensors"))
    try AtomicFile.write("", to: files.journal)
  }

  func makeCache(_ id: String = id) throws {
    try FileSystem.createDirectories(cacheDirectory)
    for suffix in ["", "-lock"] {
      try AtomicFile.write("", to: FileSystem.join(cacheDirectory, "\(id).boot.activations.mdb\(suffix)"))
    }
  }

  func makeOutput(_ text: String, named name: String = name) throws {
    try FileSystem.createDirectories(FileSystem.join(spool.output, name))
    try AtomicFile.write(text, to: FileSystem.join(spool.output, "\(name)/model.safetensors"))
  }

  func output(_ name: String = name) throws -> String {
    try text(FileSystem.join(spool.output, "\(name)/model.safetensors"))
  }

  func text(_ path: String) throws -> String {
    String(decoding: try FileSystem.contents(of: path, limit: 1 << 20), as: UTF8.self)
  }
}
