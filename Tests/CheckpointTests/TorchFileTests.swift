import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Checkpoint

/// Files of torch.save, against the same tensors as safetensors; and pickles that are something else.
@Suite struct TorchFileTests {
  let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  // MARK: Files of torch

  @Test(arguments: ["zip", "legacy", "protocol-4", "parameters", "sharded"])
  func `a checkpoint of torch holds what the same one of safetensors does`(_ layout: String) throws {
    let expected = try CheckpointReader(directory: TestFiles.model("opt-pre"))
    let torch = try reader(of: layout)
    let own = Set(torch.tensorNames)
    let isTied = layout != "sharded" && layout != "parameters"
    #expect(own == Set(expected.tensorNames).union(isTied ? ["lm_head.weight"] : []))
    for name in expected.tensorNames { try expectSame(name, torch, expected) }
    if isTied {
      let head = try #require(torch.tensors["lm_head.weight"])
      #expect(head.byteRange == torch.tensors["model.decoder.embed_tokens.weight"]?.byteRange)
    }
    #expect(torch.foreignFiles == [])
    #expect(torch.otherFiles == ["config.json"])
  }

  @Test(arguments: ["types.bin", "types-legacy.bin"])
  func `every type, and every tensor in one piece, is read to the byte`(_ file: String) throws {
    try FileSystem.copyFile(TestFiles.torch(file), to: directory.file("pytorch_model.bin"))
    try directory.write("{}", to: "config.json")
    let torch = try CheckpointReader(directory: directory.path)
    let expected = try CheckpointReader(file: TestFiles.torch("types.safetensors"))
    #expect(Set(torch.tensorNames) == Set(expected.tensorNames))
    for name in expected.tensorNames { try expectSame(name, torch, expected) }
  }

  @Test func `a tensor that does not lie in one piece is refused by name`() throws {
    let violation = try violation(
      of: FileSystem.contents(of: TestFiles.torch("transposed.bin"), limit: 1 << 20))
    #expect(violation == .notContiguous(tensor: "weight", strides: [1, 5]))
  }

  @Test func `safetensors are taken where both are there`() throws {
    let model = directory.file("model")
    try FileSystem.createDirectories(model)
    for name in ["config.json", "model.safetensors"] {
      try FileSystem.copyFile(TestFiles.model("opt-pre/\(name)"), to: "\(model)/\(name)")
    }
    try FileSystem.copyFile(TestFiles.torch("zip/pytorch_model.bin"), to: "\(model)/pytorch_model.bin")
    let reader = try CheckpointReader(directory: model)
    #expect(reader.tensors.values.allSatisfy { $0.file.hasSuffix("model.safetensors") })
    #expect(reader.foreignFiles == ["pytorch_model.bin"])
  }

  @Test(arguments: ["zip", "sharded"])
  func `token ids beside weights of torch are no weights`(_ layout: String) throws {
    try directory.write(
      safetensors("{\(entry("input_ids", "I64", shape: [0], offsets: (0, 0)))}", data: []), to: "ids")
    let model = try reader(of: layout).directory
    try FileSystem.move(directory.file("ids"), to: "\(model)/ids.safetensors")
    let reader = try CheckpointReader(directory: model)
    #expect(reader.tensors["input_ids"] == nil && !reader.tensors.isEmpty)
    #expect(reader.foreignFiles == ["ids.safetensors"])
  }

  // MARK: Damage

  @Test(arguments: ["zip/pytorch_model.bin", "legacy/pytorch_model.bin", "types.bin", "types-legacy.bin"])
  func `a file that ends early is not complete`(_ name: String) throws {
    let bytes = try FileSystem.contents(of: TestFiles.torch(name), limit: 1 << 20)
    for count in stride(from: 0, to: bytes.count, by: 61) {
      #expect(throws: TorchFileError.self, "\(count) bytes") { try torchFile(Array(bytes[..<count])) }
    }
  }

