import Glibc
import SystemIO
import TestSupport
import Testing

@testable import Daemon

@Suite struct DropFolderTests {
  typealias Fixture = DropFolderFixture

  private func reasons(_ state: Drop.State?) -> [String] {
    if case .waiting(let reasons) = state { reasons } else { [] }
  }

  private let settling = Drop.State.waiting(
    reasons: ["complete, waits until nothing has changed for \(Fixture.settleTime)"])

  // MARK: Settling

  @Test func `a complete checkpoint is ready after three scans and the settle time, not before`() throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    #expect(fixture.state() == settling)
    #expect(fixture.folder.timeToNextScan == .seconds(5))
    // Time alone is not enough, nor are scans alone.
    #expect(fixture.state(after: .seconds(20)) == settling)
    #expect(fixture.state() == .ready(.settled))
    try fixture.dropModel("other")
    for _ in 0..<9 { #expect(fixture.state(of: "other") == settling) }
    _ = fixture.state(of: "other")
    #expect(fixture.state(of: "other") == .ready(.settled))
  }

  @Test func `a change of any file begins the settle time anew`() throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    for text in ["{", "}"] {
      for _ in 0..<3 { #expect(fixture.state(after: .seconds(4)) == settling) }
      try fixture.append(text, to: "model/extra/tokenizer.json")
    }
    for _ in 0..<3 { #expect(fixture.state(after: .seconds(4)) == settling) }
    #expect(fixture.state(after: .seconds(4)) == .ready(.settled))
  }

  @Test func `a shard that grows slowly is waited for, however long it takes`() throws {
    let fixture = try Fixture()
    let bytes = Fixture.shard(elements: 16)
    try fixture.append("{}", to: "model/config.json")
    try fixture.append(Array(bytes[..<4]), to: "model/model.safetensors")
    #expect(reasons(fixture.settledState()) == ["model.safetensors: the header is not complete"])
    try fixture.append(Array(bytes[4..<20]), to: "model/model.safetensors")
    #expect(reasons(fixture.settledState()) == ["model.safetensors: the header is not complete"])
    try fixture.append(Array(bytes[20..<(bytes.count - 1)]), to: "model/model.safetensors")
    let text = "model.safetensors has \(bytes.count - 1) of \(bytes.count) bytes"
    #expect(reasons(fixture.settledState()) == [text])
    try fixture.append([bytes[bytes.count - 1]], to: "model/model.safetensors")
    #expect(fixture.settledState() == .ready(.settled))
    try fixture.append([0], to: "model/model.safetensors")
    let longer = "model.safetensors has \(bytes.count + 1) of \(bytes.count) bytes"
    #expect(reasons(fixture.settledState()) == [longer])
  }

  @Test func `a preallocated file of zeros is waited for`() throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: "model/config.json")
    try fixture.append([UInt8](repeating: 0, count: 100), to: "model/model.safetensors")
    let text = "model.safetensors: its header is not that of a safetensors file"
    #expect(reasons(fixture.settledState()) == [text])
  }

  @Test func `shards come in any order, and the missing ones are named`() throws {
    let fixture = try Fixture()
    let shards = (1...3).map { "model-0000\($0)-of-00003.safetensors" }
    try fixture.append(Fixture.shard(elements: 3), to: "model/\(shards[2])")
    // From the names alone, before there is an index.
    #expect(
      reasons(fixture.settledState())
        == ["config.json is missing", "\(shards[0]) and 1 more are missing"])
    try fixture.append(Fixture.index(shards), to: "model/model.safetensors.index.json")
    #expect(
      reasons(fixture.settledState())
        == ["config.json is missing", "\(shards[0]) is missing", "\(shards[1]) is missing"])
    try fixture.append(Fixture.shard(elements: 1), to: "model/\(shards[0])")
    try fixture.append("{}", to: "model/config.json")
    #expect(reasons(fixture.settledState()) == ["\(shards[1]) is missing"])
    try fixture.append(Fixture.shard(elements: 2), to: "model/\(shards[1])")
    #expect(fixture.settledState() == .ready(.settled))
  }

  @Test(arguments: ["part", "tmp", "incomplete", "crdownload", "aria2", "download"])
  func `a name of an incomplete file holds the drop back`(_ suffix: String) throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    let partial = ".cache/download/tokenizer.json.\(suffix)"
    try fixture.append("{}", to: "model/\(partial)")
    #expect(reasons(fixture.settledState()) == ["\(partial) has the name of an incomplete file"])
    try FileSystem.move(
      fixture.incoming("model/\(partial)"), to: fixture.incoming("model/tokenizer.json"))
    #expect(fixture.settledState() == .ready(.settled))
  }

  @Test func `a JSON file that is cut off is waited for`() throws {
    let fixture = try Fixture()
    try fixture.append(#"{"model_type":"#, to: "model/config.json")
    try fixture.append(#"{"weight_map":{"a":"a.saf"#, to: "model/model.safetensors.index.json")
    let found = reasons(fixture.settledState())
    #expect(found.count == 2)
    #expect(found.first?.hasPrefix("config.json is not complete") == true)
    #expect(found.last?.hasPrefix("model.safetensors.index.json is not complete") == true)
  }

  @Test func `a file with a writer is waited for, however long nothing is written`() throws {
    var writer: String? = "tokenizer.json"
    let fixture = try Fixture { path in FileSystem.name(of: path) != writer }
    try fixture.dropModel()
    try fixture.append("{", to: "model/tokenizer.json")
    #expect(reasons(fixture.settledState()) == ["tokenizer.json is open for writing"])
    writer = nil
    #expect(fixture.state() == .ready(.settled))
  }

  @Test func `a pickle by another name is never ready, and the reason says what to do`() throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: "model/config.json")
    try fixture.append("pickle", to: "model/weights.ckpt")
    let text = reasons(fixture.settledState()).joined()
    #expect(text.contains("weights.ckpt is not named as weights are"))
    #expect(text.contains("safe_serialization=True"))
  }

  @Test(arguments: ["zip", "legacy", "sharded"])
  func `weights of torch are ready when their last byte is there`(_ layout: String) throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: "model/config.json")
    let names = try FileSystem.names(in: TestFiles.torch(layout)).sorted().reversed()
    for name in names.dropLast() {
      try fixture.append(
        FileSystem.contents(of: TestFiles.torch("\(layout)/\(name)"), limit: 1 << 20), to: "model/\(name)")
    }
    let last = try #require(names.last)
    let bytes = try FileSystem.contents(of: TestFiles.torch("\(layout)/\(last)"), limit: 1 << 20)
    let steps = 3
    for step in 0..<steps {
      #expect(reasons(fixture.settledState()) != [], "\(step)")
      try fixture.append(
        Array(bytes[bytes.count * step / steps..<bytes.count * (step + 1) / steps]), to: "model/\(last)")
    }
    #expect(fixture.settledState() == .ready(.settled))
  }

  @Test func `what is no file of torch waits, and says why`() throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: "model/config.json")
    try fixture.append("pickle", to: "model/pytorch_model.bin")
    #expect(
      reasons(fixture.settledState())
        == ["pytorch_model.bin: it does not begin like a file of torch.save"])
  }

  // MARK: Marker

  @Test func `a marker makes a complete checkpoint ready at once, and goes along`() throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    try fixture.append("", to: "model/.ready")
    #expect(fixture.state() == .ready(.marker))
    try fixture.claim("model", as: "1")
    #expect(
      try FileSystem.names(in: FileSystem.join(fixture.spool.working, "1"))
        == [".ready", "config.json", "model.safetensors"])
    #expect(fixture.scan() == [])
  }

  @Test func `a marker on an incomplete checkpoint is refused with what is missing`() throws {
    let fixture = try Fixture()
    try fixture.append("", to: "model/.ready")
    try fixture.append(Fixture.shard(elements: 4), to: "model/model.safetensors")
    #expect(
      fixture.state()
        == .refused(
          .init(
            reason: "it is marked as ready, but incomplete: config.json is missing",
            mend: "add what is missing, or remove .ready until the upload is complete")))
    try fixture.append("{}", to: "model/config.json")
    #expect(fixture.state() == .ready(.marker))
  }

  // MARK: Renames

  @Test func `a complete directory that is renamed in is ready at once`() throws {
    let fixture = try Fixture()
    try fixture.dropModel(".upload")
    #expect(fixture.scan() == [])
    try FileSystem.move(fixture.incoming(".upload"), to: fixture.incoming("model"))
    #expect(fixture.state() == .ready(.renamed))
  }

  @Test func `a directory that was renamed in incomplete has to settle`() throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: ".upload/config.json")
    try FileSystem.move(fixture.incoming(".upload"), to: fixture.incoming("model"))
    #expect(reasons(fixture.state()).count == 1)
    try fixture.append(Fixture.shard(elements: 4), to: "model/model.safetensors")
    #expect(fixture.state() == settling)
    #expect(fixture.settledState() == .ready(.settled))
  }

  @Test func `a rename says nothing about another directory of the same name`() throws {
    let fixture = try Fixture()
    try fixture.dropModel(".upload")
    try FileSystem.move(fixture.incoming(".upload"), to: fixture.incoming("model"))
    _ = fixture.folder.drain()
    try FileSystem.move(fixture.incoming("model"), to: fixture.directory.file("away"))
    try fixture.dropModel()
    // Before the news of this are taken in.
    let drops = fixture.folder.scan(now: fixture.now)
    #expect(drops.map(\.state) == [settling])
  }

  // MARK: What is no drop

  @Test func `hidden names are nobody's business, and plain files wait`() throws {
    let fixture = try Fixture()
    try fixture.dropModel(".hidden")
    try fixture.append("x", to: "model.onnx")
    #expect(fixture.scan().map(\.name) == ["model.onnx"])
    #expect(
      reasons(fixture.settledState(of: "model.onnx"))
        == ["model.onnx is a file, not a directory with a checkpoint in it"])
  }

  // MARK: GGUF

  private func gguf(_ name: String = "llama") throws -> [UInt8] {
    try FileSystem.contents(of: TestFiles.gguf("\(name).gguf"), limit: 1 << 24)
  }

  @Test func `a GGUF file that is complete gets a directory of its own, and is taken`() throws {
    let fixture = try Fixture()
    let bytes = try gguf()
    try fixture.append(Array(bytes.prefix(3_000)), to: "tiny-bf16.gguf")
    #expect(
      reasons(fixture.settledState(of: "tiny-bf16.gguf")) == ["tiny-bf16.gguf: the header is not complete"])
    try fixture.append(Array(bytes[3_000..<9_000]), to: "tiny-bf16.gguf")
    #expect(
      reasons(fixture.settledState(of: "tiny-bf16.gguf"))
        == ["tiny-bf16.gguf has 9000 of \(bytes.count) bytes"])
    try fixture.append(Array(bytes[9_000...]), to: "tiny-bf16.gguf")
    #expect(fixture.state(of: "tiny-bf16.gguf") == settling)
    _ = fixture.settledState(of: "tiny-bf16.gguf")
    #expect(fixture.scan().map(\.name) == ["tiny-bf16"])
    #expect(fixture.state(of: "tiny-bf16") != nil)
    #expect(try FileSystem.names(in: fixture.incoming("tiny-bf16")) == ["tiny-bf16.gguf"])
    #expect(
      fixture.settledState(of: "tiny-bf16") == .ready(.settled)
        || fixture.state(of: "tiny-bf16") == .ready(.renamed))
  }

  @Test func `parts of a GGUF model wait for one another, and an open file is left alone`() throws {
    var isOpen = true
    let fixture = try Fixture(hasNoWriter: { _ in !isOpen })
    for part in [1, 3] { try fixture.append(gguf(), to: "m-0000\(part)-of-00003.gguf") }
    let first = "m-00001-of-00003.gguf"
    #expect(reasons(fixture.settledState(of: first)) == ["m-00002-of-00003.gguf is missing"])
    #expect(fixture.scan().count == 1)
    try fixture.append(gguf(), to: "m-00002-of-00003.gguf")
    #expect(reasons(fixture.settledState(of: first)).first == "\(first) is open for writing")
    isOpen = false
    _ = fixture.scan()
    #expect(
      try FileSystem.names(in: fixture.incoming("m")).sorted()
        == (1...3).map { "m-0000\($0)-of-00003.gguf" })
  }

  @Test func `a directory with a GGUF model is a drop, and one with two is none`() throws {
    let fixture = try Fixture()
    try fixture.append(gguf(), to: "model/a.gguf")
    try fixture.append("", to: "model/.ready")
    #expect(fixture.state() == .ready(.marker))
    try fixture.append(gguf(), to: "other/a.gguf")
    try fixture.append(gguf(), to: "other/b.gguf")
    #expect(
      reasons(fixture.settledState(of: "other")).first
        == "there are 2 models in it, a.gguf, b.gguf: drop one at a time")
  }

  @Test func `a name that is taken is told of`() throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: "tiny/config.json")
    try fixture.append(gguf(), to: "tiny.gguf")
    #expect(
      reasons(fixture.settledState(of: "tiny.gguf")).first?.hasPrefix("tiny is there already") == true)
  }

  @Test func `a folder that cannot be listed is a fault and no crash, and passes`() throws {
    let fixture = try Fixture()
    try FileSystem.removeTree(fixture.spool.incoming)
    #expect(fixture.scan() == [])
    #expect(fixture.folder.fault?.path == fixture.spool.incoming)
    try fixture.spool.create()
    try fixture.dropModel(".upload")
    #expect(fixture.scan() == [])
    #expect(fixture.folder.fault == nil)
    // It is watched again, too.
    try FileSystem.move(fixture.incoming(".upload"), to: fixture.incoming("model"))
    #expect(fixture.state() == .ready(.renamed))
  }

  // MARK: Refusals

  @Test func `links and pipes are refused wherever they are, until they are gone`() throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    try fixture.append("", to: "model/.ready")
    try FileSystem.createDirectories(fixture.incoming("model/a/b"))
    for (path, reason) in [
      ("model/tokenizer.json", "tokenizer.json is a"), ("model/a/b/c", "a/b/c is a"),
    ] {
      #expect(unsafe symlink("/etc/passwd", fixture.incoming(path)) == 0)
      guard case .refused(let refusal) = fixture.state() else {
        Issue.record("\(path) is let through")
        continue
      }
      #expect(refusal.reason.hasPrefix("\(reason) symbolic link"))
      #expect(refusal.mend.contains("cp -rL"))
      #expect(throws: ClaimError.notReady("model")) { try fixture.claim("model", as: "1") }
      try FileSystem.removeTree(fixture.incoming(path))
      #expect(unsafe mkfifo(fixture.incoming(path), 0o600) == 0)
      guard case .refused(let refusal) = fixture.state() else {
        Issue.record("\(path) is let through")
        continue
      }
      #expect(refusal.reason == "\(reason) pipe, a socket or a device")
      try FileSystem.removeTree(fixture.incoming(path))
    }
    #expect(fixture.state() == .ready(.marker))
  }

  @Test func `a drop that is itself a link or a pipe is refused`() throws {
    let fixture = try Fixture()
    try fixture.dropModel(".elsewhere")
    #expect(unsafe symlink(".elsewhere", fixture.incoming("link")) == 0)
    #expect(unsafe mkfifo(fixture.incoming("pipe"), 0o600) == 0)
    for drop in fixture.scan() {
      guard case .refused = drop.state else {
        Issue.record("\(drop.name) is let through")
        continue
      }
    }
  }

  @Test(arguments: ["../secret", "/etc/passwd", "sub/shard", "..", ".", ""])
  func `a weight map that leads out of the directory is refused, marked or not`(_ shard: String) throws {
    let fixture = try Fixture()
    try fixture.append("{}", to: "model/config.json")
    try fixture.append(Fixture.index([shard]), to: "model/model.safetensors.index.json")
    for _ in 0..<2 {
      guard case .refused(let refusal) = fixture.state() else {
        Issue.record("\(shard) is let through")
        return
      }
      #expect(
        refusal.reason == "model.safetensors.index.json places tensors in '\(shard)', "
          + "which is no file of this directory")
      try fixture.append("", to: "model/.ready")
    }
  }

  @Test func `a name that is not UTF-8 is refused instead of overlooked`() throws {
    let fixture = try Fixture()
    let path = Array(fixture.incoming("x").utf8CString.dropLast()) + [CChar(bitPattern: 0xFF), 0]
    #expect(unsafe mkdir(path, 0o700) == 0)
    guard case .refused(let refusal) = fixture.scan().first?.state, refusal.mend == "rename it" else {
      Issue.record("the name is let through or overlooked")
      return
    }
    unsafe rmdir(path)
    #expect(fixture.scan() == [])
  }

  // MARK: Networks

  @Test func `on a network file system only a marker counts`() throws {
    let fixture = try Fixture(isNetworked: true)
    try fixture.dropModel(".upload")
    try FileSystem.move(fixture.incoming(".upload"), to: fixture.incoming("model"))
    #expect(reasons(fixture.state()).joined().contains("on a network file system only .ready"))
    #expect(reasons(fixture.settledState()).count == 1)
    try fixture.append("", to: "model/.ready")
    #expect(fixture.state() == .ready(.marker))
  }

  // MARK: Claims and names

  @Test func `drops are in the order of their arrival`() throws {
    let fixture = try Fixture()
    for name in ["m", "z", "a"] {
      try fixture.dropModel(name)
      _ = fixture.scan()
    }
    #expect(fixture.scan().map(\.name) == ["m", "z", "a"])
    #expect(fixture.scan().map(\.arrival) == [0, 1, 2])
  }

  @Test func `a name that is taken again after a claim is a new drop`() throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    #expect(fixture.settledState() == .ready(.settled))
    try fixture.claim("model", as: "1")
    #expect(throws: ClaimError.notReady("model")) { try fixture.claim("model", as: "2") }
    try fixture.dropModel()
    #expect(fixture.state() == settling)
    #expect(fixture.scan().map(\.arrival) == [1])
    #expect(fixture.settledState() == .ready(.settled))
    try fixture.claim("model", as: "2")
    #expect(try FileSystem.names(in: fixture.spool.working) == ["1", "2"])
  }

  @Test func `a job's source that stays in the folder is no drop, by its name or by its inode`() throws {
    let fixture = try Fixture()
    let id = LedgerFixture.id
    for standing in ["working", "done", "failed"] { try fixture.dropModel("\(id).\(standing)") }
    try fixture.dropModel("kept")
    try fixture.dropModel("model.done")
    #expect(fixture.scan().map(\.name) == ["kept", "model.done"])
    let inode = try FileSystem.stamp(of: fixture.incoming("kept")).stamp.inode
    let contents = try DropContents(directory: fixture.incoming("kept"))
    func names(_ claim: DropFolder.Claim) -> [String] {
      fixture.folder.scan(now: fixture.now, claims: ["kept": [claim]]).map(\.name)
    }
    #expect(names(.init(inode: inode, contents: nil)) == ["model.done"])
    #expect(names(.init(inode: inode + 1, contents: nil)).contains("kept"))
    // One that is over is a new drop when anything in it changes.
    #expect(names(.init(inode: inode, contents: contents.digest)) == ["model.done"])
    try fixture.append(" ", to: "kept/config.json")
    #expect(names(.init(inode: inode, contents: contents.digest)).contains("kept"))
  }

  @Test func `what changed after the scan is not claimed`() throws {
    let fixture = try Fixture()
    try fixture.dropModel()
    #expect(fixture.settledState() == .ready(.settled))
    try fixture.append("late", to: "model/tokenizer.json")
    #expect(throws: ClaimError.changed("model")) { try fixture.claim("model", as: "1") }
    #expect(fixture.state() == settling)
    #expect(try FileSystem.names(in: fixture.spool.working) == [])
  }

  @Test func `a drop that could not be made a job's is as it was`() throws {
    let fixture = try Fixture()
    try FileSystem.createDirectories(FileSystem.join(fixture.spool.working, "1"))
    try fixture.dropModel()
    try fixture.append("", to: "model/.ready")
    _ = fixture.scan()
    #expect(throws: FileError.self) { try fixture.claim("model", as: "1") }
    #expect(fixture.state() == .ready(.marker))
  }

  // MARK: News

  @Test func `what may complete an upload is worth a scan, and silence is not`() throws {
    let fixture = try Fixture()
    #expect(!fixture.folder.drain())
    try FileSystem.createDirectories(fixture.incoming("model"))
    #expect(fixture.folder.drain())
    #expect(!fixture.folder.drain())
    _ = fixture.scan()
    try fixture.append("", to: "model/.ready")
    #expect(fixture.folder.drain())
    try FileSystem.createDirectories(fixture.incoming(".hidden"))
    #expect(!fixture.folder.drain())
    #expect(fixture.folder.watchFault == nil)
  }
}
