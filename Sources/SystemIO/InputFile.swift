import Glibc
import SystemPackage

/// A regular file that is read from its first byte to its last.
public final class InputFile: Sendable {
  public let path: String
  private let descriptor: Descriptor

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

  /// Reads what comes next, at most as much as fits.
  /// - Returns: the bytes read; 0 at the end
  public func read(into buffer: inout [UInt8]) throws(FileError) -> Int {
    do { return try SystemCall.read(descriptor, into: &buffer) } catch {
      throw FileError(path: path, operation: .read, errno: error)
    }
  }
}
