import CLMDB
import Glibc

/// One LMDB file with one database, for data that can be computed again.
///
/// The file is never synced: after a crash of the machine its content is undefined, after a crash of the
/// process it is whole. It is written through the page cache and not through the map, because a full disk
/// under a writable map is a SIGBUS instead of an error. Read-ahead stays on: values are large and are
/// read from end to end.
///
/// Any number of threads may read while one writes; LMDB serializes writers.
@safe final class LMDBEnvironment: @unchecked Sendable {
  let path: String
  /// More than LMDB's 126 readers and the header take.
  private static let lockByteCount = 16_384
  private let environment: OpaquePointer
  private let database: MDB_dbi
  /// Shared by transactions; alone for a change of the map, which LMDB allows only without any.
  private let mapLock = ReadWriteLock()

  /// - Parameter initialMapBytes: Address space to begin with; it grows on demand and costs no memory.
  init(path: String, initialMapBytes: Int = 1 << 30) throws(CacheError) {
    var created: OpaquePointer?
    let code = unsafe mdb_env_create(&created)
    guard code == MDB_SUCCESS, let environment = unsafe created else {
      throw Self.failure("mdb_env_create", code, path)
    }
    let lockPath = path + "-lock"
    let hadLock = FileOperations.exists(lockPath)
    do throws(CacheError) {
      try FileOperations.reserve(Self.lockByteCount, for: lockPath)
      try Self.check(unsafe mdb_env_set_mapsize(environment, initialMapBytes), "mdb_env_set_mapsize", path)
      let flags = UInt32(MDB_NOSUBDIR | MDB_NOTLS | MDB_NOSYNC | MDB_NOMETASYNC)
      try Self.check(unsafe mdb_env_open(environment, path, flags, 0o600), "mdb_env_open", path)
      unsafe database = try Self.openDatabase(environment, path)
    } catch {
      unsafe mdb_env_close(environment)
      // LMDB makes its lock file before it sees that the file itself is none of its own.
      if !hadLock { try? FileOperations.remove(lockPath) }
      throw error
    }
    self.path = path
    unsafe self.environment = environment
  }

  deinit { unsafe mdb_env_close(environment) }

  private static func openDatabase(
    _ environment: OpaquePointer, _ path: String
  ) throws(CacheError) -> MDB_dbi {
    var transaction: OpaquePointer?
    try check(unsafe mdb_txn_begin(environment, nil, 0, &transaction), "mdb_txn_begin", path)
    var database = MDB_dbi()
    let code = unsafe mdb_dbi_open(transaction, nil, 0, &database)
    guard code == MDB_SUCCESS else {
      unsafe mdb_txn_abort(transaction)
      throw failure("mdb_dbi_open", code, path)
    }
    try check(unsafe mdb_txn_commit(transaction), "mdb_txn_commit", path)
    return database
  }

  /// Deletes the files. What is open stays usable; the space comes back when the environment goes.
  func destroy() throws(CacheError) {
    try FileOperations.remove(path)
    try FileOperations.remove(path + "-lock")
  }

  /// Bytes of the file up to the last page ever used.
  var fileBytes: Int {
    // LMDB reads these from the map, which must not be changed meanwhile.
    mapLock.shared {
      var info = unsafe MDB_envinfo()
      var status = MDB_stat()
      unsafe mdb_env_info(environment, &info)
      unsafe mdb_env_stat(environment, &status)
      return unsafe (info.me_last_pgno + 1) * Int(status.ms_psize)
    }
  }

  var mapBytes: Int {
    mapLock.shared {
      var info = unsafe MDB_envinfo()
      unsafe mdb_env_info(environment, &info)
      return unsafe info.me_mapsize
    }
  }

  // MARK: Transactions

  /// Runs `body` in a write transaction and commits; an error leaves the file as it was.
  ///
  /// `body` runs again from the start when the map proved too small and has been enlarged.
  func write(_ body: (borrowing WriteTransaction) throws(CacheError) -> Void) throws(CacheError) {
    while true {
      let mapBytes = self.mapBytes
      do throws(CacheError) {
        return try mapLock.shared { () throws(CacheError) in
          let transaction = try unsafe WriteTransaction(
            environment: environment, database: database, path: path)
          try body(transaction)
          try transaction.commit()
        }
      } catch {
        guard case .lmdb(_, MDB_MAP_FULL, _, _, _) = error else { throw error }
        try growMap(beyond: mapBytes)
      }
    }
  }

  /// Lends the bytes stored for `key` as they lie in the map, or nil where there are none.
  @unsafe func withValue<Result>(
    of key: HiddenStatesKey,
    _ body: (UnsafeRawBufferPointer?) throws(CacheError) -> Result
  ) throws(CacheError) -> Result {
    try mapLock.shared { () throws(CacheError) in
      var transaction: OpaquePointer?
      try check(
        unsafe mdb_txn_begin(environment, nil, UInt32(MDB_RDONLY), &transaction), "mdb_txn_begin", key)
      defer { unsafe mdb_txn_abort(transaction) }
      var value = unsafe MDB_val()
      let code = unsafe withMDBValue(key.encoded) { unsafe mdb_get(transaction, database, $0, &value) }
      if code == MDB_NOTFOUND { return try body(nil) }
      try check(code, "mdb_get", key)
      return try unsafe body(UnsafeRawBufferPointer(start: value.mv_data, count: value.mv_size))
    }
  }

