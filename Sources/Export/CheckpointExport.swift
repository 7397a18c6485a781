import Checkpoint
import Quantization
import SystemIO
import Tensors

/// Writes the quantized checkpoint in every format that was asked for, linear by linear.
///
/// Call ``write(_:)`` once for every linear with a grid, in any order and from any thread, and
/// ``copyUnquantized(changing:)`` once; then ``finish()``. No shard is ever in memory, of neither side.
public final class CheckpointExport: Sendable {
  /// One checkpoint that is being written.
  private struct Output: Sendable {
    let format: any OutputFormat
    let directory: String
    let writer: CheckpointWriter
    let outlierWriter: CheckpointWriter?
  }

  private let source: CheckpointReader
  private let linears: [LinearDescription]
  /// The linears with a grid, by name.
  private let quantized: [String: LinearDescription]
  private let outputs: [Output]
  private let leftOut: Set<String>
  private let traits: ModelTraits
  /// Tensors of the source's files that hold some linear with a grid, or its bias.
  private let quantizedWholes: Set<String>
  private let towers: [String]

  /// Bytes of a tensor that are copied at once.
  private static let chunkByteCount = 1 << 23
  /// Files of the source that the export writes itself, or that are about the source alone.
  private static let replacedFiles: Set = [
    "config.json", "quantize_config.json", "quantease.yaml", "SHA256SUMS", Report.fileName,
    ReportPage.fileName,
  ]

  /// Creates the files with all their space, so that a full disk shows before the work.
  ///
  /// - Parameters:
  ///   - source: The unquantized checkpoint.
  ///   - linears: All linears of the model, those included that stay as they are.
  ///   - formats: Each once. One format: its checkpoint stands in `directory` itself; several: each in
  ///     a subdirectory of its name.
  ///   - directory: An existing directory, empty as far as names of checkpoint files go.
  ///   - shardSizeLimit: Bytes of tensors in one shard.
  ///   - leftOut: Names of files in the source that are not part of the model.
  ///   - towers: Parts of modules' names below which nothing is quantized.
  ///   - mix: What a GGUF file is named after.
  /// - Throws: ``ExportError`` if a format cannot hold a linear or if the source lacks one;
  ///   ``FileError`` if the files cannot be made.
  public init(
    source: CheckpointReader, linears: [LinearDescription], formats: [OutputFormatName],
    directory: String, shardSizeLimit: Int = 5_000_000_000, leavingOut leftOut: Set<String> = [],
    besides towers: [String] = [], traits: ModelTraits = [], mix: GGUFMix = GGUFMix(.q4_K_M)
  ) throws {
    precondition(!formats.isEmpty && Set(formats).count == formats.count, "each format once")
    precondition(Set(linears.map(\.name)).count == linears.count, "a linear is described twice")
    let quantized = linears.filter { $0.gridFormat != nil }
    for linear in quantized { try Self.check(linear, in: source) }
    func format(_ name: OutputFormatName) -> any OutputFormat {
      name == .gguf ? GGUFFormat(mix) : name.format
    }
    try Self.check(linears, formats, of: source, traits: traits)

    self.source = source
    self.linears = linears
    self.leftOut = leftOut
    self.towers = towers
    let isTransposed = source.tensors.values.contains { $0.part?.whole == $0.name }
    self.traits = isTransposed ? traits.union(.transposedLinears) : traits
    let byName = Dictionary(uniqueKeysWithValues: quantized.map { ($0.name, $0) })
    let wholes = Set(
      source.tensors.values.compactMap { Self.isQuantized($0.name, byName) ? $0.part?.whole : nil })
    self.quantized = byName
    quantizedWholes = wholes
    var outputs: [Output] = []
    for name in formats {
      let path = formats.count == 1 ? directory : FileSystem.join(directory, name.rawValue)
      try FileSystem.createDirectories(path)
      let format = format(name)
      let plan = Self.plan(
        of: source, quantized: byName, wholes: wholes, format: format)
      outputs.append(
        Output(
          format: format, directory: path,
          writer: try format.makeWriter(
            in: path, plan: plan, for: linears, source: source, shardSizeLimit: shardSizeLimit),
          outlierWriter: try Self.outlierWriter(for: quantized, format: format, directory: path)))
    }
    self.outputs = outputs
  }

