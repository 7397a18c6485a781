import CLinux
import Glibc
import SystemPackage

/// An open file descriptor, closed when it goes.
struct Descriptor: ~Copyable {
  let number: Int32

  init(owning number: Int32) { self.number = number }

  deinit { _ = Glibc.close(number) }
}

/// What a path leads to.
public enum FileKind: Sendable, Equatable {
  case regular, directory, symbolicLink, other

  init(mode: mode_t) {
    self =
      switch mode & S_IFMT {
      case S_IFREG: .regular
      case S_IFDIR: .directory
      case S_IFLNK: .symbolicLink
      default: .other
      }
  }
}

extension Errno {
  /// ENODEV: what is there is no file with bytes of its own.
  static let noDevice = Errno(rawValue: Glibc.ENODEV)
}

/// The system calls of the module. Each one starts again after EINTR and throws what the kernel said;
/// the files beside this one add the path and say what was being done. Descriptors are borrowed for
/// the whole of a call, so that none is closed under it.
enum SystemCall {
  /// Runs a call that answers −1 on failure.
  @discardableResult
  static func retrying<Result: FixedWidthInteger>(
    _ call: () -> Result
  ) throws(Errno) -> Result {
    while true {
      let result = call()
      if result != -1 { return result }
      let failure = Errno(rawValue: Glibc.errno)
      if failure != .interrupted { throw failure }
    }
  }

  // MARK: Descriptors

  static func open(
    _ path: String, flags: Int32, mode: mode_t = 0, in directory: Int32 = AT_FDCWD
  ) throws(Errno) -> Descriptor {
    let number = try retrying { unsafe openat(directory, path, flags | O_CLOEXEC, mode) }
    return Descriptor(owning: number)
  }

  static func read(_ descriptor: borrowing Descriptor, into buffer: inout [UInt8]) throws(Errno) -> Int {
    let number = descriptor.number
    return try retrying {
      unsafe buffer.withUnsafeMutableBytes { unsafe Glibc.read(number, $0.baseAddress, $0.count) }
    }
  }

  /// Reads from a place of a file.
  /// - Returns: the bytes read; 0 at the end
  static func read(
    _ descriptor: borrowing Descriptor, into buffer: inout [UInt8], at offset: Int
  ) throws(Errno) -> Int {
    let number = descriptor.number
    return try retrying {
      unsafe buffer.withUnsafeMutableBytes { unsafe pread(number, $0.baseAddress, $0.count, off_t(offset)) }
    }
  }

  /// Writes all of `bytes`, however many calls the kernel makes of it.
  static func write(_ descriptor: borrowing Descriptor, _ bytes: RawSpan, at offset: Int) throws(Errno) {
    let number = descriptor.number
    var done = 0
    while done < bytes.byteCount {
      let rest = bytes.extracting(droppingFirst: done)
      done += try retrying {
        unsafe rest.withUnsafeBytes {
          unsafe pwrite(number, $0.baseAddress, $0.count, offset + done)
        }
      }
    }
  }

  /// Allocates the blocks of the first `byteCount` bytes of a new file, so that a full disk shows now.
  /// Where the file system cannot promise blocks, the file only gets its length.
  static func reserve(_ descriptor: borrowing Descriptor, byteCount: Int) throws(Errno) {
    guard byteCount > 0 else { return }
    let number = descriptor.number
    // Asked for more than there is, the kernel takes all there is before it says so: in that moment
    // every other program's disk is full as well.
    var fileSystem = statvfs()
    try retrying { unsafe fstatvfs(number, &fileSystem) }
    guard byteCount <= availableBytes(fileSystem) else { throw .noSpace }
    // The kernel's own call: the C library's writes a byte into every block where the file system has none, which
    // takes hours on the network and promises nothing.
    do {
      try retrying { allocate_blocks(number, byteCount) }
    } catch {
      guard error == .notSupported else { throw error }
      let length = max(byteCount, try status(descriptor).byteCount)
      try retrying { ftruncate(number, length) }
    }
  }

  static func synchronize(_ descriptor: borrowing Descriptor) throws(Errno) {
    let number = descriptor.number
    try retrying { fsync(number) }
  }

