import Checkpoint
import ComputeOpenBLAS
import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Decoder

/// A rotated model is the same function, and an ordinary checkpoint of its kind.
struct RotationTests {
  /// Those that can be rotated; all others say why they cannot.
  private static let rotated: Set = [
    "llama", "apertus", "arcee", "deepseek-v3-dense", "ernie", "granite", "hunyuan", "llama-bf16-sharded",
    "llama-bias", "llama-rope-linear", "llama-rope-llama3", "llama-rope-parameters", "llama-rope-yarn",
    "llama-tied", "ministral3", "mistral", "mistral-window", "phi3", "phi3-longrope", "phi3-longrope-long",
    "qwen2", "qwen2-window", "qwen3", "qwen3-5", "seed-oss", "smollm3", "deepseek-v2", "deepseek-v2-lite",
    "deepseek-v3", "deepseek-v3-direct", "ernie-moe", "glm4-moe", "glm4-moe-lite", "hunyuan-moe", "hy-v3",
    "minimax-m2", "mixtral", "olmoe", "qwen2-moe", "qwen3-5-moe", "qwen3-moe", "qwen3-moe-raw", "qwen3-next",
  ]

  @Test(arguments: TestFiles.models)
  func `a rotated model has the logits of the one that it was`(_ name: String) throws {
    let fixture = try Fixture(name)
    guard Self.rotated.contains(name) else {
      #expect(RotatedWeights.obstacle(fixture.description, fixture.checkpoint) != nil)
      #expect(throws: DecoderError.self) { try RotatedWeights(fixture.checkpoint, fixture.description) }
      return
    }
    let checkpoint = try RotatedWeights(fixture.checkpoint, fixture.description).checkpoint
    let other = try Fixture(checkpoint, expected: TestFiles.model("\(name)/expected.safetensors"))
    try other.expectAgreement(by: OpenBLASBackend(threads: 2))
    // The head stands for itself.
    #expect(other.description.head.weights != other.description.embedding.tokens)
    #expect(checkpoint.tensorNames.contains(other.description.head.weights))
    // Whatever config.json has said of it, and if it has said nothing.
    #expect(checkpoint.configuration["tie_word_embeddings"]?.bool == false)
    // And it is another one: what a linear reads has changed.
    let linear = try #require(fixture.description.stages(ofLayer: 0).first?.linears.first)
    let weight = "\(fixture.description.layerPrefix(0))\(linear.name).weight"
    let shape = [linear.outFeatures, linear.inFeatures]
    #expect(
      try checkpoint.matrix(weight, shape: shape).elements
        != fixture.checkpoint.matrix(weight, shape: shape).elements)
  }

  @Test(arguments: [1, 2, 7, 8, 24, 45, 64, 104, 144, 576, 896])
  func `a rotation is orthogonal, and turns rows as it turns columns back`(size: Int) {
    let rotation = ResidualRotation(size: size)
    #expect(rotation.powerOfTwo * rotation.rest == size)
    let x = byChance(3, size)
    let w = byChance(size, 5)
    func product(_ x: Matrix, _ w: Matrix) -> Matrix {
      let result = Matrix(rows: 3, columns: 5)
      OpenBLASBackend(threads: 1).multiply(x, w, transposingB: false, scale: 1, into: result, keeping: 0)
      return result
    }
    let expected = product(x, w).elements
    let before = x.elements
    rotation.rotate(rows: x)
    rotation.rotate(columns: w)
    // x R Rᵀ W
    for (one, other) in zip(product(x, w).elements, expected) { #expect(abs(one - other) < 1e-4) }
    if size > 2 { #expect(x.elements != before) }
  }

  private func byChance(_ rows: Int, _ columns: Int) -> Matrix {
    var generator = SplitMix64(seed: UInt64(rows))
    return Matrix(
      rows: rows, columns: columns,
      (0..<rows * columns).map { _ in Float.random(in: -1...1, using: &generator) })
  }

  @Test func `rows are the same by any number of threads`() {
    let rotation = ResidualRotation(size: 72)
    let results = [1, 2, 5].map { threads in
      let x = byChance(333, 72)
      rotation.rotate(rows: x, threads: threads)
      return x.elements
    }
    #expect(results[0] == results[1] && results[0] == results[2])
  }

  // 896 and 960 are no power of two times 12 or 20, and 104 has no smaller matrix than itself.
  @Test(arguments: [64, 104, 576, 768, 896, 960, 1_280, 2_560, 3_584, 7_168])
  func `a feature alone is spread over all, to the same size`(size: Int) {
    let x = Matrix(rows: 1, columns: size)
    x[0, 50] = Float(size).squareRoot()
    ResidualRotation(size: size).rotate(rows: x)
    #expect(x.elements.allSatisfy { abs(abs($0) - 1) < 1e-4 })
  }

  @Test(arguments: [1, 2, 4, 8, 12, 16, 20, 28, 36, 44, 52, 60, 116, 140])
  func `Hadamard matrices are of sizes that the constructions have`(size: Int) throws {
    guard let elements = HadamardMatrix.elements(size: size) else {
      #expect([1, 2, 16, 52, 116].contains(size))
      return
    }
    #expect(elements.count == size * size && elements.allSatisfy { abs($0) == 1 })
    for (one, other) in (0..<size).flatMap({ one in (0..<one).map { (one, $0) } }) {
      let product = (0..<size).reduce(0) { $0 + elements[one * size + $1] * elements[other * size + $1] }
      #expect(product == 0)
    }
  }

  @Test func `panels are parts of the whole`() throws {
    let fixture = try Fixture("llama")
    let weights = try RotatedWeights(fixture.checkpoint, fixture.description)
    for name in ["model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.up_proj.weight"] {
      let shape = try #require(weights.shape(of: name))
      let whole = try weights.matrix(name, shape: shape)
      for rows in [0..<1, 3..<7, shape[0] - 2..<shape[0]] {
        let panel = Matrix(rows: rows.count, columns: shape[1])
        try weights.read(name, rows: rows, into: panel)
        #expect(panel.elements == whole.rows(rows).elements)
      }
    }
  }

  @Test func `what nobody knows and may read the stream is refused by name`() throws {
    let fixture = try Fixture("llama")
    let width = fixture.description.hiddenSize
    let files = try TemporaryDirectory()
    let output = files.file("model")
    try FileSystem.createDirectories(output)
    try FileSystem.copyFile(
      TestFiles.model("llama/config.json"), to: "\(output)/config.json", symlinks: .follow)
    let names = fixture.checkpoint.tensorNames
    let writer = try CheckpointWriter(
      directory: output,
      plan: names.map { TensorPlan(copying: fixture.checkpoint.tensors[$0]!) }
        + [TensorPlan(name: "mtp.proj.weight", dtype: .float32, shape: [4, width])])
    for name in names {
      let count = fixture.checkpoint.tensors[name]!.byteRange.count
      try fixture.checkpoint.withBytes(of: name, 0..<count) { try writer.write(name, $0) }
    }
    try writer.write("mtp.proj.weight", [UInt8](repeating: 0, count: 16 * width))
    try writer.finish()
    let checkpoint = try CheckpointReader(directory: output)
    let obstacle = try #require(RotatedWeights.obstacle(fixture.description, checkpoint))
    #expect(obstacle.contains("mtp.proj.weight"))
  }
}
