import Calibration
import Checkpoint
import Collective
import Compute
import Export
import FoundationEssentials
import Pipeline
import SystemIO

/// A job of a command's, in a directory of its own: the same command, started again, goes on with it.
///
/// It is done by the daemon's worker, without a daemon. The directory has what a job's has (``JobFiles``), and the finished
/// checkpoint goes to its place by one rename.
public struct ResumableJob {
  private let order: JobOrder
  private let output: String
  private let files: JobFiles
  /// Held from before anything is looked at until the result is published.
  private let lock: FileLock
  /// What the published result is; written before it is published.
  private var finishedFile: String { FileSystem.join(order.directory, "finished") }
  /// The digest of the calibration file.
  private var calibrationFile: String { FileSystem.join(order.directory, Self.calibrationName) }
  private static let calibrationName = "calibration"

  /// Makes the directory, or takes over what an earlier command has left in it.
  /// - Parameters:
  ///   - order: without the checkpoint's files
  ///   - output: where the result appears
  ///   - isNetworked: whether a directory is on a file system that other machines write to
  /// - Throws: ``ResumableJobError``, ``FileError``
  public init(
    _ order: JobOrder, output: String,
    isNetworked: (String) throws(FileError) -> Bool = FileSystem.isNetworked
  ) throws {
    guard try !isNetworked(FileSystem.nearestExisting(order.cacheDirectory)) else {
      throw ResumableJobError.networkedCache(order.cacheDirectory)
    }
    for directory in [order.directory, order.cacheDirectory]
    where directory == order.model || directory.hasPrefix(order.model + "/") {
      throw ResumableJobError.insideModel(directory: directory, model: order.model)
    }
    self.output = output
    let files = JobFiles(order.directory)
    self.files = files
    try Self.requireJobsDirectory(order.directory)
    try FileSystem.createDirectories(order.directory)
    lock = try JobWorker.waitForLock(files, job: order.id)
    var order = order
    // Caches of several jobs may be in one directory, and the names of their results alike.
    var place = SHA256Digest()
    place.update(order.directory)
    order.id += "-\(place.finish().prefix(12))"
    order.source = try QuantizationRun.sourceFiles(of: order.model, symlinks: .follow)
    var earlierSource = order.source
    if try FileSystem.exists(files.order) {
      let earlier = try JobOrder(path: files.order)
      earlierSource = earlier.source
      let differences = try Self.differences(earlier, order)
      guard differences.isEmpty else {
        throw ResumableJobError.otherJob(directory: order.directory, differences: differences)
      }
    }
    self.order = order
    try requireSameFiles(isKnown: earlierSource == order.source)
    try order.write(to: files.order)
  }

  /// Refuses a directory with something else in it: a worker clears away what it does not know.
  private static func requireJobsDirectory(_ directory: String) throws {
    let files = JobFiles(directory)
    guard try FileSystem.exists(directory), try !FileSystem.exists(files.order) else { return }
    // A command may have ended before it wrote its order.
    for name in [files.order, FileSystem.join(directory, calibrationName)] {
      try AtomicFile.removeLeftovers(of: name)
    }
    let own = [FileSystem.name(of: files.lock), calibrationName]
    if let name = try FileSystem.names(in: directory).first(where: { !own.contains($0) }) {
      throw ResumableJobError.notAJob(directory: directory, name: name)
    }
  }

  /// - Parameter isKnown: whether the checkpoint's files are, by inode and times, those of the last command. On another
  ///   machine they may have others and be the same: then their bytes tell.
  private func requireSameFiles(isKnown: Bool) throws {
    func other(_ what: String) -> ResumableJobError {
      .otherJob(directory: order.directory, differences: ["\(what) has other bytes now"])
    }
    let isBegun = try FileSystem.exists(calibrationFile)
    // What was drawn of it is kept.
    if try !isBegun || order.calibration.files.allSatisfy({ try FileSystem.kind(of: $0.path) != nil }) {
      let digests = try order.calibration.files.map { try SHA256Digest.of(file: $0.path, symlinks: .follow) }
      let calibration = Array(digests.joined(separator: "\n").utf8)
      if isBegun, try FileSystem.contents(of: calibrationFile, limit: 1 << 20) != calibration {
        throw other("\(order.calibration)")
      }
      try AtomicFile.rewrite(calibration, to: calibrationFile)
    }
    guard !isKnown else { return }
    if try FileSystem.exists(files.contents) {
      let now = try JobIdentity.contents(of: order, symlinks: .follow) {}
      guard try FileSystem.contents(of: files.contents, limit: 1 << 26) == Array(now.utf8) else {
        throw other(order.model)
      }
    } else {
      // Nothing is done yet but, perhaps, the text tokenized, by another model's tokenizer.
      for file in [files.tokens, files.identity] { try FileSystem.removeTree(file) }
    }
  }

