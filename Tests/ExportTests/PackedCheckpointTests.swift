import Checkpoint
import Quantization
import SystemIO
import Tensors
import Testing

@testable import Export

struct PackedCheckpointTests {
  private let gptq: JSONValue = [
    "quantization_config": [
      "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false, "checkpoint_format": "gptq",
    ]
  ]

  /// A 32 × 64 GPTQ linear of another tool: two groups, columns assigned to them alternately.
  private func gptqTensors(groupIndices: [Int32]) -> [StoredTensor] {
    // Every code is its column modulo 16; a word of qweight holds eight neighbouring columns.
    let words = (0..<8).flatMap { block in
      let word = (0..<8).reduce(UInt32(0)) { $0 | UInt32((block * 8 + $1) % 16) << (4 * $1) }
      return [Int32](repeating: Int32(bitPattern: word), count: 32)
    }
    return [
      StoredTensor("m.qweight", int32: words, shape: [8, 32]),
      // Group 0 stores 0, that is z = 1; group 1 stores 15, that is z = 16.
      StoredTensor("m.qzeros", int32: [0, 0, 0, 0, -1, -1, -1, -1], shape: [2, 4]),
      StoredTensor(
        "m.scales", floats: [Float](repeating: 0.5, count: 32) + [Float](repeating: 2, count: 32),
        as: .float16, shape: [2, 32]),
      StoredTensor("m.g_idx", int32: groupIndices, shape: [groupIndices.count]),
    ]
  }

  @Test func `g_idx may put columns into groups in any order`() throws {
    let scratch = try ScratchDirectory()
    let reader = try makeCheckpoint(
      in: scratch.path, gptqTensors(groupIndices: (0..<64).map { Int32($0 % 2) }), configuration: gptq)
    let weights = try PackedCheckpoint(reader)
    #expect(weights.shape(of: "m.weight") == [32, 64])
    let panel = Matrix(rows: 2, columns: 64)
    try weights.read("m.weight", rows: 30..<32, into: panel)
    for column in 0..<64 {
      let code = Float(column % 16)
      #expect(panel[1, column] == (column % 2 == 0 ? 0.5 * (code - 1) : 2 * (code - 16)))
    }
  }

  @Test func `a group that does not exist is named`() throws {
    let scratch = try ScratchDirectory()
    let indices = [Int32](repeating: 0, count: 63) + [2]
    let reader = try makeCheckpoint(
      in: scratch.path, gptqTensors(groupIndices: indices), configuration: gptq)
    let weights = try PackedCheckpoint(reader)
    #expect(
      throws: PackedCheckpointError.groupOutOfRange(tensor: "m.g_idx", column: 63, group: 2, groups: 2)
    ) { try weights.read("m.weight", rows: 0..<1, into: Matrix(rows: 1, columns: 64)) }
  }

  @Test func `tensors that disagree are refused when the checkpoint is opened`() throws {
    let scratch = try ScratchDirectory()
    var tensors = gptqTensors(groupIndices: [Int32](repeating: 0, count: 64))
    tensors[1] = StoredTensor("m.qzeros", int32: [0, 0, 0, 0, 0, 0], shape: [2, 3])
    let reader = try makeCheckpoint(in: scratch.path, tensors, configuration: gptq)
    #expect(
      throws: PackedCheckpointError.unexpectedTensor(
        "m.qzeros", found: [2, 3], .int32, expected: [2, 4], [.int32])
    ) { try PackedCheckpoint(reader) }
  }

  @Test func `a missing part is named`() throws {
    let scratch = try ScratchDirectory()
    let tensors = gptqTensors(groupIndices: []).filter { $0.name == "m.qweight" }
    let reader = try makeCheckpoint(in: scratch.path, tensors, configuration: gptq)
    #expect(throws: PackedCheckpointError.missingTensor("m.scales")) { try PackedCheckpoint(reader) }
  }

  @Test(
    arguments: [
      ["quant_method": "awq", "bits": 3, "group_size": 32],
      ["quant_method": "awq", "bits": 4, "version": "gemv"],
      ["quant_method": "exl2", "bits": 4],
      ["quant_method": "gptq", "bits": 5, "group_size": 32],
      ["quant_method": "gptq", "bits": 4, "group_size": 0],
      ["quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"],
      ["quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": ["+:.*": ["bits": 8]]],
      ["quant_method": "compressed-tensors", "format": "float-quantized"],
      ["quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": [:]],
      [
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": [
          "group_0": [
            "targets": ["Linear"],
            "weights": ["num_bits": 4, "strategy": "group", "group_size": 9_223_372_036_854_775_807],
          ]
        ],
      ],
      [
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": [
          "group_0": ["targets": ["Linear"], "weights": ["num_bits": 4, "type": "float"]]
        ],
      ],
      [
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": [
          "group_0": [
            "targets": ["Linear"], "weights": ["num_bits": 4, "strategy": "channel"],
            "input_activations": ["num_bits": 8],
          ]
        ],
      ],
    ] as [JSONValue])
  func `what is not read is refused with a list of what is`(quantization: JSONValue) throws {
    let scratch = try ScratchDirectory()
    let reader = try makeCheckpoint(
      in: scratch.path, [StoredTensor("n", floats: [1], as: .float32, shape: [1])],
      configuration: ["quantization_config": quantization])
    let error = try #require(throws: PackedCheckpointError.self) { try PackedCheckpoint(reader) }
    #expect(error.description.contains(PackedCheckpointError.known))
  }

  @Test(arguments: [Int64.max, 0, -64, 65])
  func `a weight_shape that lies is refused`(inFeatures: Int64) throws {
    let scratch = try ScratchDirectory()
    let shape = [32, inFeatures].flatMap { value in
      (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * Int64($0))) }
    }
    let reader = try makeCheckpoint(
      in: scratch.path,
      [
        StoredTensor("m.weight_packed", int32: [Int32](repeating: 0, count: 256), shape: [32, 8]),
        StoredTensor("m.weight_shape", .int64, [2], bytes: shape),
        StoredTensor(
          "m.weight_scale", floats: [Float](repeating: 1, count: 32), as: .bfloat16, shape: [32, 1]),
      ],
      configuration: [
        "quantization_config": [
          "quant_method": "compressed-tensors", "format": "pack-quantized",
          "config_groups": [
            "group_0": ["targets": ["Linear"], "weights": ["num_bits": 4, "strategy": "channel"]]
          ],
        ]
      ])
    #expect(throws: PackedCheckpointError.self) { try PackedCheckpoint(reader) }
  }

  @Test func `a scale that is not a number is found`() throws {
    let scratch = try ScratchDirectory()
    var tensors = gptqTensors(groupIndices: [Int32](repeating: 1, count: 64))
    var scales = [Float](repeating: 1, count: 64)
    scales[32 + 9] = .nan
    tensors[2] = StoredTensor("m.scales", floats: scales, as: .float16, shape: [2, 32])
    let weights = try PackedCheckpoint(
      makeCheckpoint(in: scratch.path, tensors, configuration: gptq))
    let error = try #require(throws: CheckpointError.self) {
      try weights.read("m.weight", rows: 8..<12, into: Matrix(rows: 4, columns: 64))
    }
    guard case .nonFinite(let tensor, _, let index, _) = error else {
      Issue.record("\(error)")
      return
    }
    #expect(tensor == "m.weight" && index == 9 * 64)
  }
}
