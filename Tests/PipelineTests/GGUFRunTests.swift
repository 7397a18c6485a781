import Calibration
import Checkpoint
import ComputeOpenBLAS
import Decoder
import Export
import SystemIO
import Tensors
import TestSupport
import Testing

@testable import Pipeline

/// Whole runs from a GGUF file to another.
struct GGUFRunTests {
  private let directory: TemporaryDirectory
  private let backend = OpenBLASBackend(threads: 2)

  init() throws { directory = try TemporaryDirectory(isInMemory: true) }

  private func run(
    _ fixture: String, _ change: (inout QuantizationSettings) -> Void = { _ in }, imatrix: String? = nil,
    source: String? = nil, output name: String = "output"
  ) throws -> (run: QuantizationRun, report: Report, result: CheckpointReader) {
    var settings = QuantizationSettings()
    settings.formats = [.gguf]
    settings.passes = 3
    change(&settings)
    var generator = SeededGenerator(seed: 3)
    let calibration = CalibrationSet(
      sequenceLength: 16, tokens: (0..<128).map { _ in Int32.random(in: 0..<56, using: &generator) })
    let output = directory.file("\(name)-\(fixture)")
    var request = QuantizationRequest(
      model: source ?? TestFiles.gguf("\(fixture).gguf"), output: output, recipe: try settings.recipe(),
      target: settings.resolvedTarget, targetShare: settings.resolvedTargetShare, formats: settings.formats,
      calibration: calibration, seed: 0, calibrationSources: "tokens", memoryBudgetBytes: 1 << 32)
    request.importanceMatrix = imatrix
    let run = try QuantizationRun(request, backend: backend)
    let report = try run.run { _ in }
    return (run, report, try CheckpointReader.open(output))
  }

