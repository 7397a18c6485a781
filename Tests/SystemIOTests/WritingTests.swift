import Glibc
import SystemIO
import SystemPackage
import TestSupport
import Testing

@Suite struct WritingTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func content(_ path: String) throws -> [UInt8] {
    try FileSystem.contents(of: path, limit: 1 << 20)
  }

  @Test func `an output file is written in any order`() throws {
    let file = try OutputFile(creating: directory.file("out"))
    try file.reserve(10)
    #expect(try FileSystem.fileSize(file.path) == 10)
    try file.write([8, 9], at: 8)
    try file.write([1, 2, 3], at: 1)
    try file.synchronize()
    #expect(try content(file.path) == [0, 1, 2, 3, 0, 0, 0, 0, 8, 9])
  }

  @Test func `an output file never replaces one`() throws {
    let path = try directory.write("old", to: "out")
    #expect(throws: FileError(path: path, operation: .create, errno: .fileExists)) {
      try OutputFile(creating: path)
    }
    #expect(try content(path) == Array("old".utf8))
  }

  @Test func `more space than the disk has is refused before the work`() throws {
    let file = try OutputFile(creating: directory.file("huge"))
    let wanted = try FileSystem.freeBytes(directory.path) * 2 + (1 << 40)
    #expect(throws: FileError(path: file.path, operation: .reserve, errno: .noSpace, neededBytes: wanted)) {
      try file.reserve(wanted)
    }
    #expect(try FileSystem.fileSize(file.path) == 0)
  }

  @Test func `an atomic file is replaced whole and leaves nothing beside it`() throws {
    let path = directory.file("state.json")
    try AtomicFile.write("first", to: path)
    try AtomicFile.write("second", to: path)
    #expect(try content(path) == Array("second".utf8))
    #expect(try FileSystem.names(in: directory.path) == ["state.json"])
  }

  @Test func `an atomic file that cannot take its place leaves nothing`() throws {
    let path = directory.file("occupied")
    try FileSystem.createDirectories(path)
    #expect(throws: FileError(path: path, operation: .rename, errno: .isDirectory)) {
      try AtomicFile.write("text", to: path)
    }
    #expect(try FileSystem.names(in: directory.path) == ["occupied"])
  }

  @Test func `contents beyond the limit are refused`() throws {
    let path = try directory.write("12345", to: "five")
    #expect(try FileSystem.contents(of: path, limit: 5).count == 5)
    #expect(throws: FileError(path: path, operation: .read, errno: .fileTooLarge)) {
      try FileSystem.contents(of: path, limit: 4)
    }
  }

  @Test func `a copied file has the same bytes`() throws {
    let source = try directory.write("tokenizer", to: "a")
    try FileSystem.copyFile(source, to: directory.file("b"))
    #expect(try content(directory.file("b")) == Array("tokenizer".utf8))
  }

  @Test func `removing a tree does not follow links out of it`() throws {
    let kept = try TemporaryDirectory()
    try kept.write("precious", to: "file")
    let tree = directory.file("tree")
    try FileSystem.createDirectories(tree + "/a/b/c")
    try directory.write("x", to: "tree/a/b/file")
    #expect(unsafe symlink(kept.path, tree + "/a/link") == 0)
    try FileSystem.removeTree(tree)
    try FileSystem.removeTree(tree)
    #expect(try FileSystem.kind(of: tree) == nil)
    #expect(try FileSystem.names(in: kept.path) == ["file"])
  }
}
