import Glibc
import Synchronization
import SystemPackage

/// A regular file that is read from its first byte to its last.
public final class InputFile: Sendable {
  public let path: String
  private let descriptor: Descriptor
  private let position = Mutex(0)

  /// - Throws: ``FileError`` if the file cannot be opened or is not a regular file.
  public init(path: String, symlinks: SymlinkPolicy = .follow) throws(FileError) {
    self.path = path
    descriptor = try FileError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | symlinks.openFlags)
    }
    let kind = try FileError.attempt(.inspect, path) { () throws(Errno) in
      try SystemCall.status(descriptor).kind
    }
    guard kind == .regular else {
      throw FileError(path: path, operation: .read, errno: kind == .directory ? .isDirectory : .noDevice)
    }
  }

  /// Reads what comes next, at most as much as fits. The operating system is not to keep it, for it is read once.
  /// - Returns: the bytes read; 0 at the end
  public func read(into buffer: inout [UInt8]) throws(FileError) -> Int {
    do {
      let count = try SystemCall.read(descriptor, into: &buffer)
      let start = position.withLock { position in
        defer { position += count }
        return position
      }
      if count > 0 { SystemCall.forgetPages(descriptor, start..<start + count) }
      return count
    } catch {
      throw FileError(path: path, operation: .read, errno: error)
    }
  }
}
