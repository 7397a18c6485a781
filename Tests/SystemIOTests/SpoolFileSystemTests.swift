import Glibc
import SystemIO
import SystemPackage
import TestSupport
import Testing

/// What the file system does for a spool.
@Suite struct SpoolFileSystemTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  // MARK: Moves

  @Test func `a directory moves with what is in it`() throws {
    try FileSystem.createDirectories(directory.file("a/job"))
    try FileSystem.createDirectories(directory.file("b"))
    try directory.write("x", to: "a/job/file")
    try FileSystem.move(directory.file("a/job"), to: directory.file("b/1"))
    #expect(try FileSystem.names(in: directory.file("a")) == [])
    #expect(try FileSystem.names(in: directory.file("b/1")) == ["file"])
  }

  @Test func `a move replaces neither a file nor an empty directory`() throws {
    try FileSystem.createDirectories(directory.file("job"))
    try FileSystem.createDirectories(directory.file("empty"))
    try directory.write("x", to: "file")
    for destination in ["empty", "file"].map(directory.file) {
      #expect(throws: FileError(path: destination, operation: .rename, errno: .fileExists)) {
        try FileSystem.move(directory.file("job"), to: destination)
      }
    }
    #expect(try FileSystem.names(in: directory.path) == ["empty", "file", "job"])
  }

  @Test func `a move says which side is missing`() throws {
    let missing = directory.file("missing")
    #expect(throws: FileError(path: missing, operation: .inspect, errno: .noSuchFileOrDirectory)) {
      try FileSystem.move(missing, to: directory.file("b"))
    }
    try directory.write("x", to: "a")
    let destination = directory.file("none/b")
    #expect(throws: FileError(path: destination, operation: .rename, errno: .noSuchFileOrDirectory)) {
      try FileSystem.move(directory.file("a"), to: destination)
    }
  }

  // MARK: Stamps

  @Test func `a stamp changes with the bytes, the times and the file`() throws {
    let path = try directory.write("one", to: "file")
    let first = try FileSystem.stamp(of: path)
    #expect(first.kind == .regular)
    #expect(first.stamp.byteCount == 3)
    #expect(try FileSystem.stamp(of: path) == first)
    let file = try FileDescriptor.open(FilePath(path), .writeOnly, options: .append)
    _ = try file.closeAfter { try file.writeAll("!".utf8) }
    let second = try FileSystem.stamp(of: path)
    #expect(second.stamp != first.stamp)
    #expect(second.stamp.inode == first.stamp.inode)
    try AtomicFile.write("two!", to: path)
    #expect(try FileSystem.stamp(of: path).stamp.inode != first.stamp.inode)
  }

  @Test func `a stamp is of the link and not of its target`() throws {
    #expect(unsafe symlink("nowhere", directory.file("link")) == 0)
    #expect(try FileSystem.stamp(of: directory.file("link")).kind == .symbolicLink)
    #expect(unsafe mkfifo(directory.file("pipe"), 0o600) == 0)
    #expect(try FileSystem.stamp(of: directory.file("pipe")).kind == .other)
    #expect(throws: FileError.self) { try FileSystem.stamp(of: directory.file("none")) }
  }

  // MARK: Writers

  /// Where the file system has no leases there is nothing to test.
  private func hasLeases() throws -> Bool {
    FileSystem.hasNoWriter(try directory.write("x", to: "probe")) != nil
  }

  @Test func `a writer is seen for as long as it has the file open`() throws {
    guard try hasLeases() else { return }
    let path = try directory.write("x", to: "file")
    let writer = try FileDescriptor.open(FilePath(path), .writeOnly)
    #expect(FileSystem.hasNoWriter(path) == false)
    try writer.close()
    #expect(FileSystem.hasNoWriter(path) == true)
    let reader = try FileDescriptor.open(FilePath(path), .readOnly)
    #expect(FileSystem.hasNoWriter(path) == true)
    try reader.close()
    // The lease is given back: a writer need not wait for it.
    try FileDescriptor.open(FilePath(path), .writeOnly, options: .nonBlocking).close()
  }

  @Test func `a mapping for writing is a writer, although the file is closed`() throws {
    guard try hasLeases() else { return }
    let path = try directory.write("some bytes", to: "file")
    let file = try FileDescriptor.open(FilePath(path), .readWrite)
    let mapping = unsafe mmap(nil, 10, PROT_READ | PROT_WRITE, MAP_SHARED, file.rawValue, 0)
    try file.close()
    try #require(unsafe mapping != MAP_FAILED)
    #expect(FileSystem.hasNoWriter(path) == false)
    _ = unsafe munmap(mapping, 10)
    #expect(FileSystem.hasNoWriter(path) == true)
  }

  @Test func `of what is no file of ours nothing is said`() throws {
    #expect(FileSystem.hasNoWriter(directory.file("none")) == nil)
    #expect(FileSystem.hasNoWriter(directory.path) == nil)
    #expect(unsafe mkfifo(directory.file("pipe"), 0o600) == 0)
    #expect(FileSystem.hasNoWriter(directory.file("pipe")) == nil)
    let path = try directory.write("x", to: "file")
    #expect(unsafe symlink(path, directory.file("link")) == 0)
    #expect(FileSystem.hasNoWriter(directory.file("link")) == nil)
  }

  // MARK: Networks

  @Test func `the kernel's own file systems are no network's`() throws {
    #expect(try FileSystem.isNetworked("/proc/self") == false)
    #expect(throws: FileError.self) { try FileSystem.isNetworked(directory.file("none")) }
  }
}
