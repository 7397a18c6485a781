/// What changes when a file is written, replaced or renamed. Two equal stamps of one path mean, as far as the
/// kernel's clock resolves, the same bytes.
public struct FileStamp: Equatable, Hashable, Sendable, Codable {
  public let inode: UInt64
  public let byteCount: Int
  /// The last change of the bytes, in nanoseconds since 1970, as anybody may set it.
  public let modifiedNanoseconds: Int
  /// The last change of the file or its metadata, in nanoseconds since 1970, as the kernel saw it.
  public let changedNanoseconds: Int

  public init(inode: UInt64, byteCount: Int, modifiedNanoseconds: Int, changedNanoseconds: Int) {
    self.inode = inode
    self.byteCount = byteCount
    self.modifiedNanoseconds = modifiedNanoseconds
    self.changedNanoseconds = changedNanoseconds
  }
}
