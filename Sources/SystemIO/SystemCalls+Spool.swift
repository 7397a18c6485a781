import Glibc
import SystemPackage

/// What a spool asks of the kernel: locks, leases, moves that replace nothing, identities of files.
extension SystemCall {
  /// Takes the lock of an open file without waiting for it.
  /// - Throws: EWOULDBLOCK while somebody else has it, exclusively or at all.
  static func lock(_ descriptor: borrowing Descriptor, isShared: Bool = false) throws(Errno) {
    let number = descriptor.number
    try retrying { flock(number, (isShared ? LOCK_SH : LOCK_EX) | LOCK_NB) }
  }

  static func link(_ source: String, to destination: String) throws(Errno) {
    try retrying { unsafe Glibc.link(source, destination) }
  }

  static func truncate(_ descriptor: borrowing Descriptor) throws(Errno) {
    let number = descriptor.number
    try retrying { ftruncate(number, 0) }
  }

  /// - Returns: False where the kernel or the file system does not know such a rename.
  static func renameWithoutReplacing(_ source: String, to destination: String) throws(Errno) -> Bool {
    guard let renameat2 = unsafe renameat2 else { return false }
    let noReplace: UInt32 = 1  // RENAME_NOREPLACE, which Glibc's module leaves out
    do {
      try retrying { unsafe renameat2(AT_FDCWD, source, AT_FDCWD, destination, noReplace) }
      return true
    } catch .invalidArgument, .noFunction {
      return false
    }
  }

  /// Whether nobody has the file open for writing, or mapped so: the kernel grants a read lease then only.
  /// - Parameter descriptor: Open for reading only.
  /// - Returns: Nil where leases are not allowed (they are the owner's) or not known.
  static func hasNoWriter(_ descriptor: borrowing Descriptor) -> Bool? {
    let number = descriptor.number
    // Constants of Linux that Glibc's module leaves out.
    let setSignal: Int32 = 10
    let setLease: Int32 = 1024
    // Somebody may open the file between the two calls. The kernel then sends a signal, and only one that
    // is ignored by default does not end the process.
    guard fcntl(number, setSignal, SIGURG) == 0 else { return nil }
    while fcntl(number, setLease, Int32(F_RDLCK)) == -1 {
      switch Glibc.errno {
      case EINTR: continue
      case EAGAIN: return false
      default: return nil
      }
    }
    _ = fcntl(number, setLease, Int32(F_UNLCK))
    return true
  }

  static func stamp(
    _ path: String, symlinks: SymlinkPolicy
  ) throws(Errno) -> (stamp: FileStamp, kind: FileKind) {
    var status = stat()
    try retrying {
      unsafe fstatat(AT_FDCWD, path, &status, symlinks == .refuse ? AT_SYMLINK_NOFOLLOW : 0)
    }
    return (stamp(status), FileKind(mode: status.st_mode))
  }

  static func stamp(_ descriptor: borrowing Descriptor) throws(Errno) -> (stamp: FileStamp, kind: FileKind) {
    let number = descriptor.number
    var status = stat()
    try retrying { unsafe fstat(number, &status) }
    return (stamp(status), FileKind(mode: status.st_mode))
  }

  private static func stamp(_ status: stat) -> FileStamp {
    FileStamp(
      inode: UInt64(status.st_ino), byteCount: Int(status.st_size),
      modifiedNanoseconds: nanoseconds(status.st_mtim), changedNanoseconds: nanoseconds(status.st_ctim))
  }

  static func group(of path: String) throws(Errno) -> UInt32 {
    var status = stat()
    try retrying { unsafe stat(path, &status) }
    return status.st_gid
  }

  static func mayRead(_ path: String, isDirectory: Bool) -> Bool {
    unsafe access(path, R_OK | (isDirectory ? X_OK : 0)) == 0
  }

  static func mayWrite(_ directory: String) -> Bool { unsafe access(directory, W_OK | X_OK) == 0 }

  private static func nanoseconds(_ time: timespec) -> Int {
    // A file may claim any year: too large a number must not trap.
    let (seconds, overflow) = Int(time.tv_sec).multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, overflow2) = seconds.addingReportingOverflow(Int(time.tv_nsec))
    return overflow || overflow2 ? Int.max : sum
  }

  /// The number by which statfs tells the type of the file system that holds `path`.
  static func fileSystemType(_ path: String) throws(Errno) -> UInt32 {
    guard let statfs = unsafe statfs else { throw .noFunction }
    // Larger than struct statfs of any architecture; the type is its first word.
    var status = [Int](repeating: 0, count: 64)
    try retrying { unsafe statfs(path, &status) }
    return UInt32(truncatingIfNeeded: status[0])
  }

  // Glibc's module does not declare these two; the library has them.

  private typealias Renameat2 =
    @convention(c) (
      Int32, UnsafePointer<CChar>, Int32, UnsafePointer<CChar>, UInt32
    ) -> Int32

  private static var renameat2: Renameat2? {
    guard let symbol = unsafe dlsym(nil, "renameat2") else { return nil }
    return unsafe unsafeBitCast(symbol, to: Renameat2.self)
  }

  private typealias Statfs = @convention(c) (UnsafePointer<CChar>, UnsafeMutableRawPointer) -> Int32

  private static var statfs: Statfs? {
    guard let symbol = unsafe dlsym(nil, "statfs") else { return nil }
    return unsafe unsafeBitCast(symbol, to: Statfs.self)
  }
}
