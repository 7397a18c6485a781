import Glibc
import SystemPackage

/// Whether a path's last component may be a symbolic link.
///
/// Model caches fill their snapshot folders with links, so a person's own checkpoint is read through
/// them; a folder into which strangers drop files must not lead elsewhere.
public enum SymlinkPolicy: Sendable {
  case follow, refuse

  var openFlags: Int32 { self == .refuse ? O_NOFOLLOW : 0 }
}

/// A regular file, mapped for reading.
///
/// Bytes come in as they are touched. The file must keep its length meanwhile: touching a page beyond
/// a new, shorter end raises SIGBUS, which no program can turn into an error.
@safe public final class MappedFile: Sendable {
  public let path: String
  public let byteCount: Int
  /// The file that was opened, as it was then.
  public let stamp: FileStamp
  private let symlinks: SymlinkPolicy

  /// Nil for an empty file, which cannot be mapped.
  private nonisolated(unsafe) let mapping: UnsafeRawBufferPointer?

  /// - Throws: ``FileError`` if the file cannot be opened or is not a regular file.
  public init(path: String, symlinks: SymlinkPolicy = .follow) throws(FileError) {
    self.path = path
    self.symlinks = symlinks
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let descriptor = try FileError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | symlinks.openFlags)
    }
    let (stamp, kind) = try FileError.attempt(.inspect, path) { () throws(Errno) in
      try SystemCall.stamp(descriptor)
    }
    guard kind == .regular else {
      let errno: Errno = kind == .directory ? .isDirectory : .noDevice
      throw FileError(path: path, operation: .map, errno: errno)
    }
    self.stamp = stamp
    byteCount = stamp.byteCount
    if stamp.byteCount == 0 {
      unsafe mapping = nil
    } else {
      unsafe mapping = try FileError.attempt(.map, path) { () throws(Errno) in
        try unsafe SystemCall.map(descriptor, byteCount: stamp.byteCount)
      }
    }
  }

  deinit {
    if let mapping = unsafe mapping { unsafe SystemCall.unmap(mapping) }
  }

  /// Lends the bytes in `range`, which lies inside the file.
  public func withBytes<Result, Failure: Error>(
    _ range: Range<Int>, _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "bytes outside the file")
    guard let mapping = unsafe mapping else { return try body(RawSpan()) }
    return try body(unsafe UnsafeRawBufferPointer(rebasing: mapping[range]).bytes)
  }

  /// A copy of the bytes in `range`, which lies inside the file.
  public func bytes(_ range: Range<Int>) -> [UInt8] {
    withBytes(range) { bytes in unsafe bytes.withUnsafeBytes { unsafe Array($0) } }
  }

  /// Starts to read the bytes in `range` from the disk.
  public func willNeed(_ range: Range<Int>) {
    advise(range, MADV_WILLNEED)
  }

  /// Gives the memory of the bytes in `range` back; touching them again reads them again.
  ///
  /// The page in which the range ends stays, so that of two ranges that meet inside a page, read one
  /// after the other, the second gives it back.
  public func release(_ range: Range<Int>) {
    advise(range, MADV_DONTNEED)
  }

  /// Has the operating system forget the bytes in `range`, too, so that a large file that is read once does not push out
  /// of memory what others need. They can still be read, from the disk.
  public func forget(_ range: Range<Int>) {
    release(range)
    // The descriptor is not kept, for a checkpoint may have more shards than a process may have open files.
    guard !range.isEmpty,
      let descriptor = try? SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | symlinks.openFlags)
    else { return }
    SystemCall.forgetPages(descriptor, range)
  }

  private func advise(_ range: Range<Int>, _ advice: Int32) {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "bytes outside the file")
    guard let mapping = unsafe mapping else { return }
    let pageSize = Int(getpagesize())
    let start = range.lowerBound / pageSize * pageSize
    let end = range.upperBound == byteCount ? byteCount : range.upperBound / pageSize * pageSize
    guard start < end else { return }
    unsafe SystemCall.advise(UnsafeRawBufferPointer(rebasing: mapping[start..<end]), advice)
  }
}
