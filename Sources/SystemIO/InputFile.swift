import Glibc
import Synchronization
import SystemPackage

/// A regular file that is read and not mapped: one that may change its length meanwhile.
public final class InputFile: Sendable {
  public let path: String
  /// The length that it had when it was opened.
  public let byteCount: Int
  private let descriptor: Descriptor
  private let position = Mutex(0)

  /// - Throws: ``FileError`` if the file cannot be opened or is not a regular file.
  public init(path: String, symlinks: SymlinkPolicy = .follow) throws(FileError) {
    self.path = path
    let descriptor = try FileError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | symlinks.openFlags)
    }
    let (stamp, kind) = try FileError.attempt(.inspect, path) { () throws(Errno) in
      try SystemCall.stamp(descriptor)
    }
    guard kind == .regular else {
      throw FileError(path: path, operation: .read, errno: kind == .directory ? .isDirectory : .noDevice)
    }
    self.descriptor = descriptor
    byteCount = stamp.byteCount
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

  /// Reads bytes from any place; where the file ends before, as many as there are.
  public func read(_ range: Range<Int>) throws(FileError) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < range.count {
      var buffer = [UInt8](repeating: 0, count: min(range.count - bytes.count, 1 << 20))
      do {
        let count = try SystemCall.read(descriptor, into: &buffer, at: range.lowerBound + bytes.count)
        if count == 0 { break }
        bytes += buffer[..<count]
      } catch {
        throw FileError(path: path, operation: .read, errno: error)
      }
    }
    return bytes
  }
}
