import Checkpoint
import Quantization
import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Export

struct GGUFExportTests {
  private func linears(
    of reader: CheckpointReader, _ grid: (String) -> GridFormat?
  ) -> [LinearDescription] {
    reader.tensorNames.compactMap { name in
      guard name.contains("_proj.weight"), let shape = reader.shape(of: name) else { return nil }
      let module = String(name.dropLast(".weight".count))
      return LinearDescription(
        name: module, outFeatures: shape[0], inFeatures: shape[1], gridFormat: grid(module),
        hasBias: reader.tensors["\(module).bias"] != nil)
    }
  }

  private func grid(_ bits: BitWidth) -> GridFormat {
    gridFormat(bits, .columns(32), symmetric: true, for: [.gguf])
  }

  private func elements(_ tensor: String, of reader: CheckpointReader) throws -> [Float] {
    try reader.matrix(tensor, shape: #require(reader.shape(of: tensor))).elements
  }

  @Test(arguments: ["llama", "llama-rope-llama3", "qwen2", "qwen3"], [BitWidth.four, .eight])
  func `what is written is what was quantized, and the rest is the source's`(
    _ fixture: String, _ bits: BitWidth
  ) throws {
    let scratch = try ScratchDirectory()
    let source = try CheckpointReader(gguf: TestFiles.gguf("\(fixture).gguf"))
    // One of another type, and one that stays as it is.
    let linears = linears(of: source) { module in
      module.contains("0.mlp.up") ? nil : grid(module.contains("1.mlp.down") ? .eight : bits)
    }
    let export = try CheckpointExport(
      source: source, linears: linears, formats: [.gguf], directory: scratch.path)
    let quantized = linears.filter { $0.gridFormat != nil }.reversed().map {
      randomLinear(
        $0.name, outFeatures: $0.outFeatures, inFeatures: $0.inFeatures, format: $0.gridFormat ?? grid(bits))
    }
    for linear in quantized { try export.write(linear) }
    try export.copyUnquantized()
    try export.finish()
    let type = bits == .four ? "Q4_0" : "Q8_0"
    #expect(try FileSystem.names(in: scratch.path) == ["\(fixture)-\(type).gguf"])
    let output = try CheckpointReader(gguf: FileSystem.join(scratch.path, "\(fixture)-\(type).gguf"))
    #expect(output.tensorNames == source.tensorNames)
    #expect(output.configuration == source.configuration)
    for linear in quantized {
      let name = "\(linear.name).weight"
      #expect(try elements(name, of: output) == linear.dequantized().elements, "\(name)")
      let isEight = bits == .eight || name.contains("1.mlp.down")
      #expect(output.tensors[name]?.blocks?.name == (isEight ? "Q8_0" : "Q4_0"))
    }
    let written = Set(quantized.map { "\($0.name).weight" })
    for name in source.tensorNames where !written.contains(name) {
      let (before, after) = try (elements(name, of: source), elements(name, of: output))
      guard name.contains("embed_tokens") || name.contains("lm_head") else {
        #expect(before == after, "\(name)")
        continue
      }
      #expect(output.tensors[name]?.blocks?.name == "Q8_0")
      // Half a step of a block's largest value over 127, and what the scale's own rounding moves.
      for start in stride(from: 0, to: before.count, by: 32) {
        let largest = before[start..<start + 32].map(abs).max() ?? 0
        for place in start..<start + 32 {
          #expect(abs(before[place] - after[place]) <= largest / 127 * 0.57)
        }
      }
    }
  }

  @Test func `what is in blocks already, read or not, is copied as it stands`() throws {
    let scratch = try ScratchDirectory()
    let plain = try CheckpointReader(gguf: TestFiles.gguf("llama.gguf"))
    // Of a layer beyond those that the keys count, and of no type that is read.
    var header = try #require(plain.gguf).tensors.map {
      TensorPlan(name: $0.name, type: $0.type, shape: $0.shape)
    }
    let strange = try #require(GGUFTensorType(.other("Q4_K")))
    header.append(TensorPlan(name: "blk.9.attn_q.weight", type: strange, shape: [2, 256]))
    let embeddings = try #require(header.firstIndex { $0.name == "token_embd.weight" })
    header[embeddings] = TensorPlan(
      name: header[embeddings].name, type: .q8_0, shape: header[embeddings].shape)
    let writer = try CheckpointWriter(
      gguf: "source.gguf", in: scratch.subdirectory("source"), plan: header, keysOf: plain, fileType: 7)
    for tensor in header {
      try writer.write(tensor.name, (0..<tensor.byteCount).map { UInt8(truncatingIfNeeded: $0 % 61) })
    }
    try writer.finish()
    let path = FileSystem.join(scratch.path, "source/source.gguf")
    let source = try CheckpointReader(gguf: path)
    let output = try scratch.subdirectory("output")
    let export = try CheckpointExport(
      source: source, linears: linears(of: source) { _ in nil }, formats: [.gguf], directory: output)
    try export.copyUnquantized()
    try export.finish()
    let copy = try CheckpointReader(gguf: FileSystem.join(output, "source-Q8_0.gguf"))
    let types = try #require(copy.gguf).tensors
    #expect(types.map(\.name) == header.map(\.name))
    for (tensor, planned) in zip(types, header) where planned.name != "output.weight" {
      #expect(tensor.type.dtype == planned.dtype, "\(tensor.name)")
      let name = try #require(copy.tensors.values.first { ($0.part?.whole ?? $0.name) == tensor.name }).name
      func bytes(_ reader: CheckpointReader) throws -> [UInt8] {
        try reader.withBytes(of: name, 0..<tensor.bytes.count) { span in
          (0..<span.byteCount).map { unsafe span.unsafeLoad(fromByteOffset: $0, as: UInt8.self) }
        }
      }
      #expect(try bytes(copy) == bytes(source), "\(tensor.name)")
    }
  }

