import CLMDB
import FoundationEssentials
import Glibc
import SystemIO

/// The daemon's durable memory: one row per job, in a small LMDB file that is in step with the disk after every
/// change.
///
/// LMDB runs in its default, synchronous mode and not through a writable map, where a full disk would be a signal.
/// Other processes may read while the daemon writes.
@safe public final class StateStore {
  public static let fileName = "state.mdb"
  /// Address space to begin with, which costs nothing and grows; a job's row takes some kilobytes.
  private let initialMapBytes: Int

  /// More than LMDB's 126 readers and the header take.
  private static let lockByteCount = 16_384

  public let path: String
  /// How the file was found.
  public private(set) var origin = Origin.found

  public enum Origin: Sendable, Equatable {
    case found
    /// There was none.
    case made
    /// It was none that can be read, and is where the path says now.
    case replaced(String)
  }

  /// Nil while it has to be opened anew.
  private var environment: OpaquePointer?
  private var database = MDB_dbi()
  private let isReadOnly: Bool
  private let flags: Int32

  /// Opens or creates the database in `directory`. One that LMDB cannot read is put aside: the spool's directories
  /// tell nearly all that it knew.
  /// - Throws: ``StateError``, ``FileError``
  public static func open(directory: String) throws -> StateStore {
    try FileSystem.createDirectories(directory)
    let path = FileSystem.join(directory, fileName)
    let isThere = try FileSystem.exists(path)
    do {
      let store = try StateStore(path: path, isReadOnly: false)
      try store.check()
      store.origin = isThere ? .found : .made
      return store
    } catch let error as StateError where error.isDamage {
      for suffix in ["", "-lock"] where try FileSystem.exists(path + suffix) {
        try FileSystem.removeTree("\(path)\(suffix).damaged")
        try FileSystem.move(path + suffix, to: "\(path)\(suffix).damaged")
      }
      let store = try StateStore(path: path, isReadOnly: false)
      store.origin = .replaced("\(path).damaged")
      return store
    }
  }

  /// Opens the database in `directory` for reading; nil if there is none.
  ///
  /// LMDB has readers write their place into its lock file. Who may not do that reads without: a row that the
  /// daemon changes in that very moment may then be missing.
  public static func reading(directory: String) throws -> StateStore? {
    let path = FileSystem.join(directory, fileName)
    guard try FileSystem.exists(path) else { return nil }
    do { return try StateStore(path: path, isReadOnly: true) } catch {
      guard error.code == EACCES || error.code == EROFS else { throw error }
      return try StateStore(path: path, isReadOnly: true, flags: MDB_NOLOCK)
    }
  }

  init(
    path: String, isReadOnly: Bool, flags: Int32 = 0, initialMapBytes: Int = 1 << 30
  ) throws(StateError) {
    self.path = path
    self.initialMapBytes = initialMapBytes
    self.isReadOnly = isReadOnly
    self.flags = flags
    try open()
  }

  deinit { unsafe mdb_env_close(environment) }

  private func open() throws(StateError) {
    if !isReadOnly { try Self.reserveLock(path + "-lock") }
    var created: OpaquePointer?
    try Self.check(unsafe mdb_env_create(&created), path)
    guard let environment = unsafe created else { preconditionFailure("LMDB gave no environment") }
    do throws(StateError) {
      try Self.check(unsafe mdb_env_set_mapsize(environment, initialMapBytes), path)
      let flags = UInt32(MDB_NOSUBDIR | MDB_NOTLS | (isReadOnly ? MDB_RDONLY : 0) | flags)
      try Self.check(unsafe mdb_env_open(environment, path, flags, 0o640), path)
      try unsafe Self.completeLength(environment, path, isReadOnly: isReadOnly)
      var transaction: OpaquePointer?
      try Self.check(
        unsafe mdb_txn_begin(environment, nil, UInt32(isReadOnly ? MDB_RDONLY : 0), &transaction), path)
      let code = unsafe mdb_dbi_open(transaction, nil, 0, &database)
      guard code == MDB_SUCCESS else {
        unsafe mdb_txn_abort(transaction)
        throw StateError(code: code, path: path)
      }
      try Self.check(unsafe mdb_txn_commit(transaction), path)
    } catch {
      unsafe mdb_env_close(environment)
      throw error
    }
    unsafe self.environment = environment
  }

  /// Whether what is written still goes to the file that others find under its name.
  var isInPlace: Bool {
    guard let environment = unsafe environment else { return true }
    var descriptor: mdb_filehandle_t = 0
    var status = stat()
    guard unsafe mdb_env_get_fd(environment, &descriptor) == MDB_SUCCESS,
      unsafe fstat(descriptor, &status) == 0, let found = try? FileSystem.stamp(of: path).stamp
    else { return false }
    return found.inode == UInt64(status.st_ino)
  }

