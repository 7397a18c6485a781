import Checkpoint
import Quantization
import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Export

/// Weights that stand in larger tensors, or turned: read one by one, and written where they stood.
struct StackedExpertsTests {
  static let fixtures = [
    "qwen3-5-moe-stacked", "gemma4-moe", "gpt-oss", "gpt-oss-mxfp4", "llama4", "granite-moe", "gpt2",
  ]

  private struct Source {
    let reader: CheckpointReader
    /// The linears that are parts, all with their biases.
    let linears: [LinearDescription]

    init(_ fixture: String, grid: GridFormat?, leavingOut isLeftOut: (String) -> Bool = { _ in false }) throws
    {
      reader = try CheckpointReader(directory: TestFiles.model(fixture))
      linears = reader.tensorNames.compactMap { [reader] name in
        guard let tensor = reader.tensors[name], tensor.part != nil, name.hasSuffix(".weight") else {
          return nil
        }
        let module = String(name.dropLast(".weight".count))
        return LinearDescription(
          name: module, outFeatures: tensor.shape[0], inFeatures: tensor.shape[1],
          gridFormat: isLeftOut(module) ? nil : grid, hasBias: reader.tensors["\(module).bias"] != nil)
      }
    }

    /// What is written of random codes for every linear with a grid.
    func export(to directory: String, _ format: OutputFormatName) throws -> [QuantizedLinear] {
      let export = try CheckpointExport(
        source: reader, linears: linears, formats: [format], directory: directory)
      var quantized: [QuantizedLinear] = []
      // Not in their order.
      for linear in linears.reversed() {
        guard let grid = linear.gridFormat else { continue }
        quantized.append(
          randomLinear(
            linear.name, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures, format: grid))
      }
      for linear in quantized { try export.write(linear) }
      try export.copyUnquantized()
      try export.finish()
      return quantized
    }
  }

  /// The tensors of a checkpoint's one file, by the names that they have there.
  private func stored(_ directory: String) throws -> CheckpointReader {
    try CheckpointReader(file: FileSystem.join(directory, "model.safetensors"))
  }

  /// The names that the files of a dense checkpoint have.
  private func denseNames(_ fixture: String) throws -> Set<String> {
    Set(
      try stored(TestFiles.model(fixture)).tensorNames.filter { !$0.hasSuffix("_scales") }.map {
        $0.hasSuffix("_blocks") ? String($0.dropLast("_blocks".count)) : $0
      })
  }

  private func elements(_ tensor: String, of reader: CheckpointReader) throws -> [Float] {
    try reader.matrix(tensor, shape: #require(reader.shape(of: tensor))).elements
  }

  @Test(arguments: fixtures, [OutputFormatName.dense, .compressedTensors])
  func `what stays as it is stays where it is`(_ fixture: String, _ format: OutputFormatName) throws {
    let scratch = try ScratchDirectory()
    let source = try Source(fixture, grid: nil)
    _ = try source.export(to: scratch.path, format)
    #expect(try Set(stored(scratch.path).tensorNames) == denseNames(fixture))
    let output = try CheckpointReader(directory: scratch.path)
    for name in source.reader.tensorNames where source.reader.tensors[name]?.dtype.isSupportedFloat == true {
      #expect(try elements(name, of: output) == elements(name, of: source.reader), "\(name)")
    }
  }

  @Test(arguments: fixtures)
  func `dense weights stand where the source has them`(_ fixture: String) throws {
    let scratch = try ScratchDirectory()
    let grid = gridFormat(.eight, .channel, symmetric: true, for: [.dense])
    // Some of a stack are left alone.
    let source = try Source(fixture, grid: grid) { $0.contains(".1.up_proj") || $0.contains(".2.w2") }
    let quantized = try source.export(to: scratch.path, .dense)
    #expect(try Set(stored(scratch.path).tensorNames) == denseNames(fixture))
    let output = try CheckpointReader(directory: scratch.path)
    let type = try #require(output.tensors["\(source.linears[0].name).weight"]).dtype
    #expect(quantized.count > 3)
    for linear in quantized {
      let expected = linear.dequantized().elements.map { $0.rounded(to: type) }
      #expect(try elements("\(linear.name).weight", of: output) == expected, "\(linear.name)")
    }
    let written = Set(quantized.map { "\($0.name).weight" })
    for name in source.reader.tensorNames where !written.contains(name) {
      guard source.reader.tensors[name]?.dtype.isSupportedFloat == true else { continue }
      #expect(try elements(name, of: output) == elements(name, of: source.reader), "\(name)")
    }
  }

  @Test(arguments: fixtures.dropLast())
  func `packed experts stand one by one, and so do those that are left as they are`(_ fixture: String) throws
  {
    let scratch = try ScratchDirectory()
    let grid = gridFormat(.four, .channel, symmetric: true, for: [.compressedTensors])
    let source = try Source(fixture, grid: grid) { $0.contains("experts.1.") }
    let quantized = try source.export(to: scratch.path, .compressedTensors)
    let (output, weights) = try openWeights(scratch.path)
    for linear in source.linears {
      let name = "\(linear.name).weight"
      #expect((output.tensors[name] == nil) == (linear.gridFormat != nil), "\(name)")
      #expect(output.tensors[name]?.part == nil)
      guard linear.gridFormat == nil else { continue }
      #expect(try elements(name, of: output) == elements(name, of: source.reader), "\(name)")
    }
    for linear in quantized {
      let shape = [linear.outFeatures, linear.inFeatures]
      #expect(
        try weights.matrix("\(linear.name).weight", shape: shape).elements == linear.dequantized().elements)
      let bias = "\(linear.name).bias"
      guard source.reader.tensors[bias] != nil else { continue }
      #expect(try elements(bias, of: output) == elements(bias, of: source.reader))
    }
  }

  @Test func `experts that nothing loads one by one are refused before anything is written`() throws {
    let scratch = try ScratchDirectory()
    let grid = gridFormat(.four, .channel, symmetric: true, for: [.compressedTensors])
    let source = try Source("gpt-oss", grid: grid)
    for (format, isRefused) in [(OutputFormatName.compressedTensors, true), (.gptq, true), (.dense, false)] {
      let path = try scratch.subdirectory(format.rawValue)
      func open() throws {
        _ = try CheckpointExport(
          source: source.reader, linears: format == .gptq ? [] : source.linears,
          formats: [format], directory: path, traits: [.experts, .stackedExperts])
      }
      if isRefused {
        #expect(throws: ExportError.expertsLoadNowhere(format: format)) { try open() }
        #expect(try FileSystem.names(in: path).isEmpty)
      } else {
        try open()
      }
    }
  }
}