  static func synchronizeData(_ descriptor: borrowing Descriptor) throws(Errno) {
    let number = descriptor.number
    try retrying { fdatasync(number) }
  }

  // MARK: Metadata

  static func status(_ descriptor: borrowing Descriptor) throws(Errno) -> (kind: FileKind, byteCount: Int) {
    let number = descriptor.number
    var status = stat()
    try retrying { unsafe fstat(number, &status) }
    return (FileKind(mode: status.st_mode), Int(status.st_size))
  }

  static func status(
    _ path: String, symlinks: SymlinkPolicy
  ) throws(Errno) -> (kind: FileKind, byteCount: Int) {
    var status = stat()
    let flags = symlinks == .follow ? 0 : AT_SYMLINK_NOFOLLOW
    try retrying { unsafe fstatat(AT_FDCWD, path, &status, flags) }
    return (FileKind(mode: status.st_mode), Int(status.st_size))
  }

  /// Bytes that an unprivileged user may still write to the file system that holds `path`.
  static func freeBytes(_ path: String) throws(Errno) -> Int {
    var status = statvfs()
    try retrying { unsafe statvfs(path, &status) }
    return availableBytes(status)
  }

  private static func availableBytes(_ status: statvfs) -> Int {
    let (bytes, overflow) = status.f_bavail.multipliedReportingOverflow(by: status.f_frsize)
    return overflow ? Int.max : Int(clamping: bytes)
  }

  // MARK: Mappings

  /// Maps the first `byteCount` bytes, more than none, for reading.
  @unsafe static func map(
    _ descriptor: borrowing Descriptor, byteCount: Int
  ) throws(Errno) -> UnsafeRawBufferPointer {
    let address = unsafe mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, descriptor.number, 0)
    guard let address = unsafe address, unsafe address != MAP_FAILED else {
      throw Errno(rawValue: Glibc.errno)
    }
    return unsafe UnsafeRawBufferPointer(start: address, count: byteCount)
  }

  @unsafe static func unmap(_ mapping: UnsafeRawBufferPointer) {
    _ = unsafe munmap(UnsafeMutableRawPointer(mutating: mapping.baseAddress), mapping.count)
  }

  /// Gives the kernel a hint about whole pages of a mapping. A hint that it declines changes nothing.
  @unsafe static func advise(_ pages: UnsafeRawBufferPointer, _ advice: Int32) {
    _ = unsafe madvise(UnsafeMutableRawPointer(mutating: pages.baseAddress), pages.count, advice)
  }

  /// Has the kernel forget pages of a file that it keeps in memory, those that nobody maps and that the disk has. A hint
  /// that it declines changes nothing.
  static func forgetPages(_ descriptor: borrowing Descriptor, _ range: Range<Int>) {
    _ = posix_fadvise(descriptor.number, range.lowerBound, range.count, Int32(POSIX_FADV_DONTNEED))
  }

  // MARK: Directories and names

  static func makeDirectory(_ path: String) throws(Errno) {
    try retrying { unsafe mkdir(path, 0o777) }
  }

  /// The names in an open directory, without `.` and `..`, sorted.
  static func names(in directory: borrowing Descriptor) throws(Errno) -> [String] {
    // `fdopendir` takes its descriptor over, hence one of its own.
    let original = directory.number
    let number = try retrying { fcntl(original, F_DUPFD_CLOEXEC, 0) }
    guard let stream = unsafe fdopendir(number) else {
      let failure = Errno(rawValue: Glibc.errno)
      _ = Glibc.close(number)
      throw failure
    }
    defer { _ = unsafe closedir(stream) }
    var names: [String] = []
    while true {
      Glibc.errno = 0
      guard let entry = unsafe readdir(stream) else {
        if Glibc.errno != 0 { throw Errno(rawValue: Glibc.errno) }
        return names.sorted()
      }
      let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name != "." && name != ".." { names.append(name) }
    }
  }

  static func unlink(
    _ name: String, in directory: Int32 = AT_FDCWD, isDirectory: Bool = false
  ) throws(Errno) {
    try retrying { unsafe unlinkat(directory, name, isDirectory ? AT_REMOVEDIR : 0) }
  }

  static func rename(_ source: String, to destination: String) throws(Errno) {
    try retrying { unsafe Glibc.rename(source, destination) }
  }
}
