import Checkpoint
import Export
import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Pipeline

/// Checkpoints whose tensors are stored in several float types.
struct MixedTypesTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  /// A fixture whose tensors have other types.
  private func checkpoint(
    _ fixture: String, _ type: (_ number: Int, _ name: String) -> DType
  ) throws -> String {
    let source = try CheckpointReader(directory: TestFiles.model(fixture))
    let path = directory.file(fixture)
    try FileSystem.createDirectories(path)
    let plan = source.tensorNames.enumerated().map { number, name in
      TensorPlan(name: name, dtype: type(number, name), shape: source.shape(of: name) ?? [])
    }
    let writer = try CheckpointWriter(directory: path, plan: plan)
    for tensor in plan {
      let values = try source.matrix(tensor.name, shape: tensor.shape).elements
      let bytes: [UInt8] =
        switch tensor.dtype {
        case .bfloat16: littleEndian(values.map(\.bfloat16Bits))
        case .float16: littleEndian(values.map(\.float16Bits))
        default: littleEndian(values.map(\.bitPattern))
        }
      try writer.write(tensor.name, bytes)
    }
    try writer.finish()
    try FileSystem.copyFile(
      TestFiles.model("\(fixture)/config.json"), to: FileSystem.join(path, "config.json"))
    return path
  }

  @Test(arguments: [
    [DType.float32, .bfloat16], [.bfloat16, .float32], [.float16, .bfloat16],
    [.bfloat16, .float32, .float16],
  ])
  func `scales stand in the type of their linear's weights, and are those that it was solved with`(
    _ types: [DType]
  ) throws {
    // By turns, so that linears that are fused have several.
    let path = try checkpoint("llama") { number, _ in types[number % types.count] }
    let bench = try ResumeBench(
      ResumeCase(path) { settings in
        (settings.bits, settings.formats) = (3, [.compressedTensors, .dense])
      })
    let report = try bench.report()
    let source = try CheckpointReader(directory: path)
    let dense = try CheckpointReader(directory: bench.directory.file("expected/dense"))
    let (packed, weights) = try openWeights(bench.directory.file("expected/compressed-tensors"))
    var found: Set<DType> = []
    for row in report.linears {
      let type = try #require(source.tensors["\(row.name).weight"]?.dtype)
      found.insert(type)
      #expect(packed.tensors["\(row.name).weight_scale"]?.dtype == type, "\(row.name)")
      let values = try weights.matrix("\(row.name).weight", shape: row.shape).elements
      let expected = try dense.matrix("\(row.name).weight", shape: row.shape).elements
      #expect(values.map { $0.rounded(to: type) } == expected, "\(row.name)")
    }
    #expect(found == Set(types))
  }

  /// What is left as it is has no scales: its type costs the others nothing.
  @Test func `scales go through the types of the linears that are quantized, and no other`() throws {
    let path = try checkpoint("llama") { _, name in name.contains("down_proj") ? .float16 : .bfloat16 }
    let bench = try ResumeBench(ResumeCase(path))
    func scaleTypes(_ rules: [String]) throws -> [DType] {
      var request = bench.request(output: bench.directory.file("unwritten"), resume: nil)
      request.recipe.rules = try rules.map { try RecipeRule(parsing: $0, solvers: [:]) }
      let run = try QuantizationRun(request, backend: bench.backend)
      let types = Set(run.treatments.values.map(\.gridFormat.scaleTypes))
      #expect(types.count == 1)
      return try #require(types.first)
    }
    #expect(try scaleTypes([]) == [.bfloat16, .float16])
    #expect(try scaleTypes(["down_proj=skip"]) == [.bfloat16])
    #expect(try scaleTypes(["q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj=skip"]) == [.float16])
  }
}
