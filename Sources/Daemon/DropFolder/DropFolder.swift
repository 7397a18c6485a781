import Checkpoint
import FoundationEssentials
import SystemIO

/// Why a drop could not be claimed. The next scan sees it anew.
public enum ClaimError: Error, Equatable, Sendable, CustomStringConvertible {
  case notReady(String)
  case changed(String)

  public var description: String {
    switch self {
    case .notReady(let name): "\(name) is not ready"
    case .changed(let name): "\(name) has changed since it was found ready"
    }
  }
}

/// The directory into which people and programs put checkpoints: decides which of them are complete.
///
/// ``scan(now:)`` decides, by looking at everything; the watch only says when a look is worth while. All
/// waiting is measured with the clock that the caller passes in. To be used from one thread.
public final class DropFolder {
  /// A drop that is a job's, and stays where it was dropped because it cannot be moved.
  public struct Claim: Sendable, Equatable {
    let inode: UInt64
    /// ``DropContents/digest`` that it has to have; nil if whatever stands there is the job's.
    let contents: String?
  }

  public let spool: Spool
  /// For how long nothing may change in a drop that shows its completeness by nothing else.
  public var settleTime: Duration
  public let scansToSettle: Int
  /// Why the last scan could not list the folder, if it could not; it found no drops then.
  public private(set) var fault: FileError?
  /// Why nothing is watched, if so; scans find everything all the same, only later.
  public private(set) var watchFault: FileError?

  private let isNetworked: (String) -> Bool
  private let hasNoWriter: (String) -> Bool?
  private let verifier = ManifestVerifier()
  private var watch: DirectoryWatch?
  private var records: [String: Record] = [:]
  /// GGUF models that stand in the folder as they are, by the name of the first part.
  private var looseModels: [String: LooseModel] = [:]
  private var nextArrival = 0
  /// The directories that came by a rename, by name, with their inodes.
  private var renamedIn: [String: UInt64] = [:]

  private struct Record {
    let arrival: Int
    let inode: UInt64
    var readiness: Readiness
    var state = Drop.State.waiting(reasons: [])
  }

  /// - Parameters:
  ///   - settleTime: See ``settleTime``.
  ///   - scansToSettle: How many scans must find a drop unchanged, however long they are apart.
  public convenience init(spool: Spool, settleTime: Duration, scansToSettle: Int = 3) {
    self.init(
      spool: spool, settleTime: settleTime, scansToSettle: scansToSettle,
      // Where nobody can tell, the careful answer.
      isNetworked: { (try? FileSystem.isNetworked($0)) ?? true },
      hasNoWriter: { FileSystem.hasNoWriter($0) })
  }

  /// With other answers to the questions that only a kernel with such file systems can answer.
  init(
    spool: Spool, settleTime: Duration, scansToSettle: Int = 3,
    isNetworked: @escaping (String) -> Bool, hasNoWriter: @escaping (String) -> Bool?
  ) {
    self.spool = spool
    self.settleTime = settleTime
    self.scansToSettle = scansToSettle
    self.isNetworked = isNetworked
    self.hasNoWriter = hasNoWriter
    do {
      watch = try DirectoryWatch()
      try watch?.add(spool.incoming)
    } catch {
      watchFault = error
    }
  }

  // MARK: Watch

  /// Readable when ``drain()`` is due; nil where the system has no watch to spare.
  public var watchDescriptor: Int32? { watch?.descriptor }

  /// Takes in the news without waiting.
  /// - Returns: Whether they make a scan worth while.
  public func drain() -> Bool {
    let events: [DirectoryWatch.Event]
    do {
      events = try watch?.read() ?? []
    } catch {
      watchFault = error
      watch = nil
      return true
    }
    var isScanDue = false
    for event in events {
      if event.kind == .overflow { renamedIn = [:] }
      if event.directory == spool.incoming {
        note(event)
        isScanDue = isScanDue || !event.name.hasPrefix(".")
      } else {
        // Inside a drop: what may be the last step of an upload.
        isScanDue = isScanDue || [.closedAfterWrite, .movedIn, .overflow].contains(event.kind)
      }
    }
    return isScanDue
  }