  /// Looks whether formats can hold linears of a source, before any work.
  /// - Throws: ``ExportError`` if one cannot
  public static func check(
    _ linears: [LinearDescription], _ formats: [OutputFormatName], of source: CheckpointReader,
    traits: ModelTraits
  ) throws(ExportError) {
    for name in formats {
      let format = name.format
      if name == .gguf && source.gguf == nil { throw .needsGGUF }
      if name != .gguf && source.gguf != nil { throw .onlyGGUF(format: name) }
      if !format.holdsAnyGrid,
        let other = linears.first(where: { ($0.gridFormat?.coding ?? .zeroPoints) != .zeroPoints })
      {
        throw .ggufGrid(linear: other.name, format: name)
      }
      try format.check(linears)
      if traits.contains(.stackedExperts), !format.keepsSourceLayout {
        throw .expertsLoadNowhere(format: name)
      }
    }
  }

  private static func check(_ linear: LinearDescription, in source: CheckpointReader) throws(ExportError) {
    let expected =
      [("weight", [linear.outFeatures, linear.inFeatures])]
      + (linear.hasBias ? [("bias", [linear.outFeatures])] : [])
    for (part, shape) in expected {
      let name = "\(linear.name).\(part)"
      guard let tensor = source.tensors[name] else { throw .missingTensor(name) }
      guard tensor.shape == shape else {
        throw .unexpectedShape(tensor: name, found: tensor.shape, expected: shape)
      }
      guard tensor.dtype.isSupportedFloat else {
        throw .unsupportedType(tensor: name, type: tensor.dtype)
      }
    }
  }

  /// The source's tensors in their order, with what the format makes of the quantized linears.
  private static func plan(
    of source: CheckpointReader, quantized: [String: LinearDescription], wholes: Set<String>,
    format: any OutputFormat
  ) -> [TensorPlan] {
    var planned: Set<String> = []
    return source.tensorNames.flatMap { name -> [TensorPlan] in
      guard let tensor = source.tensors[name] else { return [] }
      let plans: [TensorPlan]
      let part = format.keepsSourceLayout || !wholes.contains(tensor.part?.whole ?? "") ? tensor.part : nil
      if let linear = quantized[module(of: name, "weight")], let grid = linear.gridFormat {
        plans = format.tensors(of: linear, grid: grid, inPlaceOf: tensor)
      } else if let type = format.ggufType(ofUnquantized: tensor) {
        plans = [TensorPlan(name: part?.whole ?? name, type: type, shape: part?.shape ?? tensor.shape)]
      } else if let part {
        plans = [TensorPlan(name: part.whole, dtype: tensor.dtype, shape: part.shape)]
      } else if quantized[module(of: name, "bias")] != nil {
        let type = format.biasType(modelType: tensor.dtype)
        plans = [TensorPlan(name: name, dtype: type, shape: tensor.shape)]
      } else {
        plans = [TensorPlan(copying: tensor)]
      }
      // Those of one stack have one.
      return plans.filter { planned.insert($0.name).inserted }
    }
  }

  private static func isQuantized(_ tensor: String, _ linears: [String: LinearDescription]) -> Bool {
    ["weight", "bias"].contains { linears[module(of: tensor, $0)] != nil }
  }

  /// The module whose `part` the tensor `name` is; empty if it is another part.
  private static func module(of name: String, _ part: String) -> String {
    name.hasSuffix(".\(part)") ? String(name.dropLast(part.count + 1)) : ""
  }

  private static func outlierWriter(
    for linears: [LinearDescription], format: any OutputFormat, directory: String
  ) throws -> CheckpointWriter? {
    let plan = linears.flatMap(OutlierFile.tensors)
    guard format.storesOutliersApart, !plan.isEmpty else { return nil }
    let path = FileSystem.join(directory, OutlierFile.directoryName)
    try FileSystem.createDirectories(path)
    // One file: nothing but this engine reads it, in small parts.
    return try CheckpointWriter(directory: path, plan: plan, shardSizeLimit: .max)
  }

  // MARK: Tensors

  /// Writes some rows of a matrix into a GGUF file.
  /// - Throws: ``FileError``
  public func write(_ rows: QuantizedLinear, firstRow: Int) throws {
    guard let weight = source.tensors["\(rows.name).weight"], quantized[rows.name] != nil else {
      preconditionFailure("\(rows.name) is not among the linears to be quantized")
    }
    let stored = rows.withStoredScales
    for output in outputs {
      guard let format = output.format as? GGUFFormat else {
        preconditionFailure("only GGUF files are written by rows")
      }
      try format.write(stored, firstRow: firstRow, inPlaceOf: weight, to: output.writer)
    }
  }

