import SystemIO
import SystemPackage
import TestSupport
import Testing

@testable import Daemon

@Suite struct ManifestTests {
  typealias Fixture = DropFolderFixture

  private let shard = Fixture.shard(elements: 4)
  private var lines: String {
    "\(Fixture.digest(shard))  model.safetensors\n\(Fixture.digest(Array("{}".utf8))) *./config.json\n"
  }

  private func dropModel(_ fixture: Fixture, manifest: String) throws {
    try fixture.dropModel()
    try fixture.append(manifest, to: "model/SHA256SUMS")
  }

  @Test(arguments: [false, true])
  func `a manifest that verifies makes a drop ready, on a network too`(_ isNetworked: Bool) throws {
    let fixture = try Fixture(isNetworked: isNetworked)
    try dropModel(fixture, manifest: lines)
    #expect(fixture.state() == .waiting(reasons: ["verifying SHA256SUMS"]))
    #expect(fixture.verifiedState() == .ready(.manifest))
    // The outcome holds while the files do.
    #expect(fixture.state(after: .seconds(60)) == .ready(.manifest))
  }

  @Test func `a mismatch waits, settled or not, until the file is replaced`() throws {
    let fixture = try Fixture()
    try dropModel(fixture, manifest: lines)
    let path = fixture.incoming("model/model.safetensors")
    try AtomicFile.write(Array(shard.dropLast()) + [0], to: path)
    let mismatch = Drop.State.waiting(reasons: ["model.safetensors differs from its digest in SHA256SUMS"])
    #expect(fixture.verifiedState() == mismatch)
    #expect(fixture.settledState() == mismatch)
    try AtomicFile.write(shard, to: path)
    #expect(fixture.verifiedState() == .ready(.manifest))
  }

  @Test func `a file that only the manifest knows is waited for`() throws {
    let fixture = try Fixture()
    try dropModel(fixture, manifest: lines + "\(Fixture.digest([1]))  sub/tokenizer.json\n")
    #expect(
      fixture.settledState()
        == .waiting(reasons: ["sub/tokenizer.json is missing, SHA256SUMS lists it"]))
    try fixture.append([1], to: "model/sub/tokenizer.json")
    #expect(fixture.verifiedState() == .ready(.manifest))
  }

  @Test func `a manifest that leaves out a shard is not enough`() throws {
    let some = "\(Fixture.digest(Array("{}".utf8)))  config.json\n"
    let networked = try Fixture(isNetworked: true)
    try dropModel(networked, manifest: some)
    guard case .waiting(let reasons) = networked.verifiedState() else {
      Issue.record("ready without a proof")
      return
    }
    #expect(reasons.joined().contains("lists every shard"))
    let local = try Fixture()
    try dropModel(local, manifest: some)
    #expect(local.verifiedState() != .ready(.manifest))
    #expect(local.settledState() == .ready(.settled))
  }

  @Test func `while files change nothing is hashed`() throws {
    let fixture = try Fixture()
    try dropModel(fixture, manifest: lines)
    for number in 0..<5 {
      try fixture.append("\(number)", to: "model/README")
      #expect(fixture.state() == .waiting(reasons: ["verifying SHA256SUMS"]))
      #expect(fixture.folder.timeToNextScan == .seconds(5))
    }
    _ = fixture.state()
    #expect(fixture.verifiedState() == .ready(.manifest))
  }

  @Test(arguments: ["../secret", "/etc/passwd", "a/../../b", "a//b"])
  func `a manifest that leads out of the directory is refused`(_ path: String) throws {
    let fixture = try Fixture()
    try dropModel(fixture, manifest: "\(Fixture.digest([]))  \(path)\n")
    guard case .refused(let refusal) = fixture.state() else {
      Issue.record("\(path) is let through")
      return
    }
    #expect(refusal.reason == "SHA256SUMS lists '\(path)', which is no file below this directory")
  }

  @Test(arguments: ["", "\n", "hello\n", "00  config.json\n"])
  func `what sha256sum does not write is no manifest, and holds the drop back`(_ text: String) throws {
    let fixture = try Fixture()
    try dropModel(fixture, manifest: text)
    guard case .waiting(let reasons) = fixture.settledState() else {
      Issue.record("ready without a proof")
      return
    }
    #expect(reasons.count == 1)
    #expect(reasons.first?.contains("SHA256SUMS") == true)
    // A person may overrule it.
    try fixture.append("", to: "model/.ready")
    #expect(fixture.state() == .ready(.marker))
  }

  @Test func `a comparison that nobody waits for any more ends, and the next one is done`() throws {
    let directory = try TemporaryDirectory()
    let large = directory.file("large")
    // Sparse, and long enough that it is still being read when it is forgotten.
    let file = try FileDescriptor.open(
      FilePath(large), .writeOnly, options: .create, permissions: .ownerReadWrite)
    try file.closeAfter { try file.resize(to: 1 << 36) }
    try directory.write("x", to: "small")
    func task(_ name: String, _ digest: String) throws -> ManifestVerifier.Task {
      let stamp = try FileSystem.stamp(of: directory.file(name)).stamp
      return .init(directory: directory.path, files: [.init(path: name, digest: digest, stamp: stamp)])
    }
    let verifier = ManifestVerifier()
    #expect(try verifier.outcome(of: "a", task("large", "?")) == nil)
    let small = try task("small", Fixture.digest(Array("x".utf8)))
    #expect(verifier.outcome(of: "b", small) == nil)
    verifier.forget("a")
    var outcome: ManifestVerifier.Outcome?
    for _ in 0..<1000 where outcome == nil {
      Pause.milliseconds(2)
      outcome = verifier.outcome(of: "b", small)
    }
    #expect(outcome == .verified)
    try FileSystem.removeTree(directory.file("small"))
    let missing = ManifestVerifier.Task(directory: directory.path, files: small.files + small.files)
    outcome = nil
    for _ in 0..<1000 where outcome == nil {
      outcome = verifier.outcome(of: "b", missing)
      Pause.milliseconds(2)
    }
    guard case .unreadable = outcome else {
      Issue.record("\(String(describing: outcome)) for a file that is gone")
      return
    }
  }
}
