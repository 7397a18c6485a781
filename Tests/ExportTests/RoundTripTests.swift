import Checkpoint
import Quantization
import SystemIO
import Tensors
import Testing

@testable import Export

struct RoundTripTests {
  /// Exports the little model under one grid and opens what came out, one reader per format.
  private func exportModel(
    _ scratch: ScratchDirectory, _ format: GridFormat, _ names: [OutputFormatName],
    dtype: DType = .bfloat16, outliers: [String: Outliers] = [:]
  ) throws -> (source: CheckpointReader, linears: [QuantizedLinear], outputs: [OutputFormatName: String]) {
    let source = try makeModel(in: scratch.subdirectory("source"), dtype: dtype)
    let output = try scratch.subdirectory("output")
    var linears = descriptions(format)
    for index in linears.indices {
      linears[index].outliers = outliers[linears[index].name].map(OutlierLayout.init)
    }
    let export = try CheckpointExport(
      source: source, linears: linears, formats: names, directory: output, shardSizeLimit: 10_000)
    try export.copyUnquantized()
    let quantized = modelLinears.map {
      randomLinear(
        $0.name, outFeatures: $0.outFeatures, inFeatures: $0.inFeatures, format: format,
        outliers: outliers[$0.name])
    }
    for linear in quantized { try export.write(linear) }
    try export.finish()
    let directories = names.map { name in
      (name, names.count == 1 ? output : FileSystem.join(output, name.rawValue))
    }
    return (source, quantized, Dictionary(uniqueKeysWithValues: directories))
  }

  /// A linear's weights read in panels of seven rows, which is no divisor of anything.
  private func read(_ tensor: String, from weights: any WeightSource) throws -> [Float] {
    let shape = try #require(weights.shape(of: tensor))
    let matrix = Matrix(rows: shape[0], columns: shape[1])
    for start in stride(from: 0, to: shape[0], by: 7) {
      let rows = start..<min(start + 7, shape[0])
      try weights.read(tensor, rows: rows, into: matrix.rows(rows))
    }
    return matrix.elements
  }

