import Glibc
import SystemPackage

/// What was being done when the system said no; the raw value completes "cannot …".
public enum FileOperation: String, Sendable {
  case open, map, read, write, create, synchronize, rename, list, remove, inspect, lock, start, watch
  case reserve = "reserve space for"

  /// Whether it brings something new onto the disk.
  var isCreating: Bool {
    switch self {
    case .create, .reserve, .write, .rename: true
    default: false
    }
  }

  var neededPermission: String {
    switch self {
    case .create, .rename, .remove: "write and search permission on the directory that holds it"
    case .write, .reserve: "write permission on it"
    case .list: "read and search permission on it"
    default: "read permission on it, and search permission on the directories above"
    }
  }
}

/// A failed system call: on what, doing what, and why.
public struct FileError: Error, Equatable, Sendable, CustomStringConvertible {
  public let path: String
  public let operation: FileOperation
  public let errno: Errno
  /// The space that was asked for at once, where it was for that.
  public let neededBytes: Int?

  public init(path: String, operation: FileOperation, errno: Errno, neededBytes: Int? = nil) {
    self.path = path
    self.operation = operation
    self.errno = errno
    self.neededBytes = neededBytes
  }

  public var description: String {
    let amount = neededBytes.map { " (\($0.memorySize))" } ?? ""
    let fact = "cannot \(operation.rawValue) \(path)\(amount): \(errno)"
    return mend.map { "\(fact); \($0)" } ?? fact
  }

  /// What a person can do about it, where the error number tells.
  public var mend: String? {
    switch errno {
    case .noSpace where operation == .watch:
      "raise the user's limit on watched directories (sysctl fs.inotify.max_user_watches)"
    case .tooManyOpenFiles where operation == .watch:
      "raise the limits on inotify instances (sysctl fs.inotify.max_user_instances) and on open files"
    case .noSpace, .diskQuotaExceeded:
      "free space on that file system, or choose a path on another one"
    case .permissionDenied, .notPermitted:
      "user id \(geteuid()) needs \(operation.neededPermission)"
    case .noSuchFileOrDirectory, .notDirectory:
      operation.isCreating ? "create the directory above it first" : "check the path"
    case .fileExists, .directoryNotEmpty:
      "remove it, or choose another path"
    case .tooManyOpenFiles:
      "raise the process's limit on open files (ulimit -n, or LimitNOFILE= in the unit)"
    case .tooManyOpenFilesInSystem:
      "raise the machine's limit on open files (sysctl fs.file-max)"
    case .ioError:
      "the device failed: look into the kernel's log (dmesg) and check the disk"
    case .readOnlyFileSystem:
      "the file system is mounted read-only: choose another path, or remount it"
    case .tooManySymbolicLinkLevels:
      "symbolic links are not followed here: put the file itself in its place"
    case .isDirectory, .noDevice:
      operation.isCreating ? nil : "a regular file is needed"
    case .noMemory:
      "the address space or memory limit is used up (ulimit -v, MemoryMax= in the unit)"
    case .fileTooLarge:
      operation.isCreating
        ? "the file system or ulimit -f does not allow a file of this size"
        : "the file is larger than anything sensible of its kind: check that it is the right one"
    case .fileNameTooLong:
      "choose a shorter name"
    default:
      nil
    }
  }

  /// Whether there is no space left, on the file system or of what this user may take of it.
  public var isLackOfSpace: Bool { errno == .noSpace || errno == .diskQuotaExceeded }

  /// The process's exit status, after sysexits.h.
  public var exitCode: Int32 {
    switch errno {
    case .permissionDenied, .notPermitted: EX_NOPERM
    case .noSuchFileOrDirectory where !operation.isCreating: EX_NOINPUT
    // There may be some later.
    case .noSpace, .diskQuotaExceeded: EX_TEMPFAIL
    case .readOnlyFileSystem: EX_CANTCREAT
    case .fileExists, .directoryNotEmpty, .noSuchFileOrDirectory: EX_CANTCREAT
    default: EX_IOERR
    }
  }

  /// Runs system calls and adds to their error what they were for.
  static func attempt<Result: ~Copyable>(
    _ operation: FileOperation, _ path: String, _ body: () throws(Errno) -> Result
  ) throws(FileError) -> Result {
    do {
      return try body()
    } catch {
      throw FileError(path: path, operation: operation, errno: error)
    }
  }
}
