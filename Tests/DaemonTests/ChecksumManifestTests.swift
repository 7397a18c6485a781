import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

struct ChecksumManifestTests {
  private let directory: TemporaryDirectory

  init() throws {
    directory = try TemporaryDirectory(isInMemory: true)
    try directory.write("weights", to: "model.safetensors")
    try directory.write("", to: "empty file")
    try FileSystem.createDirectories(directory.file("gptq/deep"))
    try directory.write("{}", to: "gptq/deep/config.json")
    try ChecksumManifest.write(into: directory.path)
  }

  @Test func `a file that was changed on purpose gets another line, and only that one`() throws {
    for name in ["empty file", "model.safetensors"] {
      try AtomicFile.rewrite(Array("other bytes".utf8), to: directory.file(name))
    }
    #expect(try problems.count == 2)
    try ChecksumManifest.update(["empty file"], in: directory.path)
    #expect(try problems == ["model.safetensors is not what was written"])
  }

  private var problems: [String] { get throws { try ChecksumManifest.problems(in: directory.path) } }

  /// Runs `sha256sum -c`; nil where there is no such program.
  private func sha256sum() throws -> Int32? {
    let program = "/usr/bin/sha256sum"
    guard try FileSystem.exists(program) else { return nil }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = ["--check", "--strict", "--quiet", "SHA256SUMS"]
    process.currentDirectoryURL = URL(fileURLWithPath: directory.path)
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    return process.terminationStatus
  }

  @Test func `what was written is sound, for sha256sum as well`() throws {
    #expect(try problems == [])
    if let status = try sha256sum() { #expect(status == 0) }
    let manifest = String(
      decoding: try FileSystem.contents(of: directory.file("SHA256SUMS"), limit: 1 << 20), as: UTF8.self)
    #expect(
      manifest.split(separator: "\n").map { $0.dropFirst(66) } == [
        "empty file", "gptq/deep/config.json", "model.safetensors",
      ])
  }

  @Test(arguments: [
    #"back\slash"#, #"\leading"#, "line\nfeed", "return\r", "\"quoted\" 'name'", "*star", " x ",
  ])
  func `names that need care are read back`(_ name: String) throws {
    try directory.write("x", to: name)
    try ChecksumManifest.write(into: directory.path)
    #expect(try problems == [])
    if let status = try sha256sum() { #expect(status == 0) }
    try FileSystem.removeTree(directory.file(name))
    #expect(try problems == ["\(name) is missing"])
  }

  @Test func `missing, changed and unlisted files are told by their names`() throws {
    try FileSystem.removeTree(directory.file("empty file"))
    try FileSystem.removeTree(directory.file("model.safetensors"))
    try directory.write("Weights", to: "model.safetensors")
    try directory.write("", to: "gptq/new")
    #expect(
      try problems == [
        "empty file is missing", "model.safetensors is not what was written", "gptq/new is not listed",
      ])
    if let status = try sha256sum() { #expect(status != 0) }
  }

  @Test func `a link or a directory in a file's place is as good as missing`() throws {
    try FileSystem.removeTree(directory.file("empty file"))
    try FileSystem.removeTree(directory.file("model.safetensors"))
    try FileSystem.createDirectories(directory.file("empty file"))
    try directory.write("weights", to: "gptq/weights")
    try FileManager.default.createSymbolicLink(
      atPath: directory.file("model.safetensors"), withDestinationPath: "gptq/weights")
    #expect(
      try problems == [
        "empty file is missing", "model.safetensors is missing", "gptq/weights is not listed",
      ])
  }

  @Test(arguments: ["nonsense\n", "", "\n\n"])
  func `a manifest that nobody wrote is a problem itself`(_ text: String) throws {
    try FileSystem.removeTree(directory.file("SHA256SUMS"))
    try directory.write(text, to: "SHA256SUMS")
    #expect(try problems.count == 1)
    #expect(try problems[0].contains("SHA256SUMS"))
  }

  @Test(arguments: ["../x", "/etc/passwd", "a/../b", "./../x", ""])
  func `a manifest leads nowhere else`(_ path: String) throws {
    try FileSystem.removeTree(directory.file("SHA256SUMS"))
    try directory.write("\(String(repeating: "0", count: 64))  \(path)\n", to: "SHA256SUMS")
    #expect(try problems.count == 1)
    #expect(try problems[0].contains("SHA256SUMS"))
  }

  @Test func `without a manifest there is an error`() throws {
    try FileSystem.removeTree(directory.file("SHA256SUMS"))
    #expect(throws: FileError.self) { try problems }
  }
}