  @Test(
    arguments: BitWidth.allCases,
    [(true, GroupSize.channel), (true, .columns(32)), (false, .channel), (false, .columns(32))])
  func `what is written reads back as what was quantized`(
    bits: BitWidth, grid: (symmetric: Bool, groupSize: GroupSize)
  ) throws {
    let scratch = try ScratchDirectory()
    let names = OutputFormatName.allCases.filter {
      $0 != .gguf && ($0 != .awq || bits == .four)
        && (!($0.format is GPTQFormat) || GPTQFormat.bitWidths.contains(bits))
    }
    let format = gridFormat(bits, grid.groupSize, symmetric: grid.symmetric, for: names)
    let (source, linears, outputs) = try exportModel(scratch, format, names)
    for (name, directory) in outputs {
      let (reader, weights) = try openWeights(directory)
      #expect((weights is PackedCheckpoint) == (name != .dense))
      for linear in linears {
        let expected = linear.dequantized().elements
        let found = try read("\(linear.name).weight", from: weights)
        if name == .dense {
          #expect(found == expected.map { $0.rounded(to: .bfloat16) })
        } else {
          #expect(found == expected, "\(name) \(linear.name)")
        }
      }
      let norm = try weights.vector("model.norm.weight", count: 96)
      #expect(try norm == source.vector("model.norm.weight", count: 96))
      let embedding = "model.embed_tokens.weight"
      #expect(reader.tensors[embedding]?.dtype == .bfloat16)
      #expect(try read(embedding, from: weights) == read(embedding, from: source))
      let bias = "\(modelLinears[0].name).bias"
      let isGPTQ = name == .gptq || name == .gptqV2
      #expect(reader.tensors[bias]?.dtype == (isGPTQ ? .float16 : .bfloat16))
      #expect(
        try weights.vector(bias, count: 64)
          == source.vector(bias, count: 64).map { isGPTQ ? $0.rounded(to: .float16) : $0 })
    }
  }

  @Test func `a shorter last group survives GPTQ`() throws {
    let scratch = try ScratchDirectory()
    let format = gridFormat(.four, .columns(64), symmetric: false, for: [.gptqV2])
    let (_, linears, outputs) = try exportModel(scratch, format, [.gptqV2])
    let (_, weights) = try openWeights(#require(outputs[.gptqV2]))
    for linear in linears {
      #expect(try read("\(linear.name).weight", from: weights) == linear.dequantized().elements)
    }
  }

  @Test(arguments: [DType.float32, .float16])
  func `models of other types keep scales in their own`(dtype: DType) throws {
    let scratch = try ScratchDirectory()
    let format = gridFormat(.four, .channel, symmetric: true, for: [.compressedTensors], dtype: dtype)
    let (_, linears, outputs) = try exportModel(scratch, format, [.compressedTensors], dtype: dtype)
    let (reader, weights) = try openWeights(#require(outputs[.compressedTensors]))
    #expect(reader.tensors["\(linears[0].name).weight_scale"]?.dtype == dtype)
    for linear in linears {
      #expect(try read("\(linear.name).weight", from: weights) == linear.dequantized().elements)
    }
  }

  @Test func `outliers are kept beside the codes and added to the dense weights`() throws {
    let scratch = try ScratchDirectory()
    let rows = modelLinears[0].outFeatures
    let outliers: [String: Outliers] = [
      modelLinears[0].name: .unstructured(
        values: (0..<rows).map { 1 + Float($0) / 64 }, columns: (0..<rows).map { Int32($0) },
        // Row 0 has two, the last one none.
        rowOffsets: [0] + (1...rows).map { Int64(min($0 + 1, rows)) }),
      modelLinears[1].name: .structured(
        values: (0..<(96 * 3)).map { Float($0) / 4 }, columns: [2, 77, 159]),
    ]
    let names: [OutputFormatName] = [.compressedTensors, .gptq, .dense]
    let format = gridFormat(.three, .columns(32), symmetric: false, for: names)
    let (_, linears, outputs) = try exportModel(scratch, format, names, outliers: outliers)
    for (name, directory) in outputs {
      let (reader, weights) = try openWeights(directory)
      #expect((reader.configuration["quantization_config"]?["outliers"] != nil) == (name != .dense))
      #expect(reader.tensorNames.allSatisfy { !$0.contains("outliers") })
      for linear in linears {
        let expected = linear.dequantized().elements
        let found = try read("\(linear.name).weight", from: weights)
        #expect(found == (name == .dense ? expected.map { $0.rounded(to: .bfloat16) } : expected))
      }
    }
  }

  @Test func `the configuration is the source's and the other files come along`() throws {
    let scratch = try ScratchDirectory()
    let names: [OutputFormatName] = [.gptq, .dense]
    let format = gridFormat(.four, .channel, symmetric: true, for: names)
    let (source, _, outputs) = try exportModel(scratch, format, names)
    for (name, directory) in outputs {
      let reader = try CheckpointReader(directory: directory)
      var configuration = try #require(reader.configuration.object)
      #expect((configuration.removeValue(forKey: "quantization_config") != nil) == (name == .gptq))
      #expect(configuration == source.configuration.object)
      #expect(reader.otherFiles.contains("tokenizer.json"))
      #expect(reader.otherFiles.contains("quantize_config.json") == (name == .gptq))
      #expect(reader.tensors["lm_head.weight"] == nil)
    }
  }

  @Test func `a linear that was never written does not pass unnoticed`() throws {
    let scratch = try ScratchDirectory()
    let format = gridFormat(.four, .channel, symmetric: true, for: [.gptq])
    let export = try CheckpointExport(
      source: makeModel(in: scratch.subdirectory("source")), linears: descriptions(format),
      formats: [.gptq], directory: scratch.path)
    try export.copyUnquantized()
    #expect(throws: CheckpointError.self) { try export.finish() }
  }

  @Test func `an outlier beyond fp16 is named`() throws {
    let scratch = try ScratchDirectory()
    let outliers = Outliers.structured(
      values: [Float](repeating: 0, count: 63) + [1e6], columns: [0])
    let name = modelLinears[0].name
    let format = gridFormat(.four, .channel, symmetric: true, for: [.gptq])
    #expect(
      throws: ExportError.valueOutOfRange(
        tensor: "\(name).outliers.values", index: 63, type: .float16)
    ) { try exportModel(scratch, format, [.gptq], outliers: [name: outliers]) }
  }

  @Test func `a linear that the source lacks is named`() throws {
    let scratch = try ScratchDirectory()
    var linears = descriptions(gridFormat(.four, .channel, symmetric: true, for: [.dense]))
    linears[0].name = "model.layers.9.q"
    #expect(throws: ExportError.missingTensor("model.layers.9.q.weight")) {
      try CheckpointExport(
        source: makeModel(in: scratch.subdirectory("source")), linears: linears, formats: [.dense],
        directory: scratch.path)
    }
  }
}