  @Test func `blocks of zeros, and of less than any scale, are zeros`() {
    let tiny = Matrix(rows: 2, columns: 32)
    for column in 0..<32 { tiny[1, column] = 1e-9 }
    #expect(GGUFFormat.rounded(tiny) == [UInt8](repeating: 0, count: 68))
  }

  @Test func `what GGUF has no place for is refused before anything is written`() throws {
    let scratch = try ScratchDirectory()
    let source = try CheckpointReader(gguf: TestFiles.gguf("llama.gguf"))
    func refuse(
      _ expected: ExportError, _ source: CheckpointReader, _ format: OutputFormatName, _ grid: GridFormat?
    )
      throws
    {
      #expect(throws: expected) {
        try CheckpointExport(
          source: source, linears: linears(of: source) { _ in grid }, formats: [format],
          directory: scratch.path)
      }
      #expect(try FileSystem.names(in: scratch.path) == [])
    }
    let first = "model.layers.0.mlp.down_proj"
    try refuse(
      .gridNotInGGUF(linear: first, bits: 3, groupSize: 32, isSymmetric: true), source, .gguf, grid(.three))
    try refuse(
      .gridNotInGGUF(linear: first, bits: 4, groupSize: -1, isSymmetric: true), source, .gguf,
      gridFormat(.four, .channel, symmetric: true, for: [.gguf]))
    try refuse(.onlyGGUF(format: .dense), source, .dense, grid(.four))
    let checkpoint = try CheckpointReader(directory: TestFiles.model("llama"))
    try refuse(.needsGGUF, checkpoint, .gguf, grid(.four))
  }

  @Test(arguments: [
    ("smol-bf16.gguf", "smol-Q4_0.gguf"), ("Smol.F16.gguf", "Smol-Q4_0.gguf"),
    ("smol.gguf", "smol-Q4_0.gguf"),
  ])
  func `a file is named after its source and its type`(_ source: String, _ expected: String) {
    #expect(GGUFFormat.fileName(of: source, .q4_0) == expected)
  }
}
