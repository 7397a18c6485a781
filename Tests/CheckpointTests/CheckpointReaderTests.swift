import Checkpoint
import Glibc
import SystemIO
import SystemPackage
import Tensors
import TestSupport
import Testing

@Suite struct CheckpointReaderTests {
  let directory: TemporaryDirectory

  init() throws {
    directory = try TemporaryDirectory()
    try directory.write(#"{"model_type": "llama", "hidden_size": 64}"#, to: "config.json")
  }

  /// A shard with the given tensors, one fp32 number each.
  private func shard(_ name: String, _ tensors: String...) throws {
    let entries = tensors.enumerated().map { entry($1, shape: [1], offsets: (4 * $0, 4 * $0 + 4)) }
    try directory.write(
      safetensors(
        "{\(entries.joined(separator: ","))}", data: [UInt8](repeating: 0, count: 4 * tensors.count)),
      to: name)
  }

  private func index(_ map: [String: JSONValue]) throws {
    try directory.write(
      JSONValue.object(["weight_map": .object(map)]).prettyText, to: "model.safetensors.index.json")
  }

  private func open(_ symlinks: SymlinkPolicy = .follow) throws -> CheckpointReader {
    try CheckpointReader(directory: directory.path, symlinks: symlinks)
  }

  // MARK: Values

  @Test(arguments: [true, false])
  func `linears that are stored the other way round are told by the shape of one, in whatever shard`(
    _ isTransposed: Bool
  ) throws {
    let fused = isTransposed ? [2, 6] : [6, 2]
    try directory.write(
      safetensors(
        "{\(entry("h.0.attn.c_attn.bias", shape: [6], offsets: (0, 24))),"
          + "\(entry("h.0.attn.c_attn.weight", shape: fused, offsets: (24, 72)))}",
        data: [UInt8](repeating: 0, count: 72)), to: "model-00001-of-00002.safetensors")
    let values = (1...4).map { Float($0) }
    try directory.write(
      safetensors(
        "{\(entry("h.0.attn.c_proj.weight", shape: [2, 2], offsets: (0, 16)))}",
        data: littleEndian(values.map(\.bitPattern))), to: "model-00002-of-00002.safetensors")
    let reader = try open()
    #expect(reader.shape(of: "h.0.attn.c_attn.weight") == [6, 2])
    let square = try reader.matrix("h.0.attn.c_proj.weight", shape: [2, 2])
    #expect(square.elements == (isTransposed ? [1, 3, 2, 4] : values))
  }

  @Test(arguments: [0, 1, 3])
  func `every float type is read to the bit, at any alignment`(shift: Int) throws {
    let floats: [UInt32] = [0x3F80_0000, 0xC020_0000, 0, 0x8000_0000, 0x0000_0001, 0x7F7F_FFFF]
    let halves: [UInt16] = [0x3C00, 0xC100, 0x0000, 0x8000, 0x0001, 0x7BFF]
    let brains: [UInt16] = [0x3F80, 0xC020, 0x0000, 0x8000, 0x0001, 0x7F7F]
    let text =
      "{\(entry("shift", "U8", shape: [shift], offsets: (0, shift))),"
      + "\(entry("f32", "F32", shape: [2, 3], offsets: (shift, shift + 24))),"
      + "\(entry("f16", "F16", shape: [2, 3], offsets: (shift + 24, shift + 36))),"
      + "\(entry("bf16", "BF16", shape: [2, 3], offsets: (shift + 36, shift + 48)))}"
    let data =
      [UInt8](repeating: 0xFF, count: shift) + littleEndian(floats) + littleEndian(halves)
      + littleEndian(brains)
    try directory.write(safetensors(text, data: data), to: "model.safetensors")
    let reader = try open()
    #expect(reader.tensorNames.filter { $0 != "shift" } == ["f32", "f16", "bf16"])

    func bits(_ tensor: String) throws -> [UInt32] {
      try reader.matrix(tensor, shape: [2, 3]).elements.map(\.bitPattern)
    }
    #expect(try bits("f32") == floats)
    #expect(try bits("bf16") == brains.map { UInt32($0) << 16 })
    // 1, −2.5, 0, −0, 2⁻²⁴, 65,504
    #expect(
      try bits("f16") == [0x3F80_0000, 0xC020_0000, 0, 0x8000_0000, 0x3380_0000, 0x477F_E000])

    let row = Matrix(rows: 1, columns: 3)
    try reader.read("f32", rows: 1..<2, into: row)
    #expect(row.elements.map(\.bitPattern) == Array(floats[3...]))
  }

