/// The regular files of a directory that others may still write to, as they were at one moment.
///
/// What is read from them is what was there then, as long as ``check(in:)`` finds nothing: a changed length, a write, a
/// file put in another's place. It compares inode, length and both times, which the kernel keeps, the time of change
/// against anybody's will. The device is left out: its number may be another one after a reboot, and that of the inode
/// with the times to the nanosecond does not meet its like by chance.
public struct SourceFiles: Sendable, Equatable, Codable {
  /// By the path relative to the directory.
  public let stamps: [String: FileStamp]

  public init(stamps: [String: FileStamp]) {
    self.stamps = stamps
  }

  /// Looks at every regular file of `directory` and below it, hidden ones aside, which are no part of a checkpoint.
  /// - Parameter symlinks: whether a link stands for the file that it leads to
  public init(of directory: String, symlinks: SymlinkPolicy) throws(FileError) {
    var stamps: [String: FileStamp] = [:]
    for name in try FileSystem.regularFiles(below: directory, symlinks: symlinks) {
      let path = FileSystem.join(directory, name)
      stamps[name] = try FileSystem.stamp(of: path, symlinks: symlinks).stamp
    }
    self.stamps = stamps
  }

  /// The same of some files of a directory.
  public init(named names: [String], in directory: String, symlinks: SymlinkPolicy) throws(FileError) {
    var stamps: [String: FileStamp] = [:]
    for name in names {
      stamps[name] = try FileSystem.stamp(of: FileSystem.join(directory, name), symlinks: symlinks).stamp
    }
    self.stamps = stamps
  }

  /// - Throws: ``SourceChange`` for the first file, by name, that is not what it was.
  public func check(in directory: String, symlinks: SymlinkPolicy) throws(SourceChange) {
    for (name, before) in stamps.sorted(by: { $0.key < $1.key }) {
      let path = FileSystem.join(directory, name)
      let now = try? FileSystem.stamp(of: path, symlinks: symlinks).stamp
      if let now, now == before { continue }
      throw SourceChange(path: path, before: before, now: now)
    }
  }

  /// - Parameter stamp: of the file that was opened under `name`
  /// - Throws: ``SourceChange`` if it is not the file that was there.
  public func check(_ stamp: FileStamp, of name: String, in directory: String) throws(SourceChange) {
    guard let before = stamps[name], before != stamp else { return }
    throw SourceChange(path: FileSystem.join(directory, name), before: before, now: stamp)
  }
}

/// A file was written, replaced or removed while it was being read.
public struct SourceChange: Error, Sendable, Equatable, CustomStringConvertible {
  public let path: String
  let before: FileStamp
  /// Nil if nothing is there, or nothing that may be looked at.
  let now: FileStamp?

  public var description: String {
    "\(path) changed while it was read: it \(change); nothing of it is published: give the whole checkpoint again"
  }

  private var change: String {
    guard let now else { return "is gone" }
    if now.inode != before.inode { return "is another file now" }
    if now.byteCount != before.byteCount {
      return "had \(before.byteCount) bytes and now has \(now.byteCount)"
    }
    if now.modifiedNanoseconds != before.modifiedNanoseconds { return "was written to" }
    return "was written to, or its mode or owner were changed"
  }
}
