import Glibc
import SystemPackage

/// Memory in a file without a name, for what is too large to be held and is soon of no use: the kernel writes its pages
/// out when it needs the memory, and whatever ends the process, nothing of it stays.
@safe public final class ScratchMapping: Sendable {
  /// Zeros to begin with, aligned to a page.
  @unsafe public nonisolated(unsafe) let start: UnsafeMutableRawPointer
  public let byteCount: Int

  /// - Parameter directory: on whose file system the file is
  /// - Throws: ``FileError``, ENOSPC if there is no space for all of it: running out later would be a signal
  public init(directory: String, byteCount: Int) throws(FileError) {
    precondition(byteCount > 0, "a mapping has bytes")
    let file = Descriptor(owning: try FileSystem.openNameless(in: directory))
    do { try SystemCall.reserve(file, byteCount: byteCount) } catch {
      throw FileError(path: directory, operation: .reserve, errno: error, neededBytes: byteCount)
    }
    let mapping = unsafe mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file.number, 0)
    guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
      throw FileError(path: directory, operation: .map, errno: Errno(rawValue: errno))
    }
    unsafe start = mapping
    self.byteCount = byteCount
  }

  deinit { unsafe munmap(start, byteCount) }
}
