import Glibc
import SystemPackage

/// A new file that is written at any offset, from any thread.
public final class OutputFile: Sendable {
  public let path: String
  private let descriptor: Descriptor

  /// Creates the file.
  /// - Throws: ``FileError``, EEXIST if there is something at `path`.
  public init(creating path: String) throws(FileError) {
    self.path = path
    descriptor = try FileError.attempt(.create, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDWR | O_CREAT | O_EXCL, mode: 0o666)
    }
  }

  /// Opens a file to go on writing it, or creates it.
  /// - Throws: ``FileError``; a symbolic link is refused.
  public init(resuming path: String) throws(FileError) {
    self.path = path
    descriptor = try FileError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDWR | O_CREAT | O_NOFOLLOW, mode: 0o666)
    }
  }

  /// Adds `bytes` to the end of a file, in one call.
  /// - Parameter isMaking: whether it is made if it is not there
  /// - Throws: ``FileError``; a symbolic link is refused.
  public static func append(
    _ bytes: [UInt8], to path: String, isMaking: Bool = true
  ) throws(FileError) {
    try FileError.attempt(.write, path) { () throws(Errno) in
      let flags = O_WRONLY | O_APPEND | O_NOFOLLOW | (isMaking ? O_CREAT : 0)
      let file = try SystemCall.open(path, flags: flags, mode: 0o666)
      _ = try SystemCall.writeOnce(file.number, bytes[...])
    }
  }

  /// Takes the space of the first `byteCount` bytes now, so that a full disk shows before the work;
  /// the file is then at least that long.
  public func reserve(_ byteCount: Int) throws(FileError) {
    do { try SystemCall.reserve(descriptor, byteCount: byteCount) } catch {
      throw FileError(path: path, operation: .reserve, errno: error, neededBytes: byteCount)
    }
  }

  /// Writes all of `bytes` at `offset`.
  public func write(_ bytes: RawSpan, at offset: Int) throws(FileError) {
    do {
      try SystemCall.write(descriptor, bytes, at: offset)
    } catch {
      throw FileError(path: path, operation: .write, errno: error)
    }
  }

  /// Writes all of `bytes` at `offset`.
  public func write(_ bytes: [UInt8], at offset: Int) throws(FileError) {
    try write(unsafe bytes.span.bytes, at: offset)
  }

  /// Reads `byteCount` bytes at `offset`.
  /// - Throws: ``FileError``, EIO if the file ends before.
  public func read(_ byteCount: Int, at offset: Int) throws(FileError) -> [UInt8] {
    try FileError.attempt(.read, path) { () throws(Errno) in
      var bytes = [UInt8](repeating: 0, count: byteCount)
      var done = 0
      while done < byteCount {
        var rest = [UInt8](repeating: 0, count: byteCount - done)
        let count = try SystemCall.read(descriptor, into: &rest, at: offset + done)
        if count == 0 { throw Errno.ioError }
        bytes.replaceSubrange(done..<done + count, with: rest.prefix(count))
        done += count
      }
      return bytes
    }
  }

  /// Has the operating system forget what it keeps of the file, after ``synchronize()``: it is read from the disk then,
  /// and does not push out of memory what others need.
  public func forget() {
    // To the end.
    SystemCall.forgetPages(descriptor, 0..<0)
  }

  /// Waits until the bytes, and the length that is needed to find them, are on the disk.
  public func synchronize() throws(FileError) {
    try FileError.attempt(.synchronize, path) { () throws(Errno) in
      try SystemCall.synchronizeData(descriptor)
    }
  }
}