  // Not a proof, but what a fuzzer does for as long as a test may take.
  @Test(arguments: ["zip/pytorch_model.bin", "legacy/pytorch_model.bin", "types.bin", "types-legacy.bin"])
  func `no damage leads outside the file`(_ name: String) throws {
    let bytes = try FileSystem.contents(of: TestFiles.torch(name), limit: 1 << 20)
    var generator = SeededGenerator(seed: 8)
    var outcomes = (read: 0, refused: 0)
    for _ in 0..<20_000 {
      var damaged = bytes
      for _ in 0..<Int.random(in: 1...4, using: &generator) {
        // Most of a file is weights: pickles and directories stand at its ends.
        let isBeginning = Bool.random(using: &generator)
        let span = min(bytes.count, 4_096)
        let place = Int.random(in: 0..<span, using: &generator)
        damaged[isBeginning ? place : bytes.count - 1 - place] = UInt8.random(in: 0...255, using: &generator)
      }
      do {
        let file = try torchFile(damaged)
        outcomes.read += 1
        for tensor in file.tensors {
          try #require(tensor.byteRange.lowerBound >= 0 && tensor.byteRange.upperBound <= damaged.count)
          try #require(tensor.dtype.byteCount(ofShape: tensor.shape) == tensor.byteRange.count)
        }
      } catch is TorchFileError { outcomes.refused += 1 }
    }
    #expect(outcomes.read > 0 && outcomes.refused > 0, "\(outcomes)")
  }

  // MARK: Hostile pickles

  /// The beginning of a pickle and what stands for the rest.
  struct Hostile: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let pickle: [UInt8]
    let expected: @Sendable (TorchFileError.Violation) -> Bool