  /// The report of the result, every byte of which is looked at, if this job's stands in its place already.
  /// - Throws: ``PipelineError/outputExists(_:)`` if something else does; ``JobFailure`` if it is not what was written
  public func finished() throws -> Report? {
    guard try FileSystem.exists(output) else { return nil }
    guard let report = try? Report(directory: output), let identity = report.identity,
      try FileSystem.exists(finishedFile),
      try FileSystem.contents(of: finishedFile, limit: 128) == Array(identity.utf8)
    else { throw PipelineError.outputExists(output) }
    if let problem = try OutputVerification.problems(of: output).first {
      throw JobFailure(
        .broken, "\(output): \(problem); remove it, and give the command once more", code: 65)
    }
    try removeLeftovers()
    return report
  }

  /// Why the job does not fit into a device's memory; see ``JobWorker/shortage(of:on:symlinks:)``.
  public func shortage(on backend: any ComputeBackend) -> PipelineError? {
    JobWorker.shortage(of: order, on: backend, symlinks: .follow)
  }

  /// Works until the result stands in its place, complete, verified and on the disk.
  /// - Parameter ranks: the processes that share the work, of which this is the first
  public func run(
    by backend: any ComputeBackend, ranks: Ranks = .alone, send: @escaping (WorkerEvent) -> Void
  ) throws -> Report {
    try requireOneFileSystem()
    try JobWorker(order, backend: backend, symlinks: .follow, holding: lock, ranks: ranks, send: send).run()
    let report = try Report(directory: files.result)
    try AtomicFile.write(report.identity ?? "", to: finishedFile)
    try FileSystem.move(files.result, to: output)
    try FileSystem.synchronizeDirectory(FileSystem.parent(of: output))
    try removeLeftovers()
    return report
  }

  private func removeLeftovers() throws {
    for file in [files.journal, files.tokens] { try FileSystem.removeTree(file) }
    try JobWorker.removeCaches(of: order.id, in: order.cacheDirectory)
  }

  /// Finds out, before the work, that the result could not be published by a rename.
  private func requireOneFileSystem() throws {
    let name = ".quantease-\(ThisProcess.identifier)"
    let probe = FileSystem.join(order.directory, name)
    let target = FileSystem.join(FileSystem.parent(of: output), name)
    try FileSystem.createDirectories(FileSystem.parent(of: output))
    try FileSystem.createDirectories(probe)
    do { try FileSystem.move(probe, to: target) } catch {
      try FileSystem.removeTree(probe)
      guard error.errno == .improperLink else { throw error }
      throw ResumableJobError.otherFileSystem(directory: order.directory, output: output)
    }
    try FileSystem.removeTree(target)
  }

  /// What decides the result and is another in the two.
  private static func differences(_ earlier: JobOrder, _ now: JobOrder) throws -> [String] {
    func settings(_ order: JobOrder) throws -> [String: JSONValue] {
      try JSONValue(parsing: Array(try JSONEncoder().encode(order.settings))).object ?? [:]
    }
    let (one, other) = (try settings(earlier), try settings(now))
    let keys = Set(one.keys).union(other.keys).filter { one[$0] != other[$0] }.sorted()
    return (earlier.model == now.model ? [] : ["the model was \(earlier.model)"])
      + (earlier.calibration == now.calibration ? [] : ["the calibration was \(earlier.calibration)"])
      + keys.map { "\($0) was \(one[$0]?.compactText ?? "not set")" }
  }
}

/// Why a command cannot go on with what a directory has.
public enum ResumableJobError: Error, Equatable, Sendable, CustomStringConvertible {
  case otherJob(directory: String, differences: [String])
  case otherFileSystem(directory: String, output: String)
  case networkedCache(String)
  case insideModel(directory: String, model: String)
  case notAJob(directory: String, name: String)

  public var description: String {
    switch self {
    case .otherJob(let directory, let differences):
      "\(directory) has another job: \(differences.joined(separator: ", ")); give the command that began it, or another "
        + "directory"
    case .otherFileSystem(let directory, let output):
      "\(directory) is not on the file system of \(output), where the result appears by one rename: take a directory "
        + "beside it"
    case .networkedCache(let directory):
      "the activation cache would be in \(directory), on a network file system, which LMDB's files must not be on: give "
        + "--cache-dir a directory on a local disk"
    case .insideModel(let directory, let model):
      "\(directory) is inside \(model), of which every file is a part of the model: take a directory outside of it"
    case .notAJob(let directory, let name):
      "\(directory) is no job's directory, it has \(name): take one that is empty or not there yet"
    }
  }

  /// By sysexits(3).
  public var exitCode: Int32 {
    switch self {
    case .otherJob, .insideModel, .notAJob: 64
    case .otherFileSystem, .networkedCache: 78
    }
  }
}
