import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Checkpoint

/// GGUF files: of llama.cpp's converter, and such as cannot be.
struct GGUFTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func bytes(_ name: String) throws -> [UInt8] {
    try FileSystem.contents(of: TestFiles.gguf(name), limit: 1 << 24)
  }

  private func reader(_ bytes: [UInt8], as name: String = "model.gguf") throws -> CheckpointReader {
    try CheckpointReader(gguf: directory.write(bytes, to: name))
  }

  @Test func `a model is what its keys say`() throws {
    let reader = try CheckpointReader(gguf: TestFiles.gguf("qwen3.gguf"))
    #expect(reader.configuration["model_type"]?.string == "qwen3")
    #expect(reader.configuration["hidden_size"]?.int == 64)
    #expect(reader.configuration["head_dim"]?.int == 24)
    #expect(reader.configuration["rope_theta"]?.double == 100)
    #expect(reader.shape(of: "model.layers.1.mlp.down_proj.weight") == [64, 96])
    #expect(reader.tensors["model.layers.0.self_attn.q_norm.weight"]?.dtype == .float32)
    #expect(reader.tensors["model.layers.0.self_attn.q_proj.weight"]?.part?.whole == "blk.0.attn_q.weight")
  }

  /// A fixture in which a key that is a whole number of four bytes has another value.
  private func reader(
    _ fixture: String, _ key: String, _ value: UInt32
  ) throws -> CheckpointReader {
    let path = TestFiles.gguf("\(fixture).gguf")
    let found = try #require(GGUFHeader(of: MappedFile(path: path)).keys.first { $0.name == key })
    var bytes = try bytes("\(fixture).gguf")
    for byte in 0..<4 {
      bytes[found.bytes.upperBound - 4 + byte] = UInt8(truncatingIfNeeded: value >> (8 * byte))
    }
    return try reader(bytes, as: "\(fixture)-\(key)-\(value).gguf")
  }

  @Test(arguments: [
    ("qwen35", "qwen35.block_count", 0), ("qwen35", "qwen35.block_count", UInt32.max),
    ("qwen35", "qwen35.nextn_predict_layers", 200), ("qwen35", "qwen35.nextn_predict_layers", .max),
    ("qwen35", "qwen35.ssm.time_step_rank", 0), ("glm4moe", "glm4moe.nextn_predict_layers", 3),
    ("gemma4", "gemma4.attention.key_length", 0), ("gemma4", "gemma4.block_count", 3),
    ("olmo3", "olmo2.block_count", 5), ("hy-v3", "hy_v3.expert_feed_forward_length", 0),
    ("mpt", "mpt.embedding_length", 0), ("deepseek2", "deepseek2.rope.dimension_count", 0),
  ])
  func `numbers that no model has are refused`(_ fixture: String, _ key: String, _ value: UInt32) throws {
    #expect(throws: GGUFError.self) { try reader(fixture, key, value) }
  }

  @Test func `layers that predict further tokens are none of the model's`() throws {
    let reader = try CheckpointReader(gguf: TestFiles.gguf("qwen35.gguf"))
    #expect(reader.configuration["num_hidden_layers"]?.int == 4)
    #expect(reader.tensors["model.layers.4.mlp.up_proj.weight"] != nil)
    #expect(
      try self.reader("qwen35", "qwen35.nextn_predict_layers", 0).configuration["num_hidden_layers"]?.int == 5
    )
  }

  /// As llama.cpp's converter takes it apart, by heads of keys and of values.
  @Test func `what makes keys and values of latents is put together of two stacks`() throws {
    let reader = try CheckpointReader(gguf: TestFiles.gguf("deepseek2.gguf"))
    let name = "model.layers.1.self_attn.kv_b_proj.weight"
    #expect(reader.shape(of: name) == [2 * (32 + 48), 96])
    let whole = try reader.matrix(name, shape: [160, 96])
    let keys = try reader.matrix("blk.1.attn_k_b.weight", shape: [2, 96, 32])
    let values = try reader.matrix("blk.1.attn_v_b.weight", shape: [2, 48, 96])
    for head in 0..<2 {
      for latent in 0..<96 {
        for feature in 0..<32 {
          #expect(whole[head * 80 + feature, latent] == keys[head, latent * 32 + feature])
        }
        for feature in 0..<48 {
          #expect(whole[head * 80 + 32 + feature, latent] == values[head, feature * 96 + latent])
        }
      }
    }
    // Some rows, of two heads.
    let some = Matrix(rows: 5, columns: 96)
    try reader.read(name, rows: 78..<83, into: some)
    #expect(some.elements == whole.rows(78..<83).elements)
    #expect(!reader.tensorNames.contains(name))
  }

  /// Every value of the blocks that the package gguf was given.
  @Test(arguments: GGUFTensorType.quantized.map(\.name))
  func `blocks are read as llama.cpp's own package reads them`(_ name: String) throws {
    let fixture = try CheckpointReader(file: TestFiles.gguf("blocks.safetensors"))
    let type = try #require(GGUFTensorType(.other(name)))
    let info = try #require(fixture.tensors[name])
    let shape = try #require(fixture.shape(of: "\(name).values"))
    let values = try fixture.matrix("\(name).values", shape: shape)
    let found = Matrix(rows: shape[0], columns: shape[1])
    try fixture.withBytes(of: name, 0..<info.byteRange.count) { bytes in
      found.withMutableSpan { type.read(bytes, into: &$0) }
    }
    #expect(found.elements == values.elements)
  }

  @Test func `what is written of a file's keys is read again, and its data is aligned`() throws {
    let source = try CheckpointReader(gguf: TestFiles.gguf("llama.gguf"))
    let plan = [
      TensorPlan(name: "a.weight", type: .q4_0, shape: [3, 32]),
      TensorPlan(name: "token_embd.weight", dtype: .float32, shape: [5, 64]),
      TensorPlan(name: "b.weight", type: .q8_0, shape: [1, 64]),
    ]
    let writer = try CheckpointWriter(
      gguf: "out.gguf", in: directory.path, plan: plan, keysOf: source, fileType: 2)
    for tensor in plan {
      try writer.write(tensor.name, (0..<tensor.byteCount).map { UInt8(truncatingIfNeeded: $0) })
    }
    try writer.finish()
    let path = directory.file("out.gguf")
    let header = try GGUFHeader(of: MappedFile(path: path))
    let before = try #require(source.gguf)
    let own = ["general.file_type", "general.quantization_version"]
    #expect(
      header.keys.map(\.name)
        == before.keys.map(\.name).filter { !own.contains($0) } + own.reversed())
    for key in before.keys where !own.contains(key.name) {
      guard case .array = key.value else {
        #expect(header[key.name] == key.value)
        continue
      }
    }
    #expect(header["general.file_type"] == .integer(2))
    #expect(header.tensors.map(\.name) == plan.map(\.name))
    #expect(header.tensors.map(\.shape) == plan.map(\.shape))
    #expect(header.tensors.allSatisfy { $0.bytes.lowerBound.isMultiple(of: 32) })
    let file = try FileSystem.contents(of: path, limit: 1 << 20)
    for (tensor, planned) in zip(header.tensors, plan) {
      #expect(tensor.bytes.count == planned.byteCount)
      #expect(Array(file[tensor.bytes]) == (0..<planned.byteCount).map { UInt8(truncatingIfNeeded: $0) })
    }
  }

  // MARK: What cannot be

  /// A change of bytes at a text's place, or a fixed one, and what it is refused as.
  struct Hostile: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let change: @Sendable (inout [UInt8]) -> Void
    let isExpected: @Sendable (GGUFError.Reason) -> Bool

    init(
      _ what: String, _ change: @escaping @Sendable (inout [UInt8]) -> Void,
      _ isExpected: @escaping @Sendable (GGUFError.Reason) -> Bool
    ) {
      testDescription = what
      self.change = change
      self.isExpected = isExpected
    }
  }

  /// Where a text ends in the file.
  private static func end(of text: String, in bytes: [UInt8]) -> Int {
    let text = Array(text.utf8)
    return (0..<bytes.count - text.count).first { Array(bytes[$0..<$0 + text.count]) == text }! + text.count
  }

  private static let huge = [UInt8](repeating: 0xFF, count: 8)

  static let hostile: [Hostile] = [
    Hostile("another magic", { $0[0] = 0x47 + 1 }) { $0 == .notGGUF },
    Hostile("nothing", { $0 = [] }) { $0 == .notGGUF },
    Hostile("a version to come", { $0[4] = 9 }) { $0 == .version(9) },
    Hostile("big-endian", { $0.replaceSubrange(4..<8, with: [0, 0, 0, 3]) }) { $0 == .bigEndian },
    Hostile("the end in its counts", { $0 = Array($0.prefix(12)) }) {
      if case .truncated = $0 { true } else { false }
    },
    Hostile("the end in its keys", { $0 = Array($0.prefix(90)) }) {
      switch $0 {
      case .truncated, .count: true
      default: false
      }
    },
    Hostile("more tensors than bytes", { $0.replaceSubrange(8..<16, with: huge) }) {
      if case .count("the number of tensors", 8) = $0 { true } else { false }
    },
    Hostile("more keys than bytes", { $0.replaceSubrange(16..<24, with: huge) }) {
      if case .count("the number of keys", 16) = $0 { true } else { false }
    },
    Hostile("a key longer than the file", { $0.replaceSubrange(24..<32, with: huge) }) {
      if case .count = $0 { true } else { false }
    },
    Hostile("a key that is no text", { $0[32] = 0xFF }) { $0 == .badText(byte: 32) },
    Hostile(
      "a type of value that there is not",
      { bytes in bytes[end(of: "llama.block_count", in: bytes)] = 77 }
    ) { $0 == .valueType(77, key: "llama.block_count") },
    Hostile(
      "an array of arrays", { bytes in bytes[end(of: "tokenizer.ggml.tokens", in: bytes) + 4] = 9 }
    ) { $0 == .valueType(9, key: "tokenizer.ggml.tokens") },
    Hostile(
      "a longer array than the file",
      { bytes in
        let place = end(of: "tokenizer.ggml.tokens", in: bytes) + 8
        bytes.replaceSubrange(place..<place + 8, with: huge)
      }
    ) { if case .count = $0 { true } else { false } },
    Hostile(
      "an architecture of strangers",
      { bytes in
        let place = end(of: "general.architecture", in: bytes) + 12
        bytes.replaceSubrange(place..<place + 5, with: Array("mamba".utf8))
      }
    ) { if case .architecture("mamba", _) = $0 { true } else { false } },
    Hostile(
      "five extents", { bytes in bytes[end(of: "blk.0.attn_q.weight", in: bytes)] = 5 }
    ) { $0 == .shape([5], tensor: "blk.0.attn_q.weight") },
    Hostile(
      "an extent beyond all numbers",
      { bytes in
        let place = end(of: "blk.0.attn_q.weight", in: bytes) + 4
        bytes.replaceSubrange(place..<place + 8, with: huge)
      }
    ) { if case .shape = $0 { true } else { false } },
    Hostile(
      "extents whose product is",
      { bytes in
        let place = end(of: "blk.0.attn_q.weight", in: bytes) + 4
        for start in [place + 4, place + 12] {
          bytes.replaceSubrange(start..<start + 3, with: [0xFF, 0xFF, 0xFF])
        }
      }
    ) { if case .shape = $0 { true } else { false } },
    Hostile(
      "a type that there is not", { bytes in bytes[end(of: "blk.0.attn_q.weight", in: bytes) + 20] = 99 }
    ) { $0 == .tensorType(99, tensor: "blk.0.attn_q.weight") },
    Hostile(
      "rows of no whole blocks", { bytes in bytes[end(of: "blk.0.attn_norm.weight", in: bytes) + 12] = 12 }
    ) { if case .shape(_, "blk.0.attn_norm.weight") = $0 { true } else { false } },
    Hostile(
      "a tensor in another one's place",
      { bytes in bytes[end(of: "blk.0.attn_q.weight", in: bytes) + 24] += 32 }
    ) { if case .place(_, _, "blk.0.attn_q.weight") = $0 { true } else { false } },
    Hostile("a file cut off", { $0.removeLast(100) }) { if case .outOfFile = $0 { true } else { false } },
    Hostile(
      "a key twice",
      { bytes in
        let place = end(of: "general.type", in: bytes) - 12
        let other = end(of: "general.name", in: bytes) - 12
        bytes.replaceSubrange(other..<other + 12, with: Array(bytes[place..<place + 12]))
      }
    ) { $0 == .duplicate("general.type") },
    Hostile(
      "two names of one tensor",
      { bytes in
        let place = end(of: "blk.1.attn_q.weight", in: bytes) - 19
        bytes[place + 4] = UInt8(ascii: "0")
      }
    ) { $0 == .duplicate("blk.0.attn_q.weight") },
  ]

  @Test(arguments: hostile)
  func `what cannot be is refused by its place`(_ hostile: Hostile) throws {
    var bytes = try bytes("llama.gguf")
    hostile.change(&bytes)
    let error = try #require(throws: GGUFError.self) { try reader(bytes) }
    #expect(hostile.isExpected(error.reason), "\(error)")
    #expect("\(error)".contains("model.gguf"))
  }

  @Test func `a file that ends anywhere is refused`() throws {
    let bytes = try bytes("llama.gguf")
    for count in stride(from: 0, to: bytes.count, by: 997) {
      #expect(throws: GGUFError.self) { try reader(Array(bytes.prefix(count)), as: "\(count).gguf") }
    }
  }
}

