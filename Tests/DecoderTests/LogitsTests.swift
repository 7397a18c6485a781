import Calibration
import Checkpoint
import Compute
import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

@testable import Decoder

/// The logits of tiny random checkpoints against those that transformers computes in fp32.
struct LogitsTests {
  @Test func `there is a fixture for every known architecture`() throws {
    let covered = try Set(TestFiles.models.map { try Fixture($0).description.modelType })
    // Other names of what is there: falcon's in checkpoints before it came into transformers, and DeepSeek V3's.
    let others: Set = ["RefinedWeb", "RefinedWebModel", "kimi_k2"]
    #expect(covered == Set(ModelDescription.knownModelTypes).subtracting(others))
  }

  @Test(arguments: TestFiles.models)
  func `logits agree with transformers`(_ name: String) throws {
    try Fixture(name).expectAgreement(by: OpenBLASBackend(threads: 2))
  }

  @Test(arguments: TestFiles.models)
  func `logits by the kernels of the GPU agree with transformers`(_ name: String) throws {
    try Fixture(name).expectAgreement(by: EmulatedGPU.backend())
  }

  @Test(arguments: TestFiles.ggufs)
  func `logits of a GGUF file agree with transformers' of the checkpoint that it was converted from`(
    _ name: String
  ) throws {
    let fixture = try Fixture(
      CheckpointReader(gguf: TestFiles.gguf("\(name).gguf")), expected: TestFiles.gguf("\(name).safetensors"))
    try fixture.expectAgreement(by: OpenBLASBackend(threads: 2))
  }

  @Test(arguments: ["llama", "falcon-40b"])
  func `logits by the reference backend agree with transformers`(_ name: String) throws {
    try Fixture(name).expectAgreement(by: ReferenceBackend())
  }

  @Test(arguments: TestFiles.models)
  func `a configuration as transformers writes it is the same model`(_ name: String) throws {
    let fixture = try Fixture(name)
    let saved = try JSONValue(contentsOf: TestFiles.savedConfiguration(name))
    let description = try ModelDescription(configuration: saved) { fixture.checkpoint.shape(of: $0) != nil }
    let backend = OpenBLASBackend(threads: 1)
    #expect(try fixture.logits(by: backend, as: description) == fixture.logits(by: backend))
  }

  @Test func `logits do not depend on the number of threads`() throws {
    let fixture = try Fixture("llama")
    let results = try [1, 2, 3].map { try fixture.logits(by: OpenBLASBackend(threads: $0)) }
    #expect(results[1] == results[0])
    #expect(results[2] == results[0])
  }

  @Test func `a sequence has the same logits alone and in a batch`() throws {
    let fixture = try Fixture("bloom")
    let backend = OpenBLASBackend(threads: 1)
    let together = try fixture.logits(by: backend)
    let alone = try fixture.logits(by: backend, of: Array(fixture.tokens.suffix(fixture.sequenceLength)))
    let difference = zip(together.suffix(alone.count), alone).map { abs($0 - $1) }.max() ?? .infinity
    #expect(difference <= 1e-5 * (alone.map(abs).max() ?? 0))
  }

  @Test func `a layer runs with the weights that its linears now have`() throws {
    let fixture = try Fixture("llama")
    let model = try fixture.model(OpenBLASBackend(threads: 1))
    let layer = try model.layer(0)
    let states = try model.embed(fixture.tokens)
    let before = states.elements
    // Both halves end in a linear that adds to the residual stream: with these at zero nothing is added.
    for linear in model.description.linears(ofLayer: 0)
    where linear.name.hasSuffix("o_proj") || linear.name.hasSuffix("down_proj") {
      layer.replaceWeights(of: linear) { store in
        // Some rows at a time, as a journal has them.
        let half = linear.outFeatures / 2
        for rows in [half, linear.outFeatures - half] {
          store(Matrix(rows: rows, columns: linear.inFeatures))
        }
      }
    }
    layer.run(states, sequenceLength: fixture.sequenceLength)
    #expect(states.elements == before)
    try model.layer(0).run(states, sequenceLength: fixture.sequenceLength)
    #expect(states.elements != before)
  }

