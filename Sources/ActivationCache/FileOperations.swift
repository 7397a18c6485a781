import CLinux
import Glibc

// The few calls that LMDB does not make on its own behalf.

enum FileOperations {
  static func exists(_ path: String) -> Bool { unsafe access(path, F_OK) == 0 }

  /// The length of a file in bytes; 0 if there is none.
  static func size(of path: String) -> Int {
    var status = Glibc.stat()
    return unsafe stat(path, &status) == 0 ? Int(status.st_size) : 0
  }

  /// Deletes a file; one that does not exist is as good as deleted.
  static func remove(_ path: String) throws(CacheError) {
    if retrying({ unsafe unlink(path) }) != 0, errno != ENOENT { throw failure("unlink", path) }
  }

  /// Takes the space of the first `byteCount` bytes of a file, which is created if it is missing.
  ///
  /// LMDB writes its lock file through a map: a page of it that the disk has no space for would be a SIGBUS.
  static func reserve(_ byteCount: Int, for path: String) throws(CacheError) {
    let descriptor = retrying { unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600) }
    guard descriptor != -1 else { throw failure("open", path) }
    defer { close(descriptor) }
    guard retrying({ allocate_blocks(descriptor, byteCount) }) != 0 else { return }
    if errno == ENOSPC || errno == EDQUOT { throw .noSpace(path: path, freeBytes: freeBytes(at: path)) }
    // Where the file system cannot promise space, LMDB gives the file its length.
    guard errno == EOPNOTSUPP else { throw failure("fallocate", path) }
  }

  /// Creates the directories that lead to the file `path`, as far as they are missing.
  static func createDirectories(above path: String) throws(CacheError) {
    for (index, character) in path.enumerated() where character == "/" && index > 0 {
      let directory = String(path.prefix(index))
      if retrying({ unsafe mkdir(directory, 0o777) }) != 0, errno != EEXIST {
        throw failure("mkdir", directory)
      }
    }
  }

  /// Bytes that this user may still write to the file system of `path`.
  static func freeBytes(at path: String) -> Int {
    var status = statvfs()
    guard unsafe statvfs(path, &status) == 0 else { return 0 }
    return Int(clamping: status.f_bavail.multipliedReportingOverflow(by: status.f_frsize).partialValue)
  }

  /// Calls again what a signal has interrupted, as network file systems let it.
  private static func retrying(_ call: () -> Int32) -> Int32 {
    while true {
      let result = call()
      if result != -1 || errno != EINTR { return result }
    }
  }

  private static func failure(_ operation: String, _ path: String) -> CacheError {
    let code = errno
    let message = unsafe strerror(code).map { unsafe String(cString: $0) } ?? "unknown"
    return .file(operation: operation, code: code, message: message, path: path)
  }
}

/// A lock that many share or one has alone.
///
/// LMDB may only be given a larger map while no transaction is open: transactions share this lock, and
/// growing the map takes it alone.
@safe final class ReadWriteLock: @unchecked Sendable {
  private let lock: UnsafeMutablePointer<pthread_rwlock_t>

  init() {
    unsafe lock = .allocate(capacity: 1)
    unsafe lock.initialize(to: pthread_rwlock_t())
    let code = unsafe pthread_rwlock_init(lock, nil)
    precondition(code == 0, "the system is out of locks")
  }

  deinit {
    unsafe pthread_rwlock_destroy(lock)
    unsafe lock.deallocate()
  }

  func shared<Result: ~Copyable, Failure>(
    _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    unsafe pthread_rwlock_rdlock(lock)
    defer { unsafe pthread_rwlock_unlock(lock) }
    return try body()
  }

  func alone<Result: ~Copyable, Failure>(
    _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    unsafe pthread_rwlock_wrlock(lock)
    defer { unsafe pthread_rwlock_unlock(lock) }
    return try body()
  }
}
