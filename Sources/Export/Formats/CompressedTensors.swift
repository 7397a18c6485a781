import Checkpoint
import Quantization
import Tensors

/// compressed-tensors, "pack-quantized": what vLLM reads as its own.
///
/// | tensor | type | shape |
/// |---|---|---|
/// | `weight_packed` | int32 | [out, ⌈in · bits / 32⌉] |
/// | `weight_scale` | that of the source's weight | [out, groups] |
/// | `weight_shape` | int64 | [2]: out, in |
/// | `weight_zero_point`, asymmetric grids only | int32 | [⌈out · bits / 32⌉, groups], packed downwards |
///
/// The format's numbers are signed; what it packs is the number plus 2^(bits − 1), which is the code.
public struct CompressedTensorsFormat: OutputFormat {
  public let name = OutputFormatName.compressedTensors

  /// The first version whose readers expect codes of 3 bits without padding.
  static let formatVersion = "0.18.0"

  public init() {}

  public func scaleTypes(modelType: DType) -> [DType] { [modelType] }

  public func check(_ linears: [LinearDescription]) throws(ExportError) {
    for linear in linears {
      guard case .columns(let groupSize) = linear.gridFormat?.groupSize else { continue }
      if linear.inFeatures % groupSize != 0 {
        throw .groupSizeDoesNotDivide(
          linear: linear.name, groupSize: groupSize, inFeatures: linear.inFeatures, format: name)
      }
    }
  }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    let bits = grid.bitWidth.rawValue
    let groups = grid.groupSize.groupCount(inFeatures: linear.inFeatures)
    let words = wordCount(codes: linear.inFeatures, bits: bits)
    var plan = [
      TensorPlan(
        name: "\(linear.name).weight_packed", dtype: .int32, shape: [linear.outFeatures, words]),
      TensorPlan(
        name: "\(linear.name).weight_scale", dtype: weight.dtype, shape: [linear.outFeatures, groups]),
      TensorPlan(name: "\(linear.name).weight_shape", dtype: .int64, shape: [2]),
    ]
    if !grid.isSymmetric {
      plan.append(
        TensorPlan(
          name: "\(linear.name).weight_zero_point", dtype: .int32,
          shape: [wordCount(codes: linear.outFeatures, bits: bits), groups]))
    }
    return plan
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    let grid = linear.grid
    let bits = grid.format.bitWidth.rawValue
    try writePacked(linear, bits: bits, to: writer)
    try writer.write("\(linear.name).weight_scale", encodeScales(grid.scales, as: weight.dtype))
    let shape = [Int64(linear.outFeatures).littleEndian, Int64(linear.inFeatures).littleEndian]
    try writer.write("\(linear.name).weight_shape", littleEndian: shape)
    if !grid.format.isSymmetric {
      let zeroPoints = packedZeroPoints(of: grid, bits: bits)
      try writer.write("\(linear.name).weight_zero_point", littleEndian: zeroPoints)
    }
  }

  private func writePacked(_ linear: QuantizedLinear, bits: Int, to writer: CheckpointWriter) throws {
    let columns = linear.inFeatures
    let wordsPerRow = wordCount(codes: columns, bits: bits)
    let panelRows = max(1, codesPerPanel / max(columns, 1))
    for first in stride(from: 0, to: linear.outFeatures, by: panelRows) {
      let rows = first..<min(first + panelRows, linear.outFeatures)
      var words = [UInt32](repeating: 0, count: rows.count * wordsPerRow)
      var output = words.mutableSpan
      for (index, row) in rows.enumerated() {
        let codes = linear.codes.span.extracting((row * columns)..<((row + 1) * columns))
        pack(codes, bits: bits, into: &output, start: index * wordsPerRow)
      }
      try writer.write(
        "\(linear.name).weight_packed", littleEndian: words, at: first * wordsPerRow * 4)
    }
  }

  /// `[⌈out · bits / 32⌉, groups]`: each group's zero points are a stream of their own, downwards.
  private func packedZeroPoints(of grid: Grid, bits: Int) -> [UInt32] {
    var words = [UInt32](
      repeating: 0, count: wordCount(codes: grid.outFeatures, bits: bits) * grid.groups)
    var output = words.mutableSpan
    for group in 0..<grid.groups {
      let codes = zeroPointCodes(of: grid, group: group, offset: 0)
      pack(codes.span, bits: bits, into: &output, start: group, stride: grid.groups)
    }
    return words
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? {
    var grids: [(format: GridFormat, linears: [String])] = []
    for linear in linears {
      guard let grid = linear.gridFormat else { continue }
      if let index = grids.firstIndex(where: { $0.format.hasSameLayout(as: grid) }) {
        grids[index].linears.append(linear.name)
      } else {
        grids.append((grid, [linear.name]))
      }
    }
    var groups: [String: JSONValue] = [:]
    for (index, grid) in grids.enumerated() {
      let targets = grids.count == 1 ? ["Linear"] : grid.linears.map { ModulePattern.matching($0) }
      groups["group_\(index)"] = .object([
        "targets": .array(targets.map { .string($0) }),
        "weights": weights(grid.format),
        "input_activations": .null,
        "output_activations": .null,
      ])
    }
    let ignored =
      linears.filter { $0.gridFormat == nil && $0.name != "lm_head" }.map { ModulePattern.matching($0.name) }
      + towers.map { ModulePattern.matching(tower: $0) }
    return .object([
      "quant_method": .string("compressed-tensors"),
      "format": .string("pack-quantized"),
      "quantization_status": .string("compressed"),
      "version": .string(Self.formatVersion),
      "ignore": .array((["lm_head"] + ignored).map { .string($0) }),
      "config_groups": .object(groups),
    ])
  }

  private func weights(_ grid: GridFormat) -> JSONValue {
    var weights: [String: JSONValue] = [
      "num_bits": .integer(grid.bitWidth.rawValue),
      "type": .string("int"),
      "symmetric": .bool(grid.isSymmetric),
      "dynamic": .bool(false),
    ]
    switch grid.groupSize {
    case .channel:
      weights["strategy"] = .string("channel")
    case .columns(let count):
      weights["strategy"] = .string("group")
      weights["group_size"] = .integer(count)
    }
    return .object(weights)
  }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    let isCommon = grid.bitWidth == .four || grid.bitWidth == .eight
    if traits.contains(.experts) && !grid.isSymmetric {
      return ["vLLM", "transformers"].map {
        RuntimeSupport(
          format: name, runtime: $0, loads: false, note: "mixtures of experts only with symmetric grids")
      }
    }
    let vLLM =
      switch (isCommon, grid.isSymmetric) {
      case (true, _): RuntimeSupport(format: name, runtime: "vLLM", loads: true)
      case (false, _) where grid.bitWidth.rawValue > 4:
        RuntimeSupport(
          format: name, runtime: "vLLM", loads: false, note: "it is not known to read 5 or 6 bits")
      case (false, true):
        RuntimeSupport(
          format: name, runtime: "vLLM", loads: true, note: "on GPUs of compute capability 7.5 and above")
      case (false, false):
        RuntimeSupport(
          format: name, runtime: "vLLM", loads: false,
          note: "2 and 3 bits only with symmetric grids")
      }
    if traits.contains(.severalGrids) && !grid.isSymmetric {
      let support = RuntimeSupport(
        format: name, runtime: "transformers", loads: false,
        note: "asymmetric grids with dequantize=True alone, which takes all linears for alike")
      return [vLLM, support]
    }
    var notes = isCommon ? [] : ["with compressed-tensors 0.18 or newer"]
    if traits.contains(.severalGrids) {
      notes.append("not with dequantize=True, which takes all linears for alike")
    } else if !grid.isSymmetric {
      notes.append("transformers 5.23 needs CompressedTensorsConfig(dequantize=True)")
    }
    if traits.contains(.transposedLinears) {
      let support = RuntimeSupport(
        format: name, runtime: "transformers", loads: false,
        note: "the model's linears are Conv1D there, which compressed-tensors does not know: use dense")
      return [vLLM, support]
    }
    return [
      vLLM,
      RuntimeSupport(format: name, runtime: "transformers", loads: true, note: notes.joined(separator: "; ")),
    ]
  }
}