/// Models in several files.
struct SplitGGUFTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  /// Cuts a fixture into parts, by what the format says of them and not by what writes it here.
  private func split(
    _ name: String, into count: Int, changing change: (Int, inout [UInt8]) -> Void = { _, _ in }
  )
    throws
  {
    let whole = try GGUFHeader(of: MappedFile(path: TestFiles.gguf("\(name).gguf")))
    let bytes = try FileSystem.contents(of: TestFiles.gguf("\(name).gguf"), limit: 1 << 24)
    let perPart = (whole.tensors.count + count - 1) / count
    for part in 0..<count {
      let tensors = whole.tensors[part * perPart..<min((part + 1) * perPart, whole.tensors.count)]
      var file = GGUFBytes(tensors: tensors.count, keys: part == 0 ? whole.keys.count + 3 : 3)
      for (key, type, value) in [
        ("split.no", 2, part), ("split.count", 2, count), ("split.tensors.count", 5, whole.tensors.count),
      ] {
        file.append(key)
        file.append(UInt32(type))
        if type == 2 { file.append(UInt16(value)) } else { file.append(Int32(value)) }
      }
      if part == 0 { for key in whole.keys { file.bytes += bytes[key.bytes] } }
      var end = 0
      for tensor in tensors {
        file.append(tensor: tensor.name, shape: tensor.shape, type: tensor.type.number, offset: end)
        end += (tensor.bytes.count + 31) / 32 * 32
      }
      for tensor in tensors {
        file.bytes += [UInt8](repeating: 0, count: (32 - file.bytes.count % 32) % 32)
        file.bytes += bytes[tensor.bytes]
      }
      change(part, &file.bytes)
      func padded(_ number: Int) -> String { String(String(100_000 + number).dropFirst()) }
      try directory.write(file.bytes, to: "model-\(padded(part + 1))-of-\(padded(count)).gguf")
    }
  }

  @Test(arguments: ["llama", "mixtral"], [2, 5])
  func `any part stands for the whole, and so does their directory`(_ name: String, _ count: Int) throws {
    try split(name, into: count)
    let whole = try CheckpointReader(gguf: TestFiles.gguf("\(name).gguf"))
    let parts = GGUFFiles.parts(of: "model-00001-of-0000\(count).gguf")
    for path in parts.map(directory.file) + [directory.path] {
      let reader = try CheckpointReader.open(path)
      #expect(reader.tensorNames == whole.tensorNames)
      #expect(reader.configuration == whole.configuration)
      for tensor in whole.tensorNames {
        let shape = try #require(whole.shape(of: tensor))
        #expect(
          try reader.matrix(tensor, shape: shape).elements == whole.matrix(tensor, shape: shape).elements)
      }
    }
  }

  @Test func `missing parts are named, and parts of other models are refused`() throws {
    try split("llama", into: 3)
    let first = directory.file("model-00001-of-00003.gguf")
    try FileSystem.removeTree(directory.file("model-00002-of-00003.gguf"))
    #expect(throws: GGUFError(file: first, reason: .missingParts(["model-00002-of-00003.gguf"]))) {
      try CheckpointReader.open(first)
    }
    // The first part under the second one's name.
    try FileSystem.copyFile(first, to: directory.file("model-00002-of-00003.gguf"))
    #expect(throws: GGUFError.self) { try CheckpointReader.open(first) }
    let alone = try directory.write(
      FileSystem.contents(of: first, limit: 1 << 24), to: "renamed.gguf")
    #expect(throws: GGUFError(file: alone, reason: .badKey("split.count"))) {
      try CheckpointReader.open(alone)
    }
  }

  @Test func `a directory with two models is refused, and a projector is none`() throws {
    let file = TestFiles.gguf("qwen2.gguf")
    for name in ["a.gguf", "mmproj-a.gguf"] { try FileSystem.copyFile(file, to: directory.file(name)) }
    let reader = try CheckpointReader.open(directory.path)
    #expect(reader.configuration["model_type"]?.string == "qwen2")
    #expect(reader.otherFiles == ["mmproj-a.gguf"])
    // Token ids to calibrate with, and what a repository has beside the file.
    try FileSystem.copyFile(TestFiles.gguf("qwen2.safetensors"), to: directory.file("ids.safetensors"))
    #expect(try CheckpointReader.open(directory.path).gguf != nil)
    try FileSystem.copyFile(file, to: directory.file("b.gguf"))
    #expect(throws: GGUFError(file: directory.path, reason: .severalModels(["a.gguf", "b.gguf"]))) {
      try CheckpointReader.open(directory.path)
    }
  }

  @Test func `endings in capitals are endings, and what is a model is no other file`() throws {
    try FileSystem.copyFile(TestFiles.gguf("qwen2.gguf"), to: directory.file("A.GGUF"))
    let reader = try CheckpointReader.open(directory.path)
    #expect(reader.otherFiles == [] && reader.foreignFiles == [])
    #expect(
      GGUFFiles.parts(of: "m-00002-of-00002.GGUF") == ["m-00001-of-00002.GGUF", "m-00002-of-00002.GGUF"])
    #expect(GGUFFiles.firstPart(of: "m-00003-of-00002.gguf") == "m-00003-of-00002.gguf")
  }

  @Test(arguments: [64, 400, 5_000])
  func `a beginning says how long the whole is, or that more of it is needed`(_ count: Int) throws {
    let bytes = try FileSystem.contents(of: TestFiles.gguf("llama.gguf"), limit: 1 << 24)
    let beginning = Array(bytes.prefix(count))
    func length() throws(GGUFError) -> Int {
      try GGUFHeader.completeByteCount(unsafe beginning.span.bytes, file: "f", byteCount: bytes.count / 2)
    }
    guard count == 5_000 else {
      #expect(throws: GGUFError(file: "f", reason: .truncated(byte: count))) { try length() }
      return
    }
    #expect(try length() == bytes.count)
  }
}