    init(
      _ what: String, _ pickle: [UInt8], _ expected: @escaping @Sendable (TorchFileError.Violation) -> Bool
    ) {
      testDescription = what
      self.pickle = [0x80, 2] + pickle
      self.expected = expected
    }
  }

  private static func text(_ text: String) -> [UInt8] {
    [UInt8(ascii: "X")] + littleEndian([UInt32(text.utf8.count)]) + Array(text.utf8)
  }

  private static func isDamaged(_ violation: TorchFileError.Violation) -> Bool {
    if case .damagedPickle = violation { true } else { false }
  }

  static let hostile: [Hostile] = [
    Hostile("a call of the system", Array("cposix\nsystem\n".utf8) + text("true") + [0x85, 0x52, 0x2E]) {
      if case .forbidden("posix.system", _) = $0 { true } else { false }
    },
    Hostile("the same by the stack", text("builtins") + text("eval") + [0x93, 0x2E]) {
      if case .forbidden("builtins.eval", _) = $0 { true } else { false }
    },
    Hostile("a call of a type", Array("ctorch\nFloatStorage\n".utf8) + [0x29, 0x52, 0x2E], isDamaged),
    Hostile("deep nesting", [UInt8](repeating: 0x5D, count: 1 << 19) + [0x2E]) { $0 == .notADictionary },
    Hostile("marks without end", [UInt8](repeating: 0x28, count: 1 << 20), isDamaged),
    Hostile(
      "tuples of tuples, each twice the one before", [0x29] + (0..<1_000_000).flatMap { _ in [0x32, 0x86] },
      { if case .tooLarge = $0 { true } else { isDamaged($0) } }),
    Hostile("a memo far away", [0x7D, 0x72, 0xFF, 0xFF, 0xFF, 0xFF, 0x2E], isDamaged),
    Hostile("an empty place of the memo", [0x6A, 9, 0, 0, 0, 0x2E], isDamaged),
    Hostile("a text of four gigabytes", [0x58, 0xFF, 0xFF, 0xFF, 0xFF], isDamaged),
    Hostile(
      "a text of more bytes than there are numbers", [0x8D] + [UInt8](repeating: 0xFF, count: 8), isDamaged),
    Hostile("an instruction of objects", [0x7D, 0x81, 0x2E], isDamaged),
    Hostile("nothing on the stack", [0x30, 0x2E], isDamaged),
    Hostile("a value below a mark", [0x7D, 0x28, 0x30, 0x2E], isDamaged),
    Hostile("no end", [0x7D], isDamaged),
    Hostile("a number", [0x4B, 1, 0x2E]) { $0 == .notADictionary },
    Hostile("a training state", [0x7D] + text("epoch") + [0x4B, 1, 0x73, 0x2E]) {
      $0 == .notATensor(key: "epoch")
    },
  ]

  @Test(arguments: hostile)
  func `a pickle that is no state dict does nothing and is refused by name`(_ hostile: Hostile) throws {
    let violation = try violation(of: zip([("archive/data.pkl", hostile.pickle)]))
    #expect(hostile.expected(violation), "\(violation)")
  }

  /// The pickle of {"w": a tensor}, and the archive around it.
  private func tensor(
    elements: [UInt8] = [0x4B, 4], offset: [UInt8] = [0x4B, 0], shape: [UInt8], strides: [UInt8]
  ) -> [UInt8] {
    let storage: [UInt8] =
      [0x28] + Self.text("storage") + Array("ctorch\nFloatStorage\n".utf8) + Self.text("0")
      + Self.text("cpu") + elements + [0x74, 0x51]
    let call = Array("ctorch._utils\n_rebuild_tensor_v2\n".utf8)
    let arguments: [UInt8] = [0x28] + storage + offset + shape + strides + [0x89, 0x7D, 0x74]
    let pickle: [UInt8] = [0x80, 2, 0x7D] + Self.text("w") + call + arguments + [0x52, 0x73, 0x2E]
    return zip([("archive/data.pkl", pickle), ("archive/data/0", [UInt8](repeating: 0, count: 16))])
  }

  @Test func `a tensor lies inside its storage, however large its numbers are`() throws {
    let four: [UInt8] = [0x4B, 4, 0x85]
    let one: [UInt8] = [0x4B, 1, 0x85]
    let huge: [UInt8] = [0x8A, 8, 0, 0, 0, 0, 0, 0, 0, 0x40]  // 2⁶²
    #expect(try torchFile(tensor(shape: four, strides: one)).tensors.first?.shape == [4])
    let impossible: [[UInt8]] = [
      tensor(shape: [0x4B, 5, 0x85], strides: one),
      tensor(offset: [0x4B, 1], shape: four, strides: one),
      tensor(offset: huge, shape: four, strides: one),
      tensor(shape: huge + [0x85], strides: one),
      tensor(shape: huge + huge + [0x86], strides: huge + huge + [0x86]),
      // Empty, and yet somebody may multiply the others.
      tensor(shape: huge + [0x4B, 0, 0x86], strides: [0x4B, 1, 0x4B, 1, 0x86]),
    ]
    for bytes in impossible {
      let violation = try violation(of: bytes)
      guard case .impossibleTensor("w", _) = violation else {
        Issue.record("\(violation)")
        continue
      }
    }
    let negative: [UInt8] = [0x4A, 0xFF, 0xFF, 0xFF, 0xFF]
    for bytes in [
      tensor(offset: negative, shape: four, strides: one), tensor(shape: negative + [0x85], strides: one),
      tensor(elements: negative, shape: four, strides: one),
    ] { #expect(Self.isDamaged(try violation(of: bytes))) }
  }

  // MARK: Hostile archives

  @Test func `records are stored, inside the file, and one beside the other`() throws {
    let pickle: [UInt8] = [0x80, 2, 0x7D, 0x2E]
    let sound = zip([("a/data.pkl", pickle), ("a/data/0", [1, 2, 3, 4])])
    #expect(try torchFile(sound).tensors == [])
    let entries = try #require(sound.firstRange(of: [0x50, 0x4B, 1, 2])?.lowerBound)
    func changed(_ offset: Int, _ bytes: [UInt8]) throws -> TorchFileError.Violation {
      var damaged = sound
      damaged.replaceSubrange(entries + offset..<entries + offset + bytes.count, with: bytes)
      return try violation(of: damaged)
    }
    #expect(try changed(10, [8, 0]) == .compressedRecord("a/data.pkl"))
    #expect(try changed(8, [1, 0]) == .compressedRecord("a/data.pkl"))
    func isDamaged(_ violation: TorchFileError.Violation) -> Bool {
      if case .damagedArchive = violation { true } else { false }
    }
    // Longer than stored; longer than the file; beginning outside of it.
    #expect(isDamaged(try changed(24, [200, 0, 0, 0])))
    #expect(isDamaged(try changed(20, [0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 0, 0])))
    #expect(isDamaged(try changed(42, [0xFF, 0xFF, 0xFF, 0x7F])))
    // Sizes that are to be in a field that is not there.
    #expect(isDamaged(try changed(20, [UInt8](repeating: 0xFF, count: 8))))
    #expect(isDamaged(try violation(of: zip([("a/data.pkl", pickle), ("a/data.pkl", pickle)]))))
    #expect(isDamaged(try violation(of: zip([("a/x", pickle)]))))
    let overlapping = zip([("a/data.pkl", pickle), ("a/data/0", [1, 2, 3, 4])], secondHeaderAt: 0)
    #expect(isDamaged(try violation(of: overlapping)))
  }

  @Test func `what is no file of torch says what it is`() throws {
    let pointer = Array("version https://git-lfs.github.com/spec/v1\noid sha256:00\n".utf8)
    #expect(try violation(of: pointer) == .pointer)
    #expect(try violation(of: Array("pickle".utf8)) == .unknownFormat)
    #expect(try violation(of: []) == .truncated("it has 0 bytes"))
  }

  // MARK: -

  private func reader(of layout: String) throws -> CheckpointReader {
    let path = directory.file(layout)
    try FileSystem.createDirectories(path)
    try FileSystem.copyFile(TestFiles.model("opt-pre/config.json"), to: "\(path)/config.json")
    for name in try FileSystem.names(in: TestFiles.torch(layout)) {
      try FileSystem.copyFile(TestFiles.torch("\(layout)/\(name)"), to: "\(path)/\(name)")
    }
    return try CheckpointReader(directory: path)
  }

  private func expectSame(_ name: String, _ one: CheckpointReader, _ other: CheckpointReader) throws {
    let (info, expected) = (try #require(one.tensors[name]), try #require(other.tensors[name]))
    #expect(info.dtype == expected.dtype && info.shape == expected.shape, "\(name)")
    func bytes(_ reader: CheckpointReader, _ info: TensorInfo) throws -> [UInt8] {
      try reader.withBytes(of: name, 0..<info.byteRange.count) { bytes in
        unsafe bytes.withUnsafeBytes { unsafe Array($0) }
      }
    }
    #expect(try bytes(one, info) == bytes(other, expected), "\(name)")
  }

  private func torchFile(_ bytes: [UInt8]) throws -> TorchFile {
    try TorchFile(path: "file", byteCount: bytes.count) { Array(bytes[$0]) }
  }

  private func violation(of bytes: [UInt8]) throws -> TorchFileError.Violation {
    do {
      _ = try torchFile(bytes)
    } catch let error as TorchFileError { return error.violation }
    Issue.record("nothing was refused")
    return .unknownFormat
  }

  /// A zip archive of stored records.
  private func zip(_ records: [(name: String, bytes: [UInt8])], secondHeaderAt: UInt32? = nil) -> [UInt8] {
    var archive: [UInt8] = []
    var directory: [UInt8] = []
    for (index, record) in records.enumerated() {
      let name = Array(record.name.utf8)
      let count = [UInt32(record.bytes.count)]
      let offset = index == 1 ? secondHeaderAt ?? UInt32(archive.count) : UInt32(archive.count)
      let lengths = littleEndian([UInt16(name.count), 0])
      // Versions, flags, method, time and sum are 0 in both headers.
      let common = [UInt8](repeating: 0, count: 14) + littleEndian(count + count) + lengths
      directory += [0x50, 0x4B, 1, 2, 0, 0] + common
      directory += [UInt8](repeating: 0, count: 10) + littleEndian([offset]) + name
      archive += [0x50, 0x4B, 3, 4] + common + name + record.bytes
    }
    let counts = littleEndian([UInt16(records.count), UInt16(records.count)])
    let places = littleEndian([UInt32(directory.count), UInt32(archive.count)])
    return archive + directory + [0x50, 0x4B, 5, 6, 0, 0, 0, 0] + counts + places + [0, 0]
  }
}
