import Checkpoint
import Compute
import Export
import FoundationEssentials
import Quantization
import Solvers
import SystemIO
import Tensors
import TestSupport
import Testing

/// What files hold for given weights and inputs, byte by byte, as versions before this one wrote it.
///
/// Solved by the reference backend, whose sums are the same on every processor.
struct RecordedBytesTests {
  private static let names = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]
  private static let (rows, columns) = (64, 96)

  private struct Case: CustomTestStringConvertible, Sendable {
    let bits: BitWidth
    let groupSize: GroupSize
    let isSymmetric: Bool
    let solver: String
    let format: OutputFormatName
    let digest: String

    var testDescription: String {
      "\(solver), \(bits.rawValue) bits, group \(groupSize.notation), symmetric \(isSymmetric), \(format.rawValue)"
    }

    init(
      _ bits: BitWidth, _ groupSize: Int, _ isSymmetric: Bool, _ solver: String, _ format: OutputFormatName,
      _ digest: String
    ) {
      self.bits = bits
      self.groupSize = GroupSize(groupSize) ?? .channel
      self.isSymmetric = isSymmetric
      self.solver = solver
      self.format = format
      self.digest = digest
    }
  }

  private static let cases = [
    Case(.two, 32, false, "standard", .compressedTensors, "abfedc6740751d80"),
    Case(.three, -1, false, "standard", .compressedTensors, "d11f5bede91da2b3"),
    Case(.four, 32, true, "standard", .compressedTensors, "6cc0aeef96cc3917"),
    Case(.eight, -1, true, "standard", .compressedTensors, "fdde552d14a393e4"),
    Case(.four, 32, false, "standard", .gptq, "244d1d2d5e470d59"),
    Case(.three, 32, true, "standard", .gptq, "9aa58cf550eaf5b"),
    Case(.two, -1, false, "standard", .gptqV2, "fa7358ef3eb2ca25"),
    Case(.four, -1, false, "standard", .dense, "a617f82b14e95082"),
    Case(.two, 32, true, "standard", .dense, "9fd6c581c4f322e7"),
    Case(.four, 32, false, "paper", .compressedTensors, "bcef608ab11fd1c9"),
    Case(.three, -1, true, "paper", .gptq, "c28cc06d84d90495"),
    Case(.four, -1, false, "gptq", .gptq, "9e27d89c80e7bcf1"),
    Case(.four, 32, false, "rtn", .compressedTensors, "ba7a6e28888a9152"),
    Case(.three, 32, false, "outliers", .compressedTensors, "81cf05a782e05a10"),
  ]

  @Test(arguments: cases)
  private func `the same settings write the same bytes as before`(_ test: Case) throws {
    let digest = String(try digest(test), radix: 16)
    #expect(digest == test.digest)
  }

  private func digest(_ test: Case) throws -> UInt64 {
    let directory = try TemporaryDirectory()
    let source = try checkpoint(in: directory)
    let grid = GridFormat(
      bitWidth: test.bits, groupSize: test.groupSize, isSymmetric: test.isSymmetric,
      scaleTypes: test.format.format.scaleTypes(modelType: .bfloat16))
    let quantizer: any LinearQuantizer =
      switch test.solver {
      case "standard": QuantEase()
      case "paper": QuantEase(.paper(passes: 6))
      case "gptq": GPTQ()
      case "rtn": RoundToNearest()
      default: OutlierAwareQuantEase(OutlierSettings(share: 0.02), base: QuantEase())
      }
    let outliers = test.solver == "outliers" ? OutlierSettings(share: 0.02) : nil
    let descriptions = Self.names.map { name in
      LinearDescription(
        name: name, outFeatures: Self.rows, inFeatures: Self.columns, gridFormat: grid, hasBias: false,
        outliers: outliers.map {
          .unstructured(count: $0.entryCount(outFeatures: Self.rows, inFeatures: Self.columns))
        })
    }
    let output = directory.file("output")
    try FileSystem.createDirectories(output)
    let export = try CheckpointExport(
      source: source, linears: descriptions, formats: [test.format], directory: output)
    let backend = ReferenceBackend()
    let gram = self.gram(backend)
    for name in Self.names {
      let solution = try quantizer.quantize(
        name: name, weights: try source.matrix("\(name).weight", shape: [Self.rows, Self.columns]),
        problem: LayerProblem(gram: gram.copy(), damping: quantizer.damping(for: grid), backend: backend),
        format: grid, backend: backend)
      try export.write(solution.linear)
    }
    try export.copyUnquantized()
    try export.finish()
    var digest = UInt64(0xcbf2_9ce4_8422_2325)
    let files = try FileManager.default.subpathsOfDirectory(atPath: output).sorted()
    for file in files where file.hasSuffix(".safetensors") {
      for byte in try Data(contentsOf: URL(filePath: FileSystem.join(output, file))) {
        digest = (digest ^ UInt64(byte)) &* 0x100_0000_01b3
      }
    }
    return digest
  }

  private func checkpoint(in directory: TemporaryDirectory) throws -> CheckpointReader {
    let path = directory.file("source")
    try FileSystem.createDirectories(path)
    var generator = SeededGenerator(seed: 5)
    let plan = Self.names.map {
      TensorPlan(name: "\($0).weight", dtype: .bfloat16, shape: [Self.rows, Self.columns])
    }
    let writer = try CheckpointWriter(directory: path, plan: plan)
    for tensor in plan {
      let bytes = (0..<Self.rows * Self.columns).flatMap { _ in
        let bits = Float.random(in: -1...1, using: &generator).bfloat16Bits
        return [UInt8(truncatingIfNeeded: bits), UInt8(bits >> 8)]
      }
      try writer.write(tensor.name, bytes)
    }
    try writer.finish()
    try AtomicFile.write("{\"model_type\": \"llama\"}", to: FileSystem.join(path, "config.json"))
    return try CheckpointReader(directory: path)
  }

  /// Of inputs that share a direction.
  private func gram(_ backend: ReferenceBackend) -> Matrix {
    var generator = SeededGenerator(seed: 6)
    let inputs = Matrix(rows: 160, columns: Self.columns)
    for token in 0..<160 {
      let common = Float.random(in: -1...1, using: &generator)
      for column in 0..<Self.columns {
        inputs[token, column] = 0.7 * common + Float.random(in: -1...1, using: &generator)
      }
    }
    let gram = Matrix(rows: Self.columns, columns: Self.columns)
    backend.accumulateGram(inputs, into: gram)
    return gram
  }
}