  /// Doubles the map, unless another thread has enlarged it since it had `size` bytes.
  private func growMap(beyond size: Int) throws(CacheError) {
    try mapLock.alone { () throws(CacheError) in
      var info = unsafe MDB_envinfo()
      unsafe mdb_env_info(environment, &info)
      guard unsafe info.me_mapsize == size else { return }
      try check(unsafe mdb_env_set_mapsize(environment, size * 2), "mdb_env_set_mapsize", nil)
    }
  }

  private func check(
    _ code: Int32, _ operation: String, _ key: HiddenStatesKey?
  ) throws(CacheError) {
    try Self.check(code, operation, path, key)
  }

  fileprivate static func check(
    _ code: Int32, _ operation: String, _ path: String, _ key: HiddenStatesKey? = nil
  ) throws(CacheError) {
    guard code == MDB_SUCCESS else { throw failure(operation, code, path, key) }
  }

  fileprivate static func failure(
    _ operation: String, _ code: Int32, _ path: String, _ key: HiddenStatesKey? = nil
  ) -> CacheError {
    let freeBytes = FileOperations.freeBytes(at: path)
    // A write that the disk takes only in part is EIO to LMDB; the part has then used up the space.
    let isFull = code == ENOSPC || code == EDQUOT || (code == EIO && freeBytes < 1 << 20)
    if isFull { return .noSpace(path: path, freeBytes: freeBytes) }
    let message = unsafe String(cString: mdb_strerror(code))
    return .lmdb(
      operation: operation, code: code, message: message, path: path, key: key?.description)
  }
}

/// A write transaction; unless it is committed, it leaves no trace.
@safe struct WriteTransaction: ~Copyable {
  private var transaction: OpaquePointer?
  private let database: MDB_dbi
  private let path: String

  fileprivate init(
    environment: OpaquePointer, database: MDB_dbi, path: String
  ) throws(CacheError) {
    unsafe transaction = nil
    self.database = database
    self.path = path
    try LMDBEnvironment.check(
      unsafe mdb_txn_begin(environment, nil, 0, &transaction), "mdb_txn_begin", path)
  }

  deinit { unsafe mdb_txn_abort(transaction) }

  fileprivate consuming func commit() throws(CacheError) {
    // LMDB frees the transaction whether or not it succeeds.
    let committed = unsafe transaction
    unsafe transaction = nil
    try LMDBEnvironment.check(unsafe mdb_txn_commit(committed), "mdb_txn_commit", path)
  }

  /// Reserves `count` bytes for `key` and lets `fill` write them in place.
  @unsafe func put(
    _ key: HiddenStatesKey, count: Int, _ fill: (UnsafeMutableRawBufferPointer) -> Void
  ) throws(CacheError) {
    var value = unsafe MDB_val(mv_size: count, mv_data: nil)
    let code = unsafe withMDBValue(key.encoded) {
      unsafe mdb_put(transaction, database, $0, &value, UInt32(MDB_RESERVE))
    }
    try LMDBEnvironment.check(code, "mdb_put of \(count) bytes", path, key)
    unsafe fill(UnsafeMutableRawBufferPointer(start: value.mv_data, count: count))
  }

  /// Deletes every value.
  func deleteAll() throws(CacheError) {
    try LMDBEnvironment.check(unsafe mdb_drop(transaction, database, 0), "mdb_drop", path)
  }

  /// Deletes the values of the keys from `first` up to before `end`.
  func deleteAll(from first: HiddenStatesKey, to end: HiddenStatesKey) throws(CacheError) {
    var cursor: OpaquePointer?
    try LMDBEnvironment.check(
      unsafe mdb_cursor_open(transaction, database, &cursor), "mdb_cursor_open", path)
    defer { unsafe mdb_cursor_close(cursor) }
    let bound = end.encoded
    while true {
      // What follows a value that was deleted is looked for from the start: a cursor's place is then LMDB's to define.
      var value = unsafe MDB_val()
      var isBefore = false
      let code = unsafe withMDBValue(first.encoded) { key in
        let code = unsafe mdb_cursor_get(cursor, key, &value, MDB_SET_RANGE)
        if code == MDB_SUCCESS {
          isBefore = unsafe UnsafeRawBufferPointer(start: key.pointee.mv_data, count: key.pointee.mv_size)
            .lexicographicallyPrecedes(bound)
        }
        return code
      }
      if code == MDB_NOTFOUND { return }
      try LMDBEnvironment.check(code, "mdb_cursor_get", path)
      guard isBefore else { return }
      try LMDBEnvironment.check(unsafe mdb_cursor_del(cursor, 0), "mdb_cursor_del", path)
    }
  }

  /// Deletes the value of `key`, if there is one.
  func delete(_ key: HiddenStatesKey) throws(CacheError) {
    let code = unsafe withMDBValue(key.encoded) { unsafe mdb_del(transaction, database, $0, nil) }
    if code != MDB_NOTFOUND { try LMDBEnvironment.check(code, "mdb_del", path, key) }
  }
}

private func withMDBValue(_ bytes: [UInt8], _ body: (UnsafeMutablePointer<MDB_val>) -> Int32) -> Int32 {
  var bytes = bytes
  return unsafe bytes.withUnsafeMutableBytes { buffer in
    var value = unsafe MDB_val(mv_size: buffer.count, mv_data: buffer.baseAddress)
    return unsafe body(&value)
  }
}
