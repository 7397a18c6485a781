import Glibc
import SystemIO
import SystemPackage
import TestSupport
import Testing

@Suite struct DirectoryWatchTests {
  let directory: TemporaryDirectory
  var incoming: String { directory.file("incoming") }

  init() throws {
    directory = try TemporaryDirectory()
    try FileSystem.createDirectories(incoming)
  }

  private func event(_ kind: DirectoryWatch.Kind, _ name: String, isDirectory: Bool = false)
    -> DirectoryWatch.Event
  {
    DirectoryWatch.Event(directory: incoming, name: name, kind: kind, isDirectory: isDirectory)
  }

  @Test func `nothing to tell is told at once`() throws {
    var watch = try DirectoryWatch()
    try watch.add(incoming)
    #expect(try watch.read() == [])
  }

  @Test func `what happens to names is told in order`() throws {
    var watch = try DirectoryWatch()
    try watch.add(incoming)
    try watch.add(incoming)
    try directory.write("x", to: "incoming/file")
    try FileSystem.createDirectories(directory.file("outside"))
    try FileSystem.move(directory.file("outside"), to: directory.file("incoming/model"))
    try FileSystem.move(directory.file("incoming/model"), to: directory.file("outside"))
    try FileSystem.removeTree(directory.file("incoming/file"))
    // Opening a directory for its fsync, as moves do, is no news.
    #expect(
      try watch.read() == [
        event(.created, "file"), event(.closedAfterWrite, "file"),
        event(.movedIn, "model", isDirectory: true), event(.movedOut, "model", isDirectory: true),
        event(.deleted, "file"),
      ])
    #expect(try watch.read() == [])
  }

  @Test func `the descriptor is readable when there is news, and only then`() throws {
    var watch = try DirectoryWatch()
    try watch.add(incoming)
    var entry = pollfd(fd: watch.descriptor, events: Int16(POLLIN), revents: 0)
    #expect(unsafe poll(&entry, 1, 0) == 0)
    try directory.write("x", to: "incoming/file")
    #expect(unsafe poll(&entry, 1, 0) == 1)
    _ = try watch.read()
    #expect(unsafe poll(&entry, 1, 0) == 0)
  }

  @Test(arguments: [true, false])
  func `a watched directory that goes is told, and can be watched again`(_ isMoved: Bool) throws {
    var watch = try DirectoryWatch()
    try watch.add(incoming)
    if isMoved {
      try FileSystem.move(incoming, to: directory.file("elsewhere"))
    } else {
      try FileSystem.removeTree(incoming)
    }
    #expect(try watch.read() == [event(.gone, "", isDirectory: true)])
    try FileSystem.createDirectories(incoming)
    try watch.add(incoming)
    try directory.write("x", to: "incoming/file")
    #expect(try watch.read().first == event(.created, "file"))
  }

  @Test func `only a directory can be watched`() throws {
    var watch = try DirectoryWatch()
    let file = try directory.write("x", to: "file")
    #expect(throws: FileError(path: file, operation: .watch, errno: .notDirectory)) { try watch.add(file) }
  }
}
