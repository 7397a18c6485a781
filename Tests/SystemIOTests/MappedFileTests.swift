import Glibc
import SystemIO
import SystemPackage
import TestSupport
import Testing

@Suite struct MappedFileTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func bytes(_ file: MappedFile, _ range: Range<Int>) -> [UInt8] {
    file.withBytes(range) { span in unsafe span.withUnsafeBytes { unsafe Array($0) } }
  }

  @Test func `a mapped file lends any range of its bytes`() throws {
    let content = (0..<20_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    let file = try MappedFile(path: directory.write(content, to: "a"))
    #expect(file.byteCount == 20_000)
    #expect(bytes(file, 0..<20_000) == content)
    #expect(bytes(file, 4_095..<8_193) == Array(content[4_095..<8_193]))
    #expect(bytes(file, 20_000..<20_000) == [])
  }

  @Test func `an empty file has no bytes`() throws {
    let file = try MappedFile(path: directory.write([UInt8](), to: "empty"))
    #expect(file.byteCount == 0)
    #expect(bytes(file, 0..<0) == [])
    file.release(0..<0)
  }

  /// In a process of its own: other tests map files, too.
  @Test func `released pages leave the resident memory and can be read again`() async throws {
    let path = try directory.write([UInt8](repeating: 5, count: 64 << 20), to: "large")
    await #expect(processExitsWith: .success) { [path = path as String] in
      let file = try MappedFile(path: path)
      file.willNeed(0..<file.byteCount)
      func isRead(_ range: Range<Int>) -> Bool {
        file.withBytes(range) { span in
          unsafe span.withUnsafeBytes { unsafe $0.count == range.count && $0.allSatisfy { $0 == 5 } }
        }
      }
      #expect(isRead(0..<64 << 20))
      let before = try ProcessMemory.current().mappedFileBytes
      // Pieces that meet inside pages: nothing may be left over where they meet.
      let piece = 1_000_001
      for start in stride(from: 0, to: file.byteCount, by: piece) {
        file.release(start..<min(start + piece, file.byteCount))
      }
      let after = try ProcessMemory.current().mappedFileBytes
      #expect(before - after > 60 << 20)
      #expect(isRead(10..<11))
    }
  }

  @Test func `what is forgotten leaves the page cache, and can be read again`() throws {
    let content = [UInt8](repeating: 5, count: 8 << 20)
    let path = try directory.write(content, to: "large")
    try FileSystem.synchronize(path)
    let file = try MappedFile(path: path)
    #expect(bytes(file, 0..<file.byteCount) == content)
    try #require(try cachedPages(of: path) == file.byteCount / Int(getpagesize()))
    file.forget(1 << 20..<2 << 20)
    // A file system in memory keeps everything.
    let rest = try cachedPages(of: path)
    if rest == file.byteCount / Int(getpagesize()) { return }
    #expect(rest == (7 << 20) / Int(getpagesize()))
    let input = try InputFile(path: path)
    var buffer = [UInt8](repeating: 0, count: 3 << 20)
    while try input.read(into: &buffer) > 0 { #expect(buffer.allSatisfy { $0 == 5 }) }
    // What a mapping has touched is not the reader's to give back.
    file.release(0..<file.byteCount)
    file.forget(0..<file.byteCount)
    #expect(try cachedPages(of: path) == 0)
    #expect(bytes(file, 10..<11) == [5])
  }

  private func cachedPages(of path: String) throws -> Int {
    let descriptor = unsafe open(path, O_RDONLY)
    defer { close(descriptor) }
    let byteCount = try FileSystem.fileSize(path)
    var isCached = [UInt8](repeating: 0, count: byteCount / Int(getpagesize()))
    let mapping = unsafe mmap(nil, byteCount, PROT_READ, MAP_SHARED, descriptor, 0)
    let code = unsafe mincore(mapping, byteCount, &isCached)
    unsafe munmap(mapping, byteCount)
    try #require(code == 0)
    return isCached.count { $0 & 1 == 1 }
  }

  @Test func `a missing file is an error that names it`() {
    let path = directory.file("absent")
    #expect(throws: FileError(path: path, operation: .open, errno: .noSuchFileOrDirectory)) {
      try MappedFile(path: path)
    }
  }

  @Test func `a directory and a pipe are no files to map`() throws {
    #expect(throws: FileError(path: directory.path, operation: .map, errno: .isDirectory)) {
      try MappedFile(path: directory.path)
    }
    let pipe = directory.file("pipe")
    #expect(unsafe mkfifo(pipe, 0o600) == 0)
    #expect(throws: FileError.self) { try MappedFile(path: pipe) }
  }

  @Test func `a symbolic link is followed or refused as asked`() throws {
    let target = try directory.write("content", to: "target")
    let link = directory.file("link")
    #expect(unsafe symlink(target, link) == 0)
    #expect(try MappedFile(path: link, symlinks: .follow).byteCount == 7)
    #expect(throws: FileError(path: link, operation: .open, errno: .tooManySymbolicLinkLevels)) {
      try MappedFile(path: link, symlinks: .refuse)
    }
  }

  @Test func `bytes outside the file trap`() async throws {
    await #expect(processExitsWith: .failure) {
      let file = try MappedFile(path: "/proc/self/exe")
      file.withBytes(0..<file.byteCount + 1) { _ in }
    }
  }
}