  @Test(arguments: ["F32", "F16", "BF16"], [0, 7, 39])
  func `a value that is not finite is named by tensor and index`(dtype: String, index: Int) throws {
    let isWide = dtype == "F32"
    var words = [UInt32](repeating: isWide ? 0x7F7F_FFFF : dtype == "F16" ? 0x7BFF : 0x7F7F, count: 40)
    words[index] = isWide ? 0xFF80_0000 : dtype == "F16" ? 0xFC00 : 0xFF80
    let data = isWide ? littleEndian(words) : littleEndian(words.map { UInt16($0) })
    try directory.write(
      safetensors("{\(entry("w", dtype, shape: [5, 8], offsets: (0, data.count)))}", data: data),
      to: "model.safetensors")
    let reader = try open()
    let expected = CheckpointError.nonFinite(
      tensor: "w", file: directory.file("model.safetensors"), index: index, value: -.infinity)
    #expect(throws: expected) { try reader.matrix("w", shape: [5, 8]) }
    let panel = Matrix(rows: 1, columns: 8)
    #expect(throws: expected) { try reader.read("w", rows: index / 8..<index / 8 + 1, into: panel) }
  }

  @Test func `a tensor is asked for by its name, shape and a float type`() throws {
    let text =
      "{\(entry("norm", shape: [3], offsets: (0, 12))),\(entry("ids", "I32", shape: [2], offsets: (12, 20)))}"
    let data = littleEndian([Float(1), 2, 3].map(\.bitPattern)) + littleEndian([UInt32(7), 8])
    try directory.write(safetensors(text, data: data), to: "model.safetensors")
    let reader = try open()
    #expect(try reader.vector("norm", count: 3) == [1, 2, 3])
    #expect(reader.shape(of: "norm") == [3])
    #expect(throws: CheckpointError.unknownTensor("q")) { try reader.vector("q", count: 3) }
    #expect(throws: CheckpointError.wrongShape(tensor: "norm", found: [3], expected: [4])) {
      try reader.vector("norm", count: 4)
    }
    #expect(throws: CheckpointError.notAFloat(tensor: "ids", .int32)) {
      try reader.vector("ids", count: 2)
    }
    let ids = try reader.withBytes(of: "ids", 0..<8) { bytes in
      (0..<2).map { unsafe bytes.unsafeLoadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self) }
    }
    #expect(ids == [7, 8])
  }

  @Test func `a file stands for itself without a configuration`() throws {
    try shard("tokens.safetensors", "input_ids")
    let reader = try CheckpointReader(file: directory.file("tokens.safetensors"))
    #expect(reader.tensorNames == ["input_ids"])
    #expect(reader.configuration.isNull)
  }

  // MARK: Directories

  @Test func `configuration and other files come along, weights of any kind do not`() throws {
    try shard("model.safetensors", "a")
    for name in ["tokenizer.json", "LICENSE", "pytorch_model.bin", "pytorch_model.bin.index.json"] {
      try directory.write("{}", to: name)
    }
    try FileSystem.createDirectories(directory.file("onnx"))
    let reader = try open()
    #expect(reader.otherFiles == ["LICENSE", "config.json", "tokenizer.json"])
    #expect(reader.configuration["hidden_size"]?.int == 64)
  }

  @Test func `shards are found by the index`() throws {
    try shard("one.safetensors", "a", "b")
    try shard("two.safetensors", "c")
    try shard("unrelated.safetensors", "a")
    try index(["a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"])
    #expect(try open().tensorNames == ["a", "b", "c"])
  }

  @Test func `without an index, all shards are read`() throws {
    try shard("model-00001-of-00002.safetensors", "a")
    try shard("model-00002-of-00002.safetensors", "b")
    #expect(try open().tensorNames == ["a", "b"])
  }

  @Test func `a shard that the others' names promise is missed`() throws {
    try shard("model-00001-of-00002.safetensors", "a")
    #expect(
      throws: CheckpointError.missingShard(
        directory: directory.path, shard: "model-00002-of-00002.safetensors")
    ) { try open() }
  }

  @Test func `a shard that the index promises is missed`() throws {
    try shard("one.safetensors", "a")
    try index(["a": "one.safetensors", "b": "two.safetensors"])
    let expected = CheckpointError.missingShard(directory: directory.path, shard: "two.safetensors")
    #expect(expected.exitCode == 66)
    #expect(throws: expected) { try open() }
  }

  @Test(arguments: ["../secret.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", ""])
  func `a weight map that leaves the directory is refused`(name: String) throws {
    try index(["a": .string(name)])
    #expect(
      throws: CheckpointError.shardOutsideDirectory(
        index: directory.file("model.safetensors.index.json"), tensor: "a", shard: name)
    ) { try open() }
  }

  @Test(arguments: ["{}", #"{"weight_map": {}}"#, #"{"weight_map": {"a": 1}}"#])
  func `an index without a usable weight map is refused`(text: String) throws {
    let path = try directory.write(text, to: "model.safetensors.index.json")
    #expect(throws: CheckpointError.noWeightMap(index: path)) { try open() }
  }

  @Test func `a tensor that its shard lacks is named`() throws {
    try shard("one.safetensors", "a")
    try index(["a": "one.safetensors", "b": "one.safetensors"])
    #expect(
      throws: CheckpointError.tensorNotInShard(
        tensor: "b", shard: directory.file("one.safetensors"))
    ) { try open() }
  }

  @Test(arguments: [true, false])
  func `a tensor in two shards is refused`(hasIndex: Bool) throws {
    try shard("one.safetensors", "a", "b")
    try shard("two.safetensors", "b")
    if hasIndex { try index(["a": "one.safetensors", "b": "two.safetensors"]) }
    #expect(
      throws: CheckpointError.duplicateTensor(
        tensor: "b", shards: [directory.file("one.safetensors"), directory.file("two.safetensors")])
    ) { try open() }
  }

  @Test func `a pickle by another name is not taken for the weights`() throws {
    let path = try directory.write("", to: "model.ckpt")
    let expected = CheckpointError.otherPickle(file: path)
    #expect(expected.description.contains("safe_serialization=True"))
    #expect(throws: expected) { try open() }
  }

  @Test func `a directory without weights, or without configuration, is missing input`() throws {
    #expect(throws: CheckpointError.noWeights(directory: directory.path)) { try open() }
    try shard("model.safetensors", "a")
    try FileSystem.removeTree(directory.file("config.json"))
    #expect(throws: CheckpointError.missingConfiguration(directory: directory.path)) { try open() }
    #expect(throws: CheckpointError.noDirectory(directory.file("absent"))) {
      try CheckpointReader(directory: directory.file("absent"))
    }
  }

  @Test func `linked shards are followed or refused as asked`() throws {
    try shard("blob", "a")
    let link = directory.file("model.safetensors")
    #expect(unsafe symlink("blob", link) == 0)
    #expect(try open(.follow).tensorNames == ["a"])
    #expect(throws: FileError(path: link, operation: .open, errno: .tooManySymbolicLinkLevels)) {
      try open(.refuse)
    }
  }
}
