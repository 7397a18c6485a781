import Glibc
import SystemPackage

/// Why a lock was not had.
public enum FileLockError: Error, Equatable, Sendable, CustomStringConvertible {
  /// Somebody has it; `holder` is what they wrote into the file.
  case held(path: String, holder: String)
  case file(FileError)

  public var description: String {
    switch self {
    case .held(let path, let holder):
      "\(path) is locked by \(holder); stop that process, or choose another directory"
    case .file(let error):
      error.description
    }
  }

  /// The process's exit status, after sysexits.h.
  public var exitCode: Int32 {
    switch self {
    case .held: EX_UNAVAILABLE
    case .file(let error): error.exitCode
    }
  }
}

/// The exclusive right to something, for as long as the object lives; a process that ends in whatever way
/// gives it back.
///
/// Only the kernel's lock decides. The file's text names its last holder for people, and says nothing about
/// whether there is one. The file stays when the lock goes: who removes it could remove the next holder's.
public final class FileLock: Sendable {
  public let path: String
  private let descriptor: Descriptor

  /// Takes the lock, or fails at once.
  /// - Parameters:
  ///   - path: A file that is created if it is missing.
  ///   - purpose: What the holder is, for the message that another one gets.
  public init(path: String, purpose: String) throws(FileLockError) {
    self.path = path
    do {
      descriptor = try SystemCall.open(
        path, flags: O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, mode: 0o644)
    } catch {
      throw .file(FileError(path: path, operation: .open, errno: error))
    }
    do {
      try SystemCall.lock(descriptor)
    } catch .wouldBlock {
      throw .held(path: path, holder: Self.holder(path))
    } catch {
      throw .file(FileError(path: path, operation: .lock, errno: error))
    }
    do {
      let text = Array("process \(getpid()), \(purpose)\n".utf8)
      try SystemCall.truncate(descriptor)
      try SystemCall.write(descriptor, unsafe text.span.bytes, at: 0)
    } catch {
      throw .file(FileError(path: path, operation: .write, errno: error))
    }
  }

  /// Takes the lock, or tries so many times more, after a pause each time.
  public static func waiting(path: String, purpose: String, tries: Int, pause: Duration) throws -> FileLock {
    for _ in 0..<tries {
      do { return try FileLock(path: path, purpose: purpose) } catch .held {
        _ = try DescriptorWaiting.readable(among: [], for: pause)
      }
    }
    return try FileLock(path: path, purpose: purpose)
  }

  /// Whether somebody has the lock; asks nothing but to read the file.
  /// - Throws: ``FileError``
  public static func isHeld(_ path: String) throws(FileError) -> Bool {
    guard try FileSystem.exists(path) else { return false }
    let descriptor = try FileError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    }
    do { try SystemCall.lock(descriptor, isShared: true) } catch .wouldBlock {
      return true
    } catch {
      throw FileError(path: path, operation: .lock, errno: error)
    }
    return false
  }

  private static func holder(_ path: String) -> String {
    let bytes = (try? FileSystem.contents(of: path, limit: 4096, symlinks: .refuse)) ?? []
    let line = String(decoding: bytes.prefix { $0 >= 0x20 }, as: UTF8.self)
    return line.isEmpty ? "another process" : line
  }
}
