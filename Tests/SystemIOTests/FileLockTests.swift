import Glibc
import SystemIO
import TestSupport
import Testing

@Suite struct FileLockTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  @Test func `a lock that is held names its holder`() throws {
    let path = directory.file("lock")
    let lock = try FileLock(path: path, purpose: "the first daemon")
    let expected = FileLockError.held(path: path, holder: "process \(getpid()), the first daemon")
    #expect(throws: expected) { try FileLock(path: path, purpose: "the second") }
    #expect(expected.exitCode == EX_UNAVAILABLE)
    withExtendedLifetime(lock) {}
  }

  @Test func `a lock goes with its object, and the file stays`() throws {
    let path = directory.file("lock")
    for purpose in ["first", "second, with a longer text", "third"] {
      let lock = try FileLock(path: path, purpose: purpose)
      let text = try FileSystem.contents(of: lock.path, limit: 100)
      #expect(String(decoding: text, as: UTF8.self) == "process \(getpid()), \(purpose)\n")
    }
  }

  @Test func `a text of a holder that is gone locks nothing`() throws {
    let path = try directory.write("process 1, init\n", to: "lock")
    _ = try FileLock(path: path, purpose: "daemon")
  }

  @Test func `a holder that has written nothing is still a holder`() throws {
    let path = try directory.write("", to: "lock")
    let descriptor = unsafe open(path, O_RDONLY)
    defer { close(descriptor) }
    try #require(flock(descriptor, LOCK_EX) == 0)
    #expect(throws: FileLockError.held(path: path, holder: "another process")) {
      try FileLock(path: path, purpose: "daemon")
    }
  }

  @Test func `a lock file that is a link is refused, and its target left alone`() throws {
    let target = try directory.write("precious", to: "target")
    #expect(unsafe symlink(target, directory.file("lock")) == 0)
    #expect(throws: FileLockError.self) { try FileLock(path: directory.file("lock"), purpose: "daemon") }
    #expect(try FileSystem.fileSize(target) == 8)
  }

  @Test func `a lock file without a directory is a file's error`() throws {
    let error = #expect(throws: FileLockError.self) {
      try FileLock(path: directory.file("none/lock"), purpose: "daemon")
    }
    #expect(error?.exitCode == EX_NOINPUT)
  }
}
