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
      guard name.hasSuffix(".weight"), let shape = reader.shape(of: name), shape.count == 2 else {
        return nil
      }
      let module = String(name.dropLast(".weight".count))
      return LinearDescription(
        name: module, outFeatures: shape[0], inFeatures: shape[1], gridFormat: grid(module),
        hasBias: reader.tensors["\(module).bias"] != nil)
    }
  }

  private func elements(_ tensor: String, of reader: CheckpointReader) throws -> [Float] {
    try reader.matrix(tensor, shape: #require(reader.shape(of: tensor))).elements
  }

  @Test(
    arguments: ["llama", "llama-rope-llama3", "qwen2", "mixtral", "falcon-40b", "llama-wide"],
    GGUFTensorType.quantized)
  func `what is written is what was quantized, and the rest is the source's`(
    _ fixture: String, _ type: GGUFTensorType
  ) throws {
    let scratch = try ScratchDirectory()
    let source = try CheckpointReader(gguf: TestFiles.gguf("\(fixture).gguf"))
    // One that stays as it is, and others of another type where theirs does not fit.
    func chosen(_ module: String) -> GGUFTensorType? {
      if module.contains("0.mlp.up") { return nil }
      let columns = source.shape(of: "\(module).weight")?[1] ?? 0
      return columns.isMultiple(of: type.blockSize) ? type : .q5_1
    }
    let linears = linears(of: source) { chosen($0)?.gridFormat }
    let export = try CheckpointExport(
      source: source, linears: linears, formats: [.gguf], directory: scratch.path, mix: GGUFMix(.q5_0))
    let quantized = linears.reversed().compactMap { linear in
      linear.gridFormat.map {
        randomLinear(linear.name, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures, format: $0)
      }
    }
    for linear in quantized { try export.write(linear) }
    try export.copyUnquantized()
    try export.finish()
    #expect(try FileSystem.names(in: scratch.path) == ["\(fixture)-Q5_0.gguf"])
    let output = try CheckpointReader(gguf: FileSystem.join(scratch.path, "\(fixture)-Q5_0.gguf"))
    #expect(output.tensorNames == source.tensorNames)
    #expect(output.configuration == source.configuration)
    for linear in quantized {
      let name = "\(linear.name).weight"
      #expect(try elements(name, of: output) == linear.dequantized().elements, "\(name)")
      #expect(output.tensors[name]?.blocks == chosen(linear.name))
    }
    let written = Set(quantized.map { "\($0.name).weight" })
    for name in source.tensorNames where !written.contains(name) {
      #expect(try elements(name, of: source) == elements(name, of: output), "\(name)")
    }
  }

  @Test func `what is in blocks already, read or not, is copied as it stands`() throws {
    let scratch = try ScratchDirectory()
    let plain = try CheckpointReader(gguf: TestFiles.gguf("llama.gguf"))
    // Of a layer beyond those that the keys count, and of no type that is read.
    var header = try #require(plain.gguf).tensors.map {
      TensorPlan(name: $0.name, type: $0.type, shape: $0.shape)
    }
    let strange = try #require(GGUFTensorType(.other("IQ4_XS")))
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
      source: source, linears: linears(of: source) { _ in nil }, formats: [.gguf], directory: output,
      mix: GGUFMix(.q8_0))
    try export.copyUnquantized()
    try export.finish()
    let copy = try CheckpointReader(gguf: FileSystem.join(output, "source-Q8_0.gguf"))
    let types = try #require(copy.gguf).tensors
    #expect(types.map(\.name) == header.map(\.name))
    for (tensor, planned) in zip(types, header) {
      #expect(tensor.type.dtype == planned.dtype, "\(tensor.name)")
      let name = try #require(copy.tensors.values.first { $0.storedName == tensor.name }).name
      func bytes(_ reader: CheckpointReader) throws -> [UInt8] {
        let place = try #require(reader.tensors[name])
        return try MappedFile(path: place.file).bytes(place.byteRange)
      }
      #expect(try bytes(copy) == bytes(source), "\(tensor.name)")
    }
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
    let first = try #require(linears(of: source) { _ in nil }.first?.name)
    let three = gridFormat(.three, .columns(32), symmetric: true, for: [.gguf])
    try refuse(
      .gridNotInGGUF(linear: first, bits: 3, groupSize: 32, isSymmetric: true), source, .gguf, three)
    try refuse(
      .gridNotInGGUF(linear: first, bits: 4, groupSize: -1, isSymmetric: true), source, .gguf,
      gridFormat(.four, .channel, symmetric: true, for: [.gguf]))
    try refuse(
      .noWholeBlocks(linear: first, type: "Q4_K", blockSize: 256, inFeatures: 64), source, .gguf,
      GGUFTensorType.q4_K.gridFormat)
    let four = gridFormat(.four, .columns(32), symmetric: true, for: [.gguf])
    try refuse(.onlyGGUF(format: .dense), source, .dense, four)
    let checkpoint = try CheckpointReader(directory: TestFiles.model("llama"))
    try refuse(.needsGGUF, checkpoint, .gguf, four)
  }

  @Test(arguments: [
    ("smol-bf16.gguf", "smol-Q4_K_M.gguf"), ("Smol.F16.gguf", "Smol-Q4_K_M.gguf"),
    ("smol.gguf", "smol-Q4_K_M.gguf"),
  ])
  func `a file is named after its source and its mix`(_ source: String, _ expected: String) {
    #expect(GGUFFormat.fileName(of: source, GGUFMix(.q4_K_M)) == expected)
  }
}
