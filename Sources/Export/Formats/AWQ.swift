import Checkpoint
import Quantization
import Tensors

/// The format of AutoAWQ, version GEMM: 4 bits, an explicit zero point for every group.
///
/// | tensor | type | shape |
/// |---|---|---|
/// | `qweight` | int32 | [in, out / 8] |
/// | `qzeros` | int32 | [groups, out / 8] |
/// | `scales` | fp16 | [groups, out] |
///
/// A word has eight rows of the linear, which are neighbours, in the order 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits up.
public struct AWQFormat: OutputFormat {
  public let name = OutputFormatName.awq

  /// The row of eight at every four bits of a word.
  static let order = [0, 2, 4, 6, 1, 3, 5, 7]

  public init() {}

  public func scaleTypes(modelType: DType) -> [DType] { [.float16] }

  public func check(_ linears: [LinearDescription]) throws(ExportError) {
    let quantized = linears.filter { $0.gridFormat != nil }
    for linear in quantized {
      guard let grid = linear.gridFormat else { continue }
      guard grid.bitWidth == .four else {
        throw .bitsNotInFormat(linear: linear.name, bits: grid.bitWidth.rawValue, format: name)
      }
      let columns = grid.groupSize.columns(inFeatures: linear.inFeatures)
      guard linear.inFeatures.isMultiple(of: columns) else {
        throw .groupSizeDoesNotDivide(
          linear: linear.name, groupSize: columns, inFeatures: linear.inFeatures, format: name)
      }
      try linear.requireMultiplesOf32(for: name)
    }
    try quantized.requireOneLayout(for: name)
  }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    let groups = grid.groupSize.groupCount(inFeatures: linear.inFeatures)
    return [
      TensorPlan(
        name: "\(linear.name).qweight", dtype: .int32, shape: [linear.inFeatures, linear.outFeatures / 8]),
      TensorPlan(name: "\(linear.name).qzeros", dtype: .int32, shape: [groups, linear.outFeatures / 8]),
      TensorPlan(name: "\(linear.name).scales", dtype: .float16, shape: [groups, linear.outFeatures]),
    ]
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    let (rows, columns) = (linear.outFeatures, linear.inFeatures)
    let words = rows / 8
    let panelColumns = max(1, codesPerPanel / max(rows, 1))
    for first in stride(from: 0, to: columns, by: panelColumns) {
      let panel = first..<min(first + panelColumns, columns)
      let packed = panel.flatMap { column in
        (0..<words).map { word in
          Self.word { linear.codes[(8 * word + $0) * columns + column] }.littleEndian
        }
      }
      try writer.write("\(linear.name).qweight", littleEndian: packed, at: first * words * 4)
    }
    let zeroPoints = (0..<linear.grid.groups).flatMap { group -> [UInt32] in
      let codes = zeroPointCodes(of: linear.grid, group: group, offset: 0)
      return (0..<words).map { word in Self.word { codes[8 * word + $0] }.littleEndian }
    }
    try writer.write("\(linear.name).qzeros", littleEndian: zeroPoints)
    try writer.write(
      "\(linear.name).scales", encodeScales(linear.grid.scales, as: .float16, transposed: true))
  }

  /// - Parameter code: of one of eight neighbouring rows
  private static func word(_ code: (Int) -> UInt8) -> UInt32 {
    order.enumerated().reduce(0) { $0 | UInt32(code($1.element)) << UInt32(4 * $1.offset) }
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? {
    guard let grid = linears.lazy.compactMap(\.gridFormat).first else { return nil }
    // Readers look whether a module's name has one of these in it.
    let kept = linears.filter { $0.gridFormat == nil && $0.name != "lm_head" }.map(\.name)
    return .object([
      "quant_method": .string("awq"),
      "version": .string("gemm"),
      "bits": .integer(4),
      "group_size": .integer(grid.groupSize.notation),
      "zero_point": .bool(true),
      "modules_to_not_convert": .array((["lm_head"] + kept + towers).map { .string($0) }),
    ])
  }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    let isCommon = [32, 64, 128].contains(grid.groupSize.notation)
    return [
      RuntimeSupport(
        format: name, runtime: "vLLM", loads: isCommon,
        note: isCommon
          ? "" : "it reads AWQ in groups of 32, 64 or 128: take the largest that divides the columns"),
      RuntimeSupport(format: name, runtime: "transformers", loads: true, note: "through gptqmodel"),
    ]
  }
}
