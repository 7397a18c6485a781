import Checkpoint
import Quantization
import Tensors

/// The format of AutoGPTQ and its successors.
///
/// | tensor | type | shape |
/// |---|---|---|
/// | `qweight` | int32 | [in · bits / 32, out], packed downwards |
/// | `qzeros` | int32 | [groups, out · bits / 32], packed along the row |
/// | `scales` | fp16 | [groups, out] |
/// | `g_idx` | int32 | [in], the group of each column |
///
/// Version 1 stores z − 1 and its readers add 1; version 2 stores z. The last group may be shorter.
public struct GPTQFormat: OutputFormat {
  public enum Version: Sendable {
    case one, two

    /// What is taken from a zero point before it is stored.
    var zeroPointOffset: Int { self == .one ? 1 : 0 }
    /// `checkpoint_format` in the configuration.
    var notation: String { self == .one ? "gptq" : "gptq_v2" }
  }

  public let version: Version
  public var name: OutputFormatName { version == .one ? .gptq : .gptqV2 }

  public init(version: Version) { self.version = version }

  /// Widths that the format's readers know.
  static let bitWidths: [BitWidth] = [.two, .three, .four, .eight]

  public func scaleTypes(modelType: DType) -> [DType] { [.float16] }
  public func biasType(modelType: DType) -> DType { .float16 }

  public func check(_ linears: [LinearDescription]) throws(ExportError) {
    let quantized = linears.filter { $0.gridFormat != nil }
    for linear in quantized {
      if let bits = linear.gridFormat?.bitWidth, !Self.bitWidths.contains(bits) {
        throw .bitsNotInFormat(linear: linear.name, bits: bits.rawValue, format: name)
      }
      try linear.requireMultiplesOf32(for: name)
    }
    try quantized.requireOneLayout(for: name)
  }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    let bits = grid.bitWidth.rawValue
    let (name, outFeatures, inFeatures) = (linear.name, linear.outFeatures, linear.inFeatures)
    let groups = grid.groupSize.groupCount(inFeatures: inFeatures)
    return [
      TensorPlan(name: "\(name).qweight", dtype: .int32, shape: [inFeatures * bits / 32, outFeatures]),
      TensorPlan(name: "\(name).qzeros", dtype: .int32, shape: [groups, outFeatures * bits / 32]),
      TensorPlan(name: "\(name).scales", dtype: .float16, shape: [groups, outFeatures]),
      TensorPlan(name: "\(name).g_idx", dtype: .int32, shape: [inFeatures]),
    ]
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    let grid = linear.grid
    let bits = grid.format.bitWidth.rawValue
    try writePacked(linear, bits: bits, to: writer)
    let zeroPoints = packedZeroPoints(of: grid, bits: bits)
    try writer.write("\(linear.name).qzeros", littleEndian: zeroPoints)
    let scales = encodeScales(grid.scales, as: .float16, transposed: true)
    try writer.write("\(linear.name).scales", scales)
    let width = grid.columnsPerGroup
    let groupIndices = (0..<linear.inFeatures).map { Int32($0 / width).littleEndian }
    try writer.write("\(linear.name).g_idx", littleEndian: groupIndices)
  }

  /// 32 columns become `bits` rows of words, one word per row of the linear.
  private func writePacked(_ linear: QuantizedLinear, bits: Int, to writer: CheckpointWriter) throws {
    let (rows, columns) = (linear.outFeatures, linear.inFeatures)
    let panelColumns = max(32, codesPerPanel / max(rows, 1) / 32 * 32)
    for first in stride(from: 0, to: columns, by: panelColumns) {
      let panel = first..<min(first + panelColumns, columns)
      var words = [UInt32](repeating: 0, count: panel.count / 32 * bits * rows)
      var output = words.mutableSpan
      for row in 0..<rows {
        let start = row * columns
        let codes = linear.codes.span.extracting((start + panel.lowerBound)..<(start + panel.upperBound))
        pack(codes, bits: bits, into: &output, start: row, stride: rows)
      }
      try writer.write("\(linear.name).qweight", littleEndian: words, at: first / 32 * bits * rows * 4)
    }
  }

  private func packedZeroPoints(of grid: Grid, bits: Int) -> [UInt32] {
    let wordsPerGroup = wordCount(codes: grid.outFeatures, bits: bits)
    var words = [UInt32](repeating: 0, count: grid.groups * wordsPerGroup)
    var output = words.mutableSpan
    for group in 0..<grid.groups {
      let codes = zeroPointCodes(of: grid, group: group, offset: version.zeroPointOffset)
      pack(codes.span, bits: bits, into: &output, start: group * wordsPerGroup)
    }
    return words
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? {
    guard let grid = linears.lazy.compactMap(\.gridFormat).first else { return nil }
    var configuration: [String: JSONValue] = [
      "quant_method": .string("gptq"),
      "bits": .integer(grid.bitWidth.rawValue),
      "group_size": .integer(grid.groupSize.notation),
      "desc_act": .bool(false),
      "sym": .bool(grid.isSymmetric),
      "lm_head": .bool(false),
      "checkpoint_format": .string(version.notation),
      "pack_dtype": .string("int32"),
      "meta": .object(["quantizer": .array([.string("quantease:\(Producer.version)")])]),
    ]
    // A rule that begins with a minus takes modules out.
    let kept = linears.filter { $0.gridFormat == nil && $0.name != "lm_head" }
    let rules =
      (kept.map { ModulePattern.expression(name: $0.name) }
      + towers.map { ModulePattern.expression(tower: $0) }).map { ("-:\($0)", JSONValue.object([:])) }
    if !rules.isEmpty { configuration["dynamic"] = .object(Dictionary(uniqueKeysWithValues: rules)) }
    return .object(configuration)
  }

  public func files(configuration: JSONValue) -> [String: JSONValue] {
    ["quantize_config.json": configuration]
  }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    let isCommon = grid.bitWidth == .four || grid.bitWidth == .eight
    let hasShorterGroups = traits.contains(.shorterLastGroups)
    let vLLM =
      switch (isCommon && grid.isSymmetric, hasShorterGroups) {
      case (true, false): RuntimeSupport(format: name, runtime: "vLLM", loads: true)
      case (true, true):
        RuntimeSupport(
          format: name, runtime: "vLLM", loads: false,
          note: "it refuses a shorter last group: take a group size that divides the columns of all linears")
      case (false, _):
        RuntimeSupport(
          format: name, runtime: "vLLM", loads: false,
          note: "recent versions read GPTQ with 4 or 8 bits, symmetric only")
      }
    // GPTQModel adds 1 to all zero points of a word at once; lest they overflow, it takes asymmetric
    // version 1 files only from itself.
    let isRefused = version == .one && !grid.isSymmetric
    let note =
      isRefused
      ? "GPTQModel reads asymmetric version 1 files only if it wrote them: use gptq-v2"
      : "through gptqmodel"
        + (traits.contains(.experts) ? ", which was not tried with mixtures of experts" : "")
        + (hasShorterGroups ? ", whose torch and Triton kernels take a shorter last group" : "")
    return [vLLM, RuntimeSupport(format: name, runtime: "transformers", loads: !isRefused, note: note)]
  }
}