  /// Opens the file that is there now, or a new one.
  func reopen() throws {
    unsafe mdb_env_close(environment)
    unsafe environment = nil
    try FileSystem.createDirectories(FileSystem.parent(of: path))
    try open()
  }

  /// Runs `body` on the environment. LMDB gives one up whose last commit failed halfway, while the file holds what
  /// it held before: it is then opened anew.
  private func withEnvironment<Result>(_ body: (OpaquePointer?) throws -> Result) throws -> Result {
    do {
      if unsafe environment == nil { try open() }
      return try unsafe body(environment)
    } catch let error as StateError where error.code == MDB_PANIC {
      unsafe mdb_env_close(environment)
      unsafe environment = nil
      try open()
      return try unsafe body(environment)
    }
  }

  /// LMDB writes its lock file through a map: a page of it that the disk has no space for would be a SIGBUS.
  private static func reserveLock(_ path: String) throws(StateError) {
    do {
      // A full disk is no reason to do without a lock that is there already.
      if try FileSystem.exists(path), try FileSystem.fileSize(path) >= lockByteCount { return }
      try OutputFile(resuming: path).reserve(lockByteCount)
    } catch { throw StateError(code: error.errno.rawValue, path: path) }
  }

  /// Reading a page behind the end of a file that was cut off would be a SIGBUS. Zeros in its place are no page, which
  /// LMDB tells.
  private static func completeLength(
    _ environment: OpaquePointer, _ path: String, isReadOnly: Bool
  ) throws(StateError) {
    var info = unsafe MDB_envinfo()
    var status = MDB_stat()
    unsafe mdb_env_info(environment, &info)
    unsafe mdb_env_stat(environment, &status)
    let byteCount = unsafe (info.me_last_pgno + 1) * Int(status.ms_psize)
    do {
      guard try FileSystem.fileSize(path) < byteCount else { return }
      if isReadOnly { throw StateError(code: MDB_CORRUPTED, path: path) }
      try OutputFile(resuming: path).reserve(byteCount)
    } catch let error as FileError {
      throw StateError(code: error.errno.rawValue, path: path)
    } catch {
      throw StateError(code: MDB_CORRUPTED, path: path)
    }
  }

  /// Reads all that rows and free space are found by, as damage shows only where it is read.
  private func check() throws {
    let transaction = try unsafe StateTransaction(environment, isReadOnly: true, path: path)
    // Database 0 is LMDB's own list of free pages.
    for database in [0, database] { _ = try transaction.values(withPrefix: [], in: database) }
  }

  // MARK: Rows

  /// Every job, by identifier.
  public func jobs() throws -> [JobRecord] {
    // A row of another version is none.
    try rows(withPrefix: "job/").compactMap { try? JSONDecoder().decode(JobRecord.self, from: $0) }
  }

  public func counters() throws -> StatusSnapshot.Counters {
    let row = try rows(withPrefix: Self.countersKey).first
    return row.flatMap { try? JSONDecoder().decode(StatusSnapshot.Counters.self, from: $0) }
      ?? StatusSnapshot.Counters()
  }

  /// What is refused of the drop folder, as the daemon last saw it: that takes time, which a command has not.
  public func refusals() throws -> [String: Drop.Refusal] {
    let row = try rows(withPrefix: Self.refusalsKey).first
    return row.flatMap { try? JSONDecoder().decode([String: Drop.Refusal].self, from: $0) } ?? [:]
  }

  func save(_ refusals: [String: Drop.Refusal]) throws {
    try put([(Self.refusalsKey, Array(try JSONEncoder().encode(refusals)))])
  }

  /// Since when all jobs are held back.
  public func heldSince() throws -> Double? {
    try rows(withPrefix: Self.holdKey).first.flatMap {
      try? JSONDecoder().decode([Double].self, from: $0).first
    }
  }

  func save(heldSince: Double?) throws {
    try put([(Self.holdKey, Array(try JSONEncoder().encode(heldSince.map { [$0] } ?? [])))])
  }

  /// The mark of the spool that the jobs are in; nil if none is known yet.
  func spoolMark() throws -> String? {
    try rows(withPrefix: Self.spoolKey).first.map { String(decoding: $0, as: UTF8.self) }
  }

  func save(spoolMark: String) throws { try put([(Self.spoolKey, Array(spoolMark.utf8))]) }

  /// Writes a job's row, and the counters if they change with it, and returns when they are on the disk.
  public func save(_ job: JobRecord, counters: StatusSnapshot.Counters? = nil) throws {
    let encoder = JSONEncoder()
    var rows = [("job/\(job.id)", Array(try encoder.encode(job)))]
    if let counters { rows.append((Self.countersKey, Array(try encoder.encode(counters)))) }
    try put(rows)
  }