  /// Writes a quantized linear in all formats.
  /// - Throws: ``ExportError`` if a value does not fit its type, or ``FileError``.
  public func write(_ linear: QuantizedLinear) throws {
    guard let description = quantized[linear.name], let grid = description.gridFormat,
      let weight = source.tensors["\(linear.name).weight"]
    else { preconditionFailure("\(linear.name) is not among the linears to be quantized") }
    precondition(
      weight.shape == [linear.outFeatures, linear.inFeatures]
        && linear.grid.format.hasSameLayout(as: grid)
        && linear.outliers.map(OutlierLayout.init) == description.outliers,
      "\(linear.name) differs from its description")
    let stored = linear.withStoredScales
    for output in outputs {
      try output.format.write(stored, inPlaceOf: weight, to: output.writer)
      if let writer = output.outlierWriter, let outliers = linear.outliers {
        try OutlierFile.write(outliers, of: linear.name, to: writer)
      }
    }
  }

  /// Copies every other tensor: as it is, but for biases of linears whose format has a type for them.
  /// - Parameter changes: tensors that are written with other values, which each of their panels is changed to
  /// - Throws: ``ExportError``, ``CheckpointError`` or ``FileError``.
  public func copyUnquantized(changing changes: [String: (Matrix) -> Void] = [:]) throws {
    for name in source.tensorNames {
      guard let tensor = source.tensors[name] else { continue }
      if quantized[Self.module(of: name, "weight")] != nil { continue }
      if let change = changes[name] {
        precondition(tensor.part == nil, "a tensor of its own")
        try convert(tensor, as: tensor.dtype, to: outputs, changing: change)
        continue
      }
      let isBias = quantized[Self.module(of: name, "bias")] != nil
      let ggufs = outputs.filter { $0.format.ggufType(ofUnquantized: tensor) != nil }
      if !ggufs.isEmpty {
        let type = tensor.ggufType
        let start = (tensor.part?.start).flatMap { type?.byteCount(ofRow: $0) } ?? 0
        try copyBytes(of: tensor, to: ggufs, as: tensor.storedName, at: start)
      }
      let outputs = outputs.filter { $0.format.ggufType(ofUnquantized: tensor) == nil }
      if outputs.isEmpty { continue }
      func isConverted(in output: Output) -> Bool {
        isBias && output.format.biasType(modelType: tensor.dtype) != tensor.dtype
      }
      for output in outputs where isConverted(in: output) {
        try convert(tensor, as: output.format.biasType(modelType: tensor.dtype), to: [output])
      }
      let others = outputs.filter { !isConverted(in: $0) }
      guard let part = tensor.part else {
        try copy(tensor, to: others)
        continue
      }
      let isUntouched = !quantizedWholes.contains(part.whole)
      let kept = others.filter { isUntouched || $0.format.keepsSourceLayout }
      try (isUntouched ? copyWhole(tensor, part, to: kept) : copyPart(tensor, to: kept))
      try copy(tensor, to: others.filter { !isUntouched && !$0.format.keepsSourceLayout })
    }
  }

  private func copy(_ tensor: TensorInfo, to outputs: [Output]) throws {
    guard !outputs.isEmpty else { return }
    guard tensor.isStoredPlainly else { return try convert(tensor, as: tensor.dtype, to: outputs) }
    try copyBytes(of: tensor, to: outputs, as: tensor.name, at: 0)
  }

  /// Copies a part of a tensor that nothing of is quantized: with the bytes of the part that begins them, those of others
  /// between which it stands.
  private func copyWhole(_ tensor: TensorInfo, _ part: TensorPart, to outputs: [Output]) throws {
    guard tensor.coding == nil else { return try copyPart(tensor, to: outputs) }
    guard part.first == part.start else { return }
    try copyBytes(of: tensor, to: outputs, as: part.whole, at: part.start * tensor.dtype.byteWidth)
  }

  /// Writes what a part of a larger tensor stands for to its place there.
  private func copyPart(_ tensor: TensorInfo, to outputs: [Output]) throws {
    guard !outputs.isEmpty else { return }
    try source.forEachPanel(of: tensor.name, shape: tensor.shape) { rows, panel in
      for output in outputs { try output.writer.write(panel, firstRow: rows.lowerBound, of: tensor) }
    }
    source.forget(tensor.name)
  }

  private func copyBytes(of tensor: TensorInfo, to outputs: [Output], as name: String, at offset: Int) throws
  {
    let byteCount = tensor.byteRange.count
    for start in stride(from: 0, to: byteCount, by: Self.chunkByteCount) {
      let range = start..<min(start + Self.chunkByteCount, byteCount)
      source.willNeed(tensor.name, range)
      try source.withBytes(of: tensor.name, range) { bytes in
        for output in outputs { try output.writer.write(name, bytes, at: offset + start) }
      }
      source.release(tensor.name, range)
    }
    source.forget(tensor.name)
  }

