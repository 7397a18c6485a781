import Checkpoint
import SystemIO
import SystemPackage
import Tensors
import TestSupport
import Testing

@Suite struct CheckpointWriterTests {
  let directory: TemporaryDirectory
  let plan = [
    TensorPlan(name: "embedding", dtype: .bfloat16, shape: [10, 4]),
    TensorPlan(name: "mask", dtype: .uint8, shape: [3]),
    TensorPlan(name: "layer \"0\"", dtype: .float32, shape: [5]),
    TensorPlan(name: "packed", dtype: .int32, shape: [2, 2]),
    TensorPlan(name: "empty", dtype: .float16, shape: [0]),
    TensorPlan(name: "shape", dtype: .int64, shape: [2]),
  ]

  init() throws { directory = try TemporaryDirectory() }

  /// Bytes that tell one tensor from another.
  private func content(_ tensor: TensorPlan) -> [UInt8] {
    let seed = tensor.name.utf8.reduce(0) { $0 &* 31 &+ Int($1) }
    // Only small bytes: as floats of any type they are finite.
    return (0..<tensor.byteCount).map { UInt8(truncatingIfNeeded: (seed &+ $0) & 0x3F) }
  }

  /// A parse that shares nothing with the module but the JSON reader.
  private func independentRead(_ name: String) throws -> [String: [UInt8]] {
    let bytes = try FileSystem.contents(of: directory.file(name), limit: 1 << 20)
    let length = (0..<8).reduce(0) { $0 | Int(bytes[$1]) << (8 * $1) }
    #expect(length % 8 == 0)
    let header = try JSONValue(parsing: Array(bytes[8..<8 + length]))
    var tensors: [String: [UInt8]] = [:]
    for (name, entry) in header.object ?? [:] where name != "__metadata__" {
      let offsets = entry["data_offsets"]?.array?.compactMap { $0.int } ?? []
      try #require(offsets.count == 2)
      let start = 8 + length + offsets[0]
      let planned = try #require(plan.first { $0.name == name })
      #expect(start % planned.dtype.byteWidth == 0)
      #expect(entry["dtype"]?.string == planned.dtype.rawValue)
      #expect(entry["shape"]?.array?.compactMap { $0.int } == planned.shape)
      tensors[name] = Array(bytes[start..<8 + length + offsets[1]])
    }
    return tensors
  }

  @Test(arguments: [Int.max, 40, 1])
  func `what is written in parts and any order is read back`(limit: Int) throws {
    let writer = try CheckpointWriter(directory: directory.path, plan: plan, shardSizeLimit: limit)
    for tensor in plan.reversed() {
      let bytes = content(tensor)
      let middle = bytes.count / 2
      try writer.write(tensor.name, Array(bytes[middle...]), at: middle)
      try writer.write(tensor.name, Array(bytes[..<middle]))
    }
    try writer.finish()

    let expected = Dictionary(uniqueKeysWithValues: plan.map { ($0.name, content($0)) })
    var found: [String: [UInt8]] = [:]
    for shard in writer.shards { found.merge(try independentRead(shard)) { first, _ in first } }
    #expect(found == expected)

    try directory.write("{}", to: "config.json")
    let reader = try CheckpointReader(directory: directory.path)
    #expect(Set(reader.tensorNames) == Set(plan.map(\.name)))
    #expect(reader.metadata == ["format": "pt"])
    for tensor in plan {
      let bytes = try reader.withBytes(of: tensor.name, 0..<tensor.byteCount) { span in
        unsafe span.withUnsafeBytes { unsafe Array($0) }
      }
      #expect(bytes == content(tensor))
    }
    let floats = try reader.vector("layer \"0\"", count: 5)
    #expect(littleEndian(floats.map(\.bitPattern)) == expected["layer \"0\""])
  }

  @Test func `shards are filled up to the limit, and the index names them`() throws {
    // 80 bytes | 3 + 20 + 16 | 0 + 16, the limit being 40
    let writer = try CheckpointWriter(directory: directory.path, plan: plan, shardSizeLimit: 40)
    for tensor in plan { try writer.write(tensor.name, content(tensor)) }
    try writer.finish()
    #expect(writer.shards == (1...3).map { "model-0000\($0)-of-00003.safetensors" })
    let index = try JSONValue(contentsOf: directory.file("model.safetensors.index.json"))
    #expect(index["metadata"]?["total_size"]?.int == 135)
    let map = index["weight_map"]?.object?.compactMapValues(\.string)
    #expect(
      map == [
        "embedding": writer.shards[0], "mask": writer.shards[1], "layer \"0\"": writer.shards[1],
        "packed": writer.shards[1], "empty": writer.shards[1], "shape": writer.shards[2],
      ])
  }

  @Test func `one shard needs no index`() throws {
    let writer = try CheckpointWriter(directory: directory.path, plan: plan)
    for tensor in plan { try writer.write(tensor.name, content(tensor)) }
    try writer.finish()
    #expect(try FileSystem.names(in: directory.path) == ["model.safetensors"])
  }

  @Test func `an incomplete tensor fails the checkpoint`() throws {
    let writer = try CheckpointWriter(directory: directory.path, plan: plan)
    for tensor in plan where tensor.name != "packed" { try writer.write(tensor.name, content(tensor)) }
    // The same bytes twice are not more bytes.
    try writer.write("packed", [1, 2, 3, 4], at: 8)
    try writer.write("packed", [1, 2, 3, 4], at: 8)
    #expect(throws: CheckpointError.incomplete(tensor: "packed", missingBytes: 12)) {
      try writer.finish()
    }
    try writer.write("packed", [UInt8](repeating: 0, count: 8))
    try writer.write("packed", [UInt8](repeating: 0, count: 4), at: 12)
    try writer.finish()
  }

  @Test func `files that exist are not overwritten`() throws {
    let path = try directory.write("old", to: "model.safetensors")
    #expect(throws: FileError(path: path, operation: .create, errno: .fileExists)) {
      try CheckpointWriter(directory: directory.path, plan: plan)
    }
  }

  @Test func `many threads write one checkpoint`() async throws {
    let tensor = TensorPlan(name: "w", dtype: .uint8, shape: [64, 1_000])
    let writer = try CheckpointWriter(directory: directory.path, plan: [tensor])
    try await withThrowingTaskGroup(of: Void.self) { group in
      for row in 0..<64 {
        group.addTask {
          try writer.write("w", [UInt8](repeating: UInt8(row), count: 1_000), at: row * 1_000)
        }
      }
      try await group.waitForAll()
    }
    try writer.finish()
    let reader = try CheckpointReader(file: directory.file("model.safetensors"))
    let bytes = try reader.withBytes(of: "w", 0..<64_000) { span in
      unsafe span.withUnsafeBytes { unsafe Array($0) }
    }
    #expect(bytes == (0..<64).flatMap { [UInt8](repeating: UInt8($0), count: 1_000) })
  }

  @Test func `writing past a tensor's end traps`() async {
    await #expect(processExitsWith: .failure) { [path = directory.path as String] in
      let tensor = TensorPlan(name: "w", dtype: .uint8, shape: [4])
      let writer = try CheckpointWriter(directory: path, plan: [tensor])
      try writer.write("w", [1, 2, 3], at: 2)
    }
  }
}