  private func put(_ rows: [(key: String, value: [UInt8])]) throws {
    do { try write(rows) } catch let error as StateError where error.code == MDB_MAP_FULL {
      try growMap()
      try write(rows)
    }
  }

  /// Doubles the map, which no transaction is open in.
  private func growMap() throws {
    try unsafe withEnvironment { environment in
      var info = unsafe MDB_envinfo()
      unsafe mdb_env_info(environment, &info)
      try Self.check(unsafe mdb_env_set_mapsize(environment, info.me_mapsize * 2), path)
    }
  }

  private func write(_ rows: [(key: String, value: [UInt8])]) throws {
    try unsafe withEnvironment { environment in
      // A reader that was killed would keep every page from being used again.
      try Self.check(unsafe mdb_reader_check(environment, nil), path)
      let transaction = try unsafe StateTransaction(environment, isReadOnly: false, path: path)
      for (key, row) in rows { try transaction.put(row, for: Array(key.utf8), in: database) }
      try transaction.commit()
    }
  }

  private func rows(withPrefix prefix: String) throws -> [Data] {
    try unsafe withEnvironment { environment in
      let transaction = try unsafe StateTransaction(environment, isReadOnly: true, path: path)
      return try transaction.values(withPrefix: Array(prefix.utf8), in: database)
    }
  }

  private static let countersKey = "counters"
  private static let refusalsKey = "refusals"
  private static let holdKey = "held since"
  private static let spoolKey = "spool"

  fileprivate static func check(_ code: Int32, _ path: String) throws(StateError) {
    if code != MDB_SUCCESS { throw StateError(code: code, path: path) }
  }
}

/// A transaction; unless it is committed, it leaves no trace.
@safe private struct StateTransaction: ~Copyable {
  private var transaction: OpaquePointer?
  private let path: String

  init(_ environment: OpaquePointer?, isReadOnly: Bool, path: String) throws(StateError) {
    unsafe transaction = nil
    self.path = path
    let flags = UInt32(isReadOnly ? MDB_RDONLY : 0)
    try StateStore.check(unsafe mdb_txn_begin(environment, nil, flags, &transaction), path)
  }

  deinit { unsafe mdb_txn_abort(transaction) }

  consuming func commit() throws(StateError) {
    // LMDB frees the transaction whether or not it succeeds.
    let committed = unsafe transaction
    unsafe transaction = nil
    try StateStore.check(unsafe mdb_txn_commit(committed), path)
  }

  func put(_ value: [UInt8], for key: [UInt8], in database: MDB_dbi) throws(StateError) {
    var key = key
    var value = value
    // A copy: the closures must not hold on to a value that cannot be copied.
    let transaction = unsafe transaction
    let code = unsafe key.withUnsafeMutableBytes { keyBytes in
      unsafe value.withUnsafeMutableBytes { valueBytes in
        var stored = unsafe MDB_val(mv_size: valueBytes.count, mv_data: valueBytes.baseAddress)
        var place = unsafe MDB_val(mv_size: keyBytes.count, mv_data: keyBytes.baseAddress)
        return unsafe mdb_put(transaction, database, &place, &stored, 0)
      }
    }
    try StateStore.check(code, path)
  }

  func values(withPrefix prefix: [UInt8], in database: MDB_dbi) throws(StateError) -> [Data] {
    var cursor: OpaquePointer?
    try StateStore.check(unsafe mdb_cursor_open(transaction, database, &cursor), path)
    defer { unsafe mdb_cursor_close(cursor) }
    var values: [Data] = []
    var key = unsafe MDB_val()
    var value = unsafe MDB_val()
    while true {
      let code = unsafe mdb_cursor_get(cursor, &key, &value, MDB_NEXT)
      if code == MDB_NOTFOUND { return values }
      try StateStore.check(code, path)
      if unsafe UnsafeRawBufferPointer(start: key.mv_data, count: key.mv_size).starts(with: prefix) {
        unsafe values.append(Data(UnsafeRawBufferPointer(start: value.mv_data, count: value.mv_size)))
      }
    }
  }
}

/// The state database cannot be read or written.
public struct StateError: Error, Equatable, Sendable, CustomStringConvertible {
  /// LMDB's code, or an errno.
  public let code: Int32
  public let path: String

  /// Whether the file is none of LMDB's, or not any more.
  var isDamage: Bool { [MDB_INVALID, MDB_CORRUPTED, MDB_PAGE_NOTFOUND, MDB_VERSION_MISMATCH].contains(code) }

  public var description: String {
    let message = unsafe String(cString: mdb_strerror(code))
    return
      "state database \(path): \(message); check that its file system has space and that this user may write "
      + "there"
  }
}