  // A fused projection, grouped queries, biases: all that is cut and stored row by row.
  @Test(arguments: ["llama-bf16-sharded", "falcon-40b", "bloom", "qwen2"], BFloat16Kernels.available)
  func `layers in bfloat16 agree with what that means`(_ name: String, _ kernels: BFloat16Kernels) throws {
    let fixture = try Fixture(name)
    func logits(_ backend: any ComputeBackend, _ operands: OperandType) throws -> [Float] {
      try fixture.logits(by: backend, operands: operands)
    }
    let expected = try logits(ReferenceBackend(), .bfloat16)
    let backends = [1, 3].map { OpenBLASBackend(threads: $0, bfloat16: kernels) }
    let results = try backends.map { try logits($0, .bfloat16) }
    #expect(results[0] == results[1])
    let largest = expected.map(abs).max() ?? 0
    func difference(_ other: [Float]) -> Float {
      zip(expected, other).map { abs($0 - $1) }.max() ?? .infinity
    }
    // An input on the edge between two bfloat16 goes either way; it is rounded, though, or nothing would differ.
    #expect(difference(results[0]) < 0.01 * largest)
    #expect(try difference(results[0]) < difference(logits(backends[0], .float32)))
  }
}

/// A checkpoint of `Tests/Fixtures/models` and what is expected of it.
struct Fixture {
  let checkpoint: CheckpointReader
  let description: ModelDescription
  /// Two sequences, one after the other.
  let tokens: [Int32]
  let sequenceLength: Int
  /// `[tokens, vocabulary]`, from transformers.
  let logits: [Float]

  init(_ name: String) throws {
    try self.init(
      CheckpointReader(directory: TestFiles.model(name)),
      expected: TestFiles.model("\(name)/expected.safetensors"))
  }

  init(_ checkpoint: CheckpointReader, expected: String) throws {
    self.checkpoint = checkpoint
    description = try ModelDescription(configuration: checkpoint.configuration) {
      checkpoint.shape(of: $0) != nil
    }
    let rows = try TokenRows(tokenFile: expected).rows
    tokens = rows.flatMap { $0 }
    sequenceLength = rows[0].count
    let panel = Matrix(rows: rows.count, columns: sequenceLength * description.vocabularySize)
    try CheckpointReader(file: expected).read("logits", rows: 0..<rows.count, into: panel)
    logits = panel.elements
  }

  /// - Parameter other: runs the weights by another description
  func model(
    _ backend: any ComputeBackend, operands: OperandType = .float32, as other: ModelDescription? = nil
  ) throws -> DecoderModel {
    try DecoderModel(
      other ?? description, source: checkpoint, backend: backend, sequenceLength: sequenceLength,
      operands: operands)
  }

  /// The logits of `tokens`, all of the fixture's unless some are named.
  func logits(
    by backend: any ComputeBackend, of tokens: [Int32]? = nil, operands: OperandType = .float32,
    as other: ModelDescription? = nil
  ) throws -> [Float] {
    let model = try model(backend, operands: operands, as: other)
    let states = try model.embed(tokens ?? self.tokens)
    for index in 0..<description.layerCount {
      try model.layer(index).run(states, sequenceLength: sequenceLength)
    }
    return backend.download(try model.head().logits(states)).elements
  }

  func expectAgreement(by backend: any ComputeBackend, sourceLocation: SourceLocation = #_sourceLocation)
    throws
  {
    let found = try logits(by: backend)
    try #require(found.count == logits.count, sourceLocation: sourceLocation)
    let largest = logits.map(abs).max() ?? 0
    let difference = zip(found, logits).map { abs($0 - $1) }.max() ?? .infinity
    #expect(difference <= 1e-4 * largest, "\(difference) of \(largest)", sourceLocation: sourceLocation)
  }
}

extension BFloat16Kernels {
  static var available: [BFloat16Kernels] { allCases.filter(\.isAvailable) }
}
