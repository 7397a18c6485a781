import SystemIO
import SystemPackage
import TestSupport
import Testing

@Suite struct StagingDirectoryTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func fill(_ staging: StagingDirectory) throws {
    try FileSystem.createDirectories(staging.path + "/gptq")
    try AtomicFile.write("{}", to: staging.path + "/gptq/config.json")
  }

  @Test func `the output appears when it is published, with all its files`() throws {
    let output = directory.file("missing/parents/out/")
    let staging = try StagingDirectory(for: output)
    try fill(staging)
    #expect(try FileSystem.kind(of: output) == nil)
    try staging.publish()
    #expect(try FileSystem.names(in: output + "/gptq") == ["config.json"])
    #expect(try FileSystem.names(in: directory.file("missing/parents")) == ["out"])
  }

  @Test func `what is not published leaves nothing`() throws {
    do {
      let staging = try StagingDirectory(for: directory.file("out"))
      try fill(staging)
      #expect(try FileSystem.names(in: directory.path).count == 1)
    }
    #expect(try FileSystem.names(in: directory.path) == [])
  }

  @Test func `a published directory survives its object`() throws {
    do {
      let staging = try StagingDirectory(for: directory.file("out"))
      try fill(staging)
      try staging.publish()
      try staging.discard()
    }
    #expect(try FileSystem.names(in: directory.path) == ["out"])
  }

  @Test(arguments: [true, false])
  func `an output path that exists is refused`(isDirectory: Bool) throws {
    let output = directory.file("out")
    if isDirectory {
      try FileSystem.createDirectories(output)
    } else {
      try directory.write("", to: "out")
    }
    #expect(throws: FileError(path: output, operation: .create, errno: .fileExists)) {
      try StagingDirectory(for: output)
    }
    #expect(try FileSystem.names(in: directory.path) == ["out"])
  }

  @Test func `an output path taken meanwhile is not replaced`() throws {
    let output = directory.file("out")
    let staging = try StagingDirectory(for: output)
    try FileSystem.createDirectories(output)
    #expect(throws: FileError(path: output, operation: .create, errno: .fileExists)) {
      try staging.publish()
    }
    #expect(try FileSystem.kind(of: staging.path) == .directory)
    try staging.discard()
    #expect(try FileSystem.names(in: directory.path) == ["out"])
  }
}