  private func note(_ event: DirectoryWatch.Event) {
    // With the inode, as another directory may have the name by the time of the scan.
    let found =
      event.kind == .movedIn && event.isDirectory
      ? try? FileSystem.stamp(of: FileSystem.join(spool.incoming, event.name)) : nil
    renamedIn[event.name] = found?.stamp.inode
  }

  // MARK: Scan

  /// Looks at every name in the folder, but for hidden ones and those that the sources of jobs have there.
  /// - Parameters:
  ///   - now: The present of a clock that never jumps.
  ///   - claims: What stands there under its own name and is a job's, by that name.
  /// - Returns: What is there, in the order of arrival.
  public func scan(now: ContinuousClock.Instant, claims: [String: [Claim]] = [:]) -> [Drop] {
    LooseModel.giveBack(in: spool.incoming)
    let names: [String]
    do {
      names = try FileSystem.names(in: spool.incoming).filter { name in
        !name.hasPrefix(".") && Spool.job(keptUnder: name) == nil
          && !(claims[name] ?? []).contains { isTaken(name, by: $0) }
      }
      fault = nil
    } catch {
      fault = error
      return []
    }
    watchAgain()
    let circumstances = Readiness.Circumstances(
      now: now, settleTime: settleTime, scansToSettle: scansToSettle,
      isNetworked: isNetworked(spool.incoming), verifier: verifier, hasNoWriter: hasNoWriter)
    let loose = Set(names.filter(isLooseFile).map(GGUFFiles.firstPart))
    looseModels = looseModels.filter { loose.contains($0.key) }
    let drops = names.filter { !loose.contains(GGUFFiles.firstPart(of: $0)) } + loose.sorted()
    let present = Set(drops)
    for name in records.keys where !present.contains(name) { forget(name) }
    for name in drops { loose.contains(name) ? gather(name, circumstances) : look(at: name, circumstances) }
    renamedIn = [:]
    return records.map { Drop(name: $0.key, state: $0.value.state, arrival: $0.value.arrival) }
      .sorted { $0.arrival < $1.arrival }
  }

  /// What `quantease submit` has begun to copy and nobody will end: its process is gone, and nothing has been written for
  /// an hour. On a network file system the process may be another machine's, and nothing is said to be abandoned.
  /// - Returns: the paths of the hidden directories
  public func abandonedUploads(now: Date) -> [String] {
    guard !isNetworked(spool.incoming), let names = try? FileSystem.names(in: spool.incoming) else {
      return []
    }
    return names.filter(StagingDirectory.isAbandoned).map { FileSystem.join(spool.incoming, $0) }.filter {
      path in
      guard let own = try? FileSystem.stamp(of: path).stamp, let contents = try? DropContents(directory: path)
      else { return false }
      let newest = (contents.files.map(\.stamp) + [own]).map(\.modifiedNanoseconds).max() ?? 0
      return now.timeIntervalSince1970 - Double(newest) / 1e9 > Self.secondsUntilAbandoned
    }
  }

  private static let secondsUntilAbandoned = 3_600.0

  private func isTaken(_ name: String, by claim: Claim) -> Bool {
    let path = FileSystem.join(spool.incoming, name)
    guard (try? FileSystem.stamp(of: path).stamp.inode) == claim.inode else { return false }
    guard let contents = claim.contents else { return true }
    return (try? DropContents(directory: path))?.digest == contents
  }