  /// Writes what a tensor stands for in a type, a panel at a time.
  private func convert(
    _ tensor: TensorInfo, as type: DType, to outputs: [Output], changing change: (Matrix) -> Void = { _ in }
  ) throws {
    let rowByteCount = tensor.matrixDimensions.columns * type.byteWidth
    try source.forEachPanel(of: tensor.name, shape: tensor.shape) { rows, panel in
      change(panel)
      let bytes = try panel.withSpan { try encodeChecked($0, as: type, tensor: tensor.name) }
      for output in outputs {
        try output.writer.write(tensor.name, bytes, at: rows.lowerBound * rowByteCount)
      }
    }
    source.forget(tensor.name)
  }

  // MARK: The rest

  /// Writes config.json, copies the tokenizer and all other files, and brings everything to the disk.
  /// - Throws: ``CheckpointError/incomplete(tensor:missingBytes:)`` if a tensor was never written, or
  ///   ``FileError``.
  public func finish() throws {
    for output in outputs {
      try output.writer.finish()
      try output.outlierWriter?.finish()
      try writeConfiguration(of: output)
      for name in copiedFiles {
        let target = FileSystem.join(output.directory, name)
        try FileSystem.createDirectories(FileSystem.parent(of: target))
        try FileSystem.copyFile(
          FileSystem.join(source.directory, name), to: target, symlinks: source.symlinks)
      }
    }
  }

  /// The source's files that stand in every output as they are, by their relative paths.
  public var copiedFiles: [String] {
    source.otherFiles.filter { !Self.replacedFiles.contains($0) && !leftOut.contains($0) }
  }

  private func writeConfiguration(of output: Output) throws {
    // A GGUF file has its own.
    if source.gguf != nil { return }
    var configuration = source.configuration.object ?? [:]
    var files: [String: JSONValue] = [:]
    configuration["quantization_config"] = nil
    if var quantization = output.format.quantizationConfiguration(of: linears, besides: towers)?
      .object
    {
      if output.outlierWriter != nil { quantization["outliers"] = OutlierFile.configuration }
      configuration["quantization_config"] = .object(quantization)
      files = output.format.files(configuration: .object(quantization))
    }
    files["config.json"] = .object(configuration)
    for (name, json) in files {
      try AtomicFile.write(json.prettyText, to: FileSystem.join(output.directory, name))
    }
  }

  /// What is known of a runtime, for experts that it knows in stacks alone.
  private func restricted(_ support: RuntimeSupport, _ format: any OutputFormat) -> RuntimeSupport {
    guard traits.contains(.expertsForVLLM), !format.keepsSourceLayout, support.runtime == "transformers"
    else {
      return support
    }
    return RuntimeSupport(
      format: support.format, runtime: support.runtime, loads: false,
      note: "it knows the experts in stacks alone and would start with random ones: use dense there")
  }

  /// What loads the checkpoints, format by format. Where linears differ, the hardest one decides: one that is not loaded, or
  /// under a condition.
  public var runtimes: [RuntimeSupport] {
    let grids = Set(quantized.values.compactMap(\.gridFormat)).sorted {
      $0.bitWidth.rawValue < $1.bitWidth.rawValue
    }
    var traits = traits
    if grids.contains(where: { !$0.hasSameLayout(as: grids[0]) }) { traits.insert(.severalGrids) }
    if quantized.values.contains(where: \.hasShorterLastGroup) { traits.insert(.shorterLastGroups) }
    func isHarder(_ support: RuntimeSupport, than other: RuntimeSupport) -> Bool {
      support.loads == other.loads ? support.note.count > other.note.count : other.loads
    }
    return outputs.flatMap { output in
      var supports: [RuntimeSupport] = []
      for grid in grids {
        for support in output.format.runtimes(for: grid, of: traits).map({ restricted($0, output.format) }) {
          if let index = supports.firstIndex(where: { $0.runtime == support.runtime }) {
            if isHarder(support, than: supports[index]) { supports[index] = support }
          } else {
            supports.append(support)
          }
        }
      }
      guard output.outlierWriter != nil else { return supports }
      return supports.map {
        RuntimeSupport(
          format: $0.format, runtime: $0.runtime, loads: false,
          note: "it would leave the outliers away: use the dense format there")
      }
    }
  }
}
