import Checkpoint
import FoundationEssentials
import Quantization
import SystemIO
import Tensors

@testable import Export

/// A directory that goes with its object.
final class ScratchDirectory {
  let path: String

  init() throws {
    let name = "export-tests-\(UUID().uuidString)"
    path = FileManager.default.temporaryDirectory.appending(path: name).path
    try FileSystem.createDirectories(path)
  }

  deinit { try? FileSystem.removeTree(path) }

  func subdirectory(_ name: String) throws -> String {
    let path = FileSystem.join(self.path, name)
    try FileSystem.createDirectories(path)
    return path
  }
}

/// Numbers that look random and are the same in every run.
struct Dice: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var bits = state
    bits = (bits ^ (bits >> 30)) &* 0xBF58_476D_1CE4_E5B9
    bits = (bits ^ (bits >> 27)) &* 0x94D0_49BB_1331_11EB
    return bits ^ (bits >> 31)
  }
}

/// One tensor of a checkpoint made for a test.
struct StoredTensor {
  var name: String
  var dtype: DType
  var shape: [Int]
  var bytes: [UInt8]

  init(_ name: String, _ dtype: DType, _ shape: [Int], bytes: [UInt8]) {
    (self.name, self.dtype, self.shape, self.bytes) = (name, dtype, shape, bytes)
  }

  init(_ name: String, floats: [Float], as dtype: DType, shape: [Int]) {
    self.init(name, dtype, shape, bytes: encode(floats.span, as: dtype))
  }

  init(_ name: String, int32: [Int32], shape: [Int]) {
    let bytes = int32.flatMap { value in (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    self.init(name, .int32, shape, bytes: bytes)
  }
}

/// Writes a checkpoint of the given tensors and opens it.
func makeCheckpoint(
  in directory: String, _ tensors: [StoredTensor], configuration: JSONValue = ["model_type": "llama"]
) throws -> CheckpointReader {
  let plan = tensors.map { TensorPlan(name: $0.name, dtype: $0.dtype, shape: $0.shape) }
  let writer = try CheckpointWriter(directory: directory, plan: plan)
  for tensor in tensors { try writer.write(tensor.name, tensor.bytes) }
  try writer.finish()
  try AtomicFile.write(configuration.prettyText, to: FileSystem.join(directory, "config.json"))
  return try CheckpointReader(directory: directory)
}

/// A linear with random codes on a random grid whose scales are storable.
func randomLinear(
  _ name: String, outFeatures: Int, inFeatures: Int, format: GridFormat, outliers: Outliers? = nil
) -> QuantizedLinear {
  var dice = Dice(state: UInt64(name.utf8.count * 1000 + outFeatures))
  let grid = Grid(format: format, outFeatures: outFeatures, inFeatures: inFeatures)
  func half(_ range: ClosedRange<Float>) -> Float {
    Float.random(in: range, using: &dice).rounded(to: .float16)
  }
  for row in 0..<outFeatures {
    for group in 0..<grid.groups {
      let scale = format.storable(Float.random(in: 0.001...0.1, using: &dice))
      let zeroPoints = format.isSymmetric ? format.symmetricZeroPoints : format.zeroPointRange
      grid.scales[row, group] = scale
      grid.shifts[row, group] =
        format.hasOwnOffsets ? half(-1...1) : Float(Int.random(in: zeroPoints, using: &dice))
      guard let units = grid.units, let blocks = format.superBlocks else { continue }
      let block = group / blocks.groups
      if group % blocks.groups == 0 {
        units.scales[row, block] =
          half(1e-5...1e-3) * (format.isSymmetric && Bool.random(using: &dice) ? -1 : 1)
        units.offsets?[row, block] = half(1e-5...1e-3)
      }
      let multiple = Float(Int.random(in: 1...blocks.scaleMultiples.upperBound, using: &dice))
      grid.scales[row, group] = abs(units.scales[row, block]) * multiple
      if let offsets = units.offsets, let multiples = blocks.offsetMultiples {
        grid.shifts[row, group] = 0 - offsets[row, block] * Float(Int.random(in: multiples, using: &dice))
      }
    }
  }
  let codes = (0..<(outFeatures * inFeatures)).map { _ in
    UInt8(Int.random(in: 0...format.maximumCode, using: &dice))
  }
  return QuantizedLinear(name: name, codes: codes, grid: grid, outliers: outliers)
}

/// The names of a little model's linears with their shapes.
let modelLinears: [(name: String, outFeatures: Int, inFeatures: Int)] = [
  ("model.layers.0.self_attn.q_proj", 64, 96),
  ("model.layers.0.mlp.down_proj", 96, 160),
  ("model.layers.1.self_attn.q_proj", 64, 96),
]

/// A checkpoint of ``modelLinears`` (the first with a bias), a norm and an embedding; no lm_head.
func makeModel(in directory: String, dtype: DType = .bfloat16) throws -> CheckpointReader {
  var dice = Dice(state: 7)
  func values(_ count: Int) -> [Float] { (0..<count).map { _ in Float.random(in: -1...1, using: &dice) } }
  var tensors = [
    StoredTensor("model.embed_tokens.weight", floats: values(32 * 96), as: dtype, shape: [32, 96]),
    StoredTensor("model.norm.weight", floats: values(96), as: dtype, shape: [96]),
  ]
  for linear in modelLinears {
    tensors.append(
      StoredTensor(
        "\(linear.name).weight", floats: values(linear.outFeatures * linear.inFeatures), as: dtype,
        shape: [linear.outFeatures, linear.inFeatures]))
  }
  tensors.append(StoredTensor("\(modelLinears[0].name).bias", floats: values(64), as: dtype, shape: [64]))
  try AtomicFile.write("{\"version\": \"1.0\"}", to: FileSystem.join(directory, "tokenizer.json"))
  return try makeCheckpoint(
    in: directory, tensors,
    configuration: ["model_type": "llama", "torch_dtype": "bfloat16", "tie_word_embeddings": true])
}

/// The descriptions of ``modelLinears`` under one grid.
func descriptions(_ format: GridFormat?) -> [LinearDescription] {
  modelLinears.enumerated().map { index, linear in
    LinearDescription(
      name: linear.name, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures,
      gridFormat: format, hasBias: index == 0)
  }
}

/// A grid format whose scales every one of `outputs` can store for a model of type `dtype`.
func gridFormat(
  _ bits: BitWidth, _ groupSize: GroupSize, symmetric: Bool, for outputs: [OutputFormatName],
  dtype: DType = .bfloat16
) -> GridFormat {
  GridFormat(
    bitWidth: bits, groupSize: groupSize, isSymmetric: symmetric,
    scaleTypes: outputs.flatMap { $0.format.scaleTypes(modelType: dtype) })
}