  private func look(at name: String, _ circumstances: Readiness.Circumstances) {
    let path = FileSystem.join(spool.incoming, name)
    let found: (stamp: FileStamp, kind: FileKind)
    do {
      found = try FileSystem.stamp(of: path)
    } catch {
      if error.errno == .noSuchFileOrDirectory, !name.contains("\u{FFFD}") { return forget(name) }
      let isNameMended = name.contains("\u{FFFD}")
      var record = records[name] ?? makeRecord(name, inode: 0)
      record.state =
        isNameMended ? DropRefusal.nameNotUTF8(name).state : .waiting(reasons: [error.description])
      records[name] = record
      return
    }
    if let record = records[name], record.inode != found.stamp.inode { forget(name) }
    var record = records[name] ?? makeRecord(name, inode: found.stamp.inode)
    switch found.kind {
    case .directory:
      record.readiness.cameByRename = renamedIn[name] == found.stamp.inode && !circumstances.isNetworked
      record.state = record.readiness.decide(circumstances)
    case .regular where GGUFFiles.isProjector(name):
      record.state = .waiting(reasons: ["\(name) belongs into a directory with the model that it is for"])
    case .regular:
      record.state = .waiting(reasons: ["\(name) is a file, not a directory with a checkpoint in it"])
    case .symbolicLink: record.state = DropRefusal.symbolicLink(name).state
    case .other: record.state = DropRefusal.notAFile(name).state
    }
    records[name] = record
  }

  private func isLooseFile(_ name: String) -> Bool {
    GGUFFiles.isGGUF(name) && !GGUFFiles.isProjector(name)
      && (try? FileSystem.stamp(of: FileSystem.join(spool.incoming, name)).kind) == .regular
  }

  /// Looks at a GGUF model that stands in no directory.
  private func gather(_ name: String, _ circumstances: Readiness.Circumstances) {
    var model = looseModels[name] ?? LooseModel(name: name, in: spool.incoming)
    guard let reasons = model.look(circumstances) else {
      // It is a directory of another name now.
      looseModels[name] = nil
      return forget(name)
    }
    looseModels[name] = model
    var record = records[name] ?? makeRecord(name, inode: 0)
    record.state = .waiting(reasons: reasons)
    records[name] = record
  }

  private func makeRecord(_ name: String, inode: UInt64) -> Record {
    let directory = FileSystem.join(spool.incoming, name)
    // A marker that comes later should wake the loop; without a watch the next scan sees it.
    try? watch?.add(directory)
    defer { nextArrival += 1 }
    return Record(
      arrival: nextArrival, inode: inode, readiness: Readiness(name: name, directory: directory))
  }

  private func forget(_ name: String) {
    if records.removeValue(forKey: name) != nil { verifier.forget(name) }
  }

  /// The folder may have been made anew; a watch that is there stays as it is.
  private func watchAgain() {
    do {
      try watch?.add(spool.incoming)
      if watch != nil { watchFault = nil }
    } catch {
      watchFault = error
    }
  }

  /// After which time the next scan may change something, if nothing wakes the loop before.
  public var timeToNextScan: Duration {
    var paces = Set(records.values.map(\.readiness.pace))
    if !looseModels.isEmpty { paces.insert(.settling) }
    if paces.contains(.verifying) { return .seconds(1) }
    if paces.contains(.settling) {
      return min(max(settleTime / max(scansToSettle - 1, 1), .milliseconds(100)), .seconds(60))
    }
    return .seconds(60)
  }

  // MARK: Claim

  /// Takes a drop that the last scan found ready, and forgets it.
  /// - Parameter take: makes it a job's: gets the directory's inode, and its files as they were found ready
  /// - Throws: ``ClaimError``, or what `take` throws; the drop is then as it was.
  func claim(_ name: String, _ take: (UInt64, DropContents) throws -> Void) throws {
    guard let record = records[name], case .ready = record.state else { throw ClaimError.notReady(name) }
    let path = FileSystem.join(spool.incoming, name)
    guard try FileSystem.stamp(of: path).stamp.inode == record.inode,
      let contents = record.readiness.contents, (try? DropContents(directory: path)) == contents
    else { throw ClaimError.changed(name) }
    try take(record.inode, contents)
    forget(name)
  }
}