  @Test(arguments: TestFiles.ggufs)
  func `every family is quantized, and the result is what its outline said`(_ fixture: String) throws {
    let (run, report, result) = try run(fixture)
    #expect(report.linears.count == run.linearCount)
    let outline = try #require(report.settings.gguf)
    #expect(
      outline.file == "Q4_K_M" && outline.shares.reduce(0) { $0 + $1.tensors } == result.gguf?.tensors.count)
    #expect(outline.bytes == result.gguf?.tensors.reduce(0) { $0 + $1.bytes.count })
    for linear in report.linears {
      #expect(linear.relativeError < 0.05, "\(linear.name)")
      #expect(result.tensors["\(linear.name).weight"]?.blocks?.name == linear.type)
    }
    let head = try #require(report.head)
    #expect(head.relativeError < 0.05 && "\(head.name).weight" == run.description.head.weights)
    #expect(result.tensors["\(head.name).weight"]?.blocks?.name == head.type)
    // All that is said of the model stays.
    #expect(
      try result.configuration == CheckpointReader(gguf: TestFiles.gguf("\(fixture).gguf")).configuration)
  }

  @Test func `layers are solved for the embeddings that the result has`() throws {
    let (run, report, result) = try run("llama-wide") { $0.rules = ["^model.embed_tokens=type:Q2_K"] }
    #expect(report.rounded == ["model.embed_tokens"])
    let tokens = (0..<48).map { Int32($0) }
    let source = try CheckpointReader(gguf: TestFiles.gguf("llama-wide.gguf"))
    func embeddings(_ source: CheckpointReader, rounding: ((Matrix) -> Void)? = nil) throws -> [Float] {
      try DecoderModel(
        run.description, source: source, backend: backend, sequenceLength: 16, roundTokens: rounding
      ).embed(tokens).elements
    }
    let expected = try embeddings(result)
    #expect(try embeddings(source, rounding: run.roundTokens) == expected)
    #expect(try embeddings(source) != expected)
  }

  /// Untied, and tied.
  @Test(arguments: ["llama-wide", "llama-rope-llama3"])
  func `the head is solved for what it reads`(_ fixture: String) throws {
    let name = fixture == "llama-wide" ? "lm_head" : "model.embed_tokens"
    func change(_ solver: String) -> (inout QuantizationSettings) -> Void {
      { $0.rules = ["^\(name)=type:Q4_0,solver:\(solver)"] }
    }
    let (run, report, solved) = try run(fixture, change("quantease"))
    let rounded = try self.run("\(fixture)", change("rtn"), output: "rounded").result
    #expect(report.rounded == (fixture == "llama-wide" ? ["model.embed_tokens"] : nil))
    /// ‖(W − Ŵ)X‖² over ‖WX‖², X of the quantized model.
    let model = try DecoderModel(run.description, source: solved, backend: backend, sequenceLength: 16)
    var state = LayerState(residual: try model.embed(run.request.calibration.tokens))
    for index in 0..<run.description.layerCount {
      let layer = try model.layer(index)
      for stage in layer.stages {
        layer.run(stage, input: layer.input(of: stage, state), sequenceLength: 16, state: &state)
      }
    }
    let inputs = try model.headInput()(state.residual).copy()
    func weights(_ source: CheckpointReader) throws -> Matrix {
      let shape = try #require(source.shape(of: "\(name).weight"))
      let matrix = Matrix(rows: shape[0], columns: shape[1])
      try source.read("\(name).weight", rows: 0..<shape[0], into: matrix)
      return matrix
    }
    let exact = try weights(CheckpointReader(gguf: TestFiles.gguf("\(fixture).gguf")))
    func energy(_ weights: Matrix) -> Double {
      let outputs = Matrix(rows: inputs.rows, columns: weights.rows)
      backend.multiply(inputs, weights, transposingB: true, scale: 1, into: outputs, keeping: 0)
      return outputs.elements.reduce(0) { $0 + Double($1) * Double($1) }
    }
    func error(_ source: CheckpointReader) throws -> Double {
      let difference = try weights(source)
      backend.subtract(exact, from: difference)
      return energy(difference) / energy(exact)
    }
    let found = try #require(report.head?.relativeError)
    let solvedError = try error(solved)
    #expect(abs(solvedError / found - 1) < 0.3, "\(solvedError) for \(found)")
    #expect(try solvedError < 0.9 * error(rounded))
  }

  @Test func `rules choose types, and a type that does not fit is refused before the work`() throws {
    let (_, report, _) = try run("llama-wide") {
      $0.rules = ["[.]q_proj=type:q6_k", "[.]o_proj=skip"]
      $0.ggufType = .q2_K
    }
    #expect(report.linears.first { $0.name.contains("q_proj") }?.type == "Q6_K")
    #expect(!report.linears.contains { $0.name.contains("o_proj") })
    #expect(throws: ExportError.self) { try run("qwen2") { $0.rules = ["[.]q_proj=type:Q6_K"] } }
    #expect(throws: ExportError.self) { try run("qwen3") { $0.rules = ["[.]q_proj=bits:3"] } }
    for module in ["lm_head", "model.embed_tokens"] {
      #expect(throws: ExportError.outliersNotInGGUF(linear: module)) {
        try run("qwen3") { $0.rules = ["^\(module)=outliers:0.01"] }
      }
      #expect(throws: RecipeError.passesNeedQuantEase(module, solver: "rtn")) {
        try run("qwen3") { $0.rules = ["^\(module)=solver:rtn,passes:3"] }
      }
    }
  }

  @Test func `types are of GGUF files alone, and no other format takes such a grid`() throws {
    var settings = QuantizationSettings()
    settings.rules = ["[.]q_proj=type:Q4_1"]
    let checkpoint = try CheckpointReader(directory: TestFiles.model("llama"))
    let model = try ModelDescription(checking: checkpoint, source: checkpoint)
    #expect(throws: RecipeError.typeNeedsGGUF("[.]q_proj")) { try settings.recipe().resolve(for: model) }
    let linear = model.linears(ofLayer: 0)[0]
    let description = LinearDescription(
      name: model.layerPrefix(0) + linear.name, outFeatures: linear.outFeatures,
      inFeatures: linear.inFeatures,
      gridFormat: GGUFTensorType.q4_1.gridFormat, hasBias: linear.hasBias)
    for format in OutputFormatName.allCases where format != .gguf {
      #expect(throws: ExportError.ggufGrid(linear: description.name, format: format)) {
        try CheckpointExport(
          source: checkpoint, linears: [description], formats: [format],
          directory: directory.file("none"))
      }
    }
  }

  @Test func `what a rule skips stays so under later rules that choose no type`() throws {
    let (_, report, _) = try run("llama-wide") { $0.rules = ["[.]o_proj=skip", ".*=passes:2"] }
    #expect(!report.linears.contains { $0.name.contains("o_proj") })
    #expect(report.settings.gguf?.fallbacks.isEmpty == true)
  }

  @Test func `an importance matrix has the energy of every input`() throws {
    let path = directory.file("imatrix.gguf")
    _ = try run("llama", imatrix: path)
    let file = try MappedFile(path: path)
    let header = try GGUFHeader(of: file)
    #expect(header["general.type"] == .text("imatrix") && header["imatrix.chunk_size"] == .integer(16))
    #expect(header.tensors.count == 30)
    func values(_ name: String) throws -> [Float] {
      let tensor = try #require(header.tensors.first { $0.name == name })
      return file.withBytes(tensor.bytes) { bytes in
        (0..<bytes.byteCount / 4).map {
          Float(bitPattern: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self))
        }
      }
    }
    #expect(try values("blk.1.ffn_down.weight.counts") == [128])
    let sums = try values("blk.0.attn_q.weight.in_sum2")
    #expect(sums.count == 64 && sums.allSatisfy { $0 > 0 })
    // The same inputs, by name.
    #expect(try sums == values("blk.0.attn_v.weight.in_sum2"))
    #expect(try values("blk.1.ffn_down.weight.in_sum2").count == 96)
    #expect(throws: PipelineError.outputExists(path)) { try run("qwen2", imatrix: path) }
  }

  @Test func `an importance matrix has every expert of a stack`() throws {
    let path = directory.file("experts.gguf")
    let (run, report, _) = try run("mixtral", imatrix: path)
    let file = try MappedFile(path: path)
    let header = try GGUFHeader(of: file)
    func shape(_ name: String) -> [Int]? { header.tensors.first { $0.name == name }?.shape }
    #expect(shape("blk.0.ffn_down_exps.weight.in_sum2") == [4, 96])
    #expect(shape("blk.1.ffn_gate_exps.weight.in_sum2") == [4, 64])
    #expect(shape("blk.1.ffn_gate_exps.weight.counts") == [4, 1])
    let counts = try #require(header.tensors.first { $0.name == "blk.0.ffn_up_exps.weight.counts" })
    let found = file.withBytes(counts.bytes) { bytes in
      (0..<4).map {
        Int(Float(bitPattern: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)))
      }
    }
    let tokens = (0..<4).map { number in
      report.linears.first { $0.layer == 0 && $0.expert == number }?.tokens
    }
    #expect(found == tokens && run.linearCount == report.linears.count)
  }

  @Test func `experts that are stored one by one are read like those in stacks`() throws {
    let stacked = try CheckpointReader(gguf: TestFiles.gguf("mixtral.gguf"))
    // Each tensor with where it stands: `blk.0.ffn_down.3` is a part of `blk.0.ffn_down_exps`.
    let parts = try #require(stacked.gguf).tensors.flatMap {
      tensor -> [(name: String, tensor: GGUFHeader.Tensor, number: Int?)] in
      guard tensor.shape.count == 3 else { return [(tensor.name, tensor, nil)] }
      return (0..<tensor.shape[0]).map {
        (tensor.name.replacing("_exps", with: "").replacing(".weight", with: ".\($0).weight"), tensor, $0)
      }
    }
    let plan = parts.map {
      TensorPlan(
        name: $0.name, dtype: $0.tensor.type.plainType ?? .float32,
        shape: $0.number == nil ? $0.tensor.shape : Array($0.tensor.shape.dropFirst()))
    }
    let writer = try CheckpointWriter(
      gguf: "old.gguf", in: directory.path, plan: plan, keysOf: stacked, fileType: 32)
    for part in parts {
      let (range, count) = (part.tensor.bytes, part.tensor.shape[0])
      let size = part.number == nil ? range.count : range.count / count
      let start = range.lowerBound + (part.number ?? 0) * size
      let bytes = try MappedFile(path: part.tensor.file).bytes(start..<start + size)
      try writer.write(part.name, bytes)
    }
    try writer.finish()
    let old = try run("mixtral", source: directory.file("old.gguf"), output: "old")
    let new = try run("mixtral")
    #expect(old.report.linears.map(\.relativeError) == new.report.linears.map(\.relativeError))
    #expect(old.report.linears.map(\.type) == new.report.linears.map(\.type))
    #expect(old.result.gguf?.tensors.contains { $0.name == "blk.1.ffn_down.3.weight" } == true)
  }

  @Test func `a result may be one file, with its report beside it`() throws {
    let output = directory.file("some/model.gguf")
    func request() throws -> QuantizationRequest {
      var settings = QuantizationSettings()
      settings.formats = [.gguf]
      return QuantizationRequest(
        model: TestFiles.gguf("llama.gguf"), output: output, recipe: try settings.recipe(), target: .layer,
        targetShare: 1, formats: settings.formats,
        calibration: CalibrationSet(sequenceLength: 16, tokens: (0..<128).map { Int32($0 % 40) }), seed: 0,
        calibrationSources: "tokens", memoryBudgetBytes: 1 << 32)
    }
    let report = try QuantizationRun(request(), backend: backend).run { _ in }
    let place = try Report.Place(of: output)
    #expect(
      try Set(FileSystem.names(in: directory.file("some")))
        == ["model.gguf", "model.quantease_report.json", "model.quantease_report.html"])
    #expect(try Report(at: place) == report)
    #expect(
      try CheckpointReader.open(output).gguf?.tensors.count
        == report.settings.gguf?.shares.reduce(0) { $0 + $1.tensors })
    #expect(throws: PipelineError.outputExists(output)) { try QuantizationRun(request(), backend: backend) }
    // Nothing that stands there is written over.
    try FileSystem.removeTree(output)
    #expect(throws: PipelineError.outputExists(place.path)) {
      try QuantizationRun(request(), backend: backend)
    }
  }

  @Test func `of a directory with a projector the one file is the model`() throws {
    let source = directory.file("source")
    try FileSystem.createDirectories(source)
    try FileSystem.copyFile(TestFiles.gguf("llama-wide.gguf"), to: "\(source)/model.gguf")
    try FileSystem.copyFile(TestFiles.gguf("llama.gguf"), to: "\(source)/mmproj-model.gguf")
    let output = directory.file("one.gguf")
    var settings = QuantizationSettings()
    settings.formats = [.gguf]
    let report = try QuantizationRun(
      QuantizationRequest(
        model: source, output: output, recipe: try settings.recipe(), target: .layer, targetShare: 1,
        formats: settings.formats,
        calibration: CalibrationSet(sequenceLength: 16, tokens: (0..<128).map { Int32($0 % 40) }), seed: 0,
        calibrationSources: "tokens", memoryBudgetBytes: 1 << 32), backend: backend
    ).run { _ in }
    let header = try #require(try CheckpointReader.open(output).gguf)
    #expect(header.tensors.reduce(0) { $0 + $1.bytes.count } == report.settings.gguf?.bytes)
    #expect(report.filesLeftOut?.contains("mmproj-model.gguf") == true)
  }

  /// llama.cpp reads tensors that are there, asked for or not.
  @Test(arguments: [
    "blk.0.attn_output.bias", "blk.0.ffn_gate_shexp.weight", "blk.0.attn_q.scale", "output.bias",
  ])
  func `a model with a tensor that nobody here reads is refused`(_ name: String) throws {
    let plain = try CheckpointReader(gguf: TestFiles.gguf("llama-wide.gguf"))
    let tensors = try #require(plain.gguf).tensors
    let plan =
      tensors.map { TensorPlan(name: $0.name, dtype: $0.type.plainType ?? .float32, shape: $0.shape) }
      + [TensorPlan(name: name, dtype: .float32, shape: [256])]
    let writer = try CheckpointWriter(
      gguf: "more.gguf", in: directory.path, plan: plan, keysOf: plain, fileType: 32)
    for tensor in plan { try writer.write(tensor.name, [UInt8](repeating: 0, count: tensor.byteCount)) }
    try writer.finish()
    let path = directory.file("more.gguf")
    let error = #expect(throws: GGUFError.self) {
      try QuantizationRun.open(path, symlinks: .follow, allowingRequantizing: false, rotation: .off)
    }
    #expect(error?.reason == .unreadTensor(name) && error.flatMap(sysexit) == 65)
  }

  /// Rows and blocks of zeros, and of less than any float16 holds.
  @Test(arguments: GGUFMix.Name.allCases)
  func `zeros, and weights too small for any scale, are zeros in the file`(_ name: GGUFMix.Name) throws {
    let plain = try CheckpointReader(gguf: TestFiles.gguf("llama-wide.gguf"))
    let plan = try #require(plain.gguf).tensors.map {
      TensorPlan(name: $0.name, dtype: $0.type.plainType ?? .float32, shape: $0.shape)
    }
    let writer = try CheckpointWriter(
      gguf: "source.gguf", in: directory.path, plan: plan, keysOf: plain, fileType: 1)
    for tensor in try #require(plain.gguf).tensors {
      var bytes = try MappedFile(path: tensor.file).bytes(tensor.bytes)
      if tensor.name.hasSuffix("ffn_up.weight") || tensor.name == "token_embd.weight" {
        for index in 0..<512 { bytes[index] = 0 }
        // The second row: 1e-12, as bfloat16.
        for index in stride(from: 512, to: 1_024, by: 2) { (bytes[index], bytes[index + 1]) = (0x8C, 0x2B) }
      }
      try writer.write(tensor.name, bytes)
    }
    try writer.finish()
    var settings = QuantizationSettings()
    settings.formats = [.gguf]
    settings.ggufType = name
    let output = directory.file("zeros")
    let request = QuantizationRequest(
      model: directory.file("source.gguf"), output: output, recipe: try settings.recipe(), target: .layer,
      targetShare: 1, formats: settings.formats,
      calibration: CalibrationSet(sequenceLength: 16, tokens: (0..<128).map { Int32($0 % 40) }), seed: 0,
      calibrationSources: "tokens", memoryBudgetBytes: 1 << 32)
    _ = try QuantizationRun(request, backend: backend).run { _ in }
    let result = try CheckpointReader.open(output)
    for name in ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"] {
      let rows = Matrix(rows: 2, columns: 256)
      try result.read(name, rows: 0..<2, into: rows)
      #expect(rows.elements.allSatisfy { abs($0) < 1e-4 }, "\(name)")
      #expect(rows.elements.prefix(256).allSatisfy { $0 == 0 }, "\(name)")
    }
  }
}
