import Checkpoint
import Quantization
import SystemIO
import Tensors

/// A quantized checkpoint, read as if it were dense: `<module>.weight` gives Ŵ + Ĥ, a few rows at a
/// time, and every other tensor itself.
public final class PackedCheckpoint: WeightSource {
  public let reader: CheckpointReader
  private let layout: any PackedLayout
  private let outliers: StoredOutliers?
  /// The packed linears by the name of the weight that they stand for.
  private let linears: [String: PackedLinear]

  /// Checks the configuration and the shapes of all packed linears.
  /// - Throws: ``PackedCheckpointError`` if the configuration is not understood or if tensors do not
  ///   agree; what opening the outliers' file throws.
  public init(_ reader: CheckpointReader, symlinks: SymlinkPolicy = .follow) throws {
    let configuration = reader.configuration["quantization_config"] ?? .null
    let layout: any PackedLayout
    switch configuration["quant_method"]?.string {
    case "gptq":
      layout = try GPTQLayout(configuration: configuration, directory: reader.directory)
    case "awq":
      layout = try AWQLayout(configuration: configuration, directory: reader.directory)
    case "compressed-tensors":
      layout = try CompressedTensorsLayout(configuration: configuration, directory: reader.directory)
    case let method:
      throw PackedCheckpointError.unsupported(
        directory: reader.directory, what: "quant_method \(method ?? "missing")")
    }
    let outliers = try StoredOutliers(
      configuration: configuration, directory: reader.directory, symlinks: symlinks)
    var linears: [String: PackedLinear] = [:]
    for tensor in reader.tensorNames where tensor.hasSuffix(layout.codesSuffix) {
      let name = String(tensor.dropLast(layout.codesSuffix.count))
      var linear = try layout.linear(name, in: reader)
      linear.outliers = try outliers?.layout(of: name, outFeatures: linear.outFeatures)
      linears["\(name).weight"] = linear
    }
    self.reader = reader
    self.layout = layout
    self.outliers = outliers
    self.linears = linears
  }

  /// Whether `tensor` is the weight of a packed linear.
  public func isPacked(_ tensor: String) -> Bool { linears[tensor] != nil }

  public func shape(of tensor: String) -> [Int]? {
    linears[tensor].map { [$0.outFeatures, $0.inFeatures] } ?? reader.shape(of: tensor)
  }

  public func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
    guard let linear = linears[tensor] else {
      return try reader.read(tensor, rows: rows, into: panel)
    }
    precondition(rows.lowerBound >= 0 && rows.upperBound <= linear.outFeatures, "rows outside the tensor")
    precondition(panel.rows == rows.count && panel.columns == linear.inFeatures, "the panel does not fit")
    let runs = try groupRuns(linear)
    let unpacked = try layout.unpack(rows, of: linear, in: reader)
    panel.withMutableSpan { panel in
      dequantize(unpacked, runs: runs, groups: linear.groups, columns: linear.inFeatures, into: &panel)
    }
    if let layout = linear.outliers {
      try outliers?.add(layout, of: linear.name, rows: rows, to: panel)
    }
    if let index = panel.firstNonFinite {
      throw CheckpointError.nonFinite(
        tensor: tensor, file: reader.tensors[linear.name + layout.codesSuffix]?.file ?? "",
        index: rows.lowerBound * linear.inFeatures + index,
        value: panel[index / linear.inFeatures, index % linear.inFeatures])
    }
  }

  /// The columns from left to right, in runs of one group each; every group exists.
  private func groupRuns(_ linear: PackedLinear) throws -> [GroupRun] {
    guard let tensor = linear.groupIndexTensor else {
      return (0..<linear.groups).map { group in
        let first = group * linear.columnsPerGroup
        return GroupRun(
          group: group, columns: first..<min(first + linear.columnsPerGroup, linear.inFeatures))
      }
    }
    var runs: [GroupRun] = []
    for (column, group) in try reader.integers(tensor, 0..<linear.inFeatures).enumerated() {
      guard (0..<linear.groups).contains(group) else {
        throw PackedCheckpointError.groupOutOfRange(
          tensor: tensor, column: column, group: group, groups: linear.groups)
      }
      if let last = runs.last, last.group == group {
        runs[runs.count - 1].columns = last.columns.lowerBound..<(column + 1)
      } else {
        runs.append(GroupRun(group: group, columns: column..<(column + 1)))
      }
    }
    return runs
  }
}

/// Neighbouring columns of one group.
private struct GroupRun {
  let group: Int
  var columns: Range<Int>
}

/// W = s · (q − z), `[rows, columns]`, with the scale and zero point of each column's group.
private func dequantize(
  _ rows: UnpackedRows, runs: [GroupRun], groups: Int, columns: Int,
  into panel: inout MutableSpan<Float>
) {
  let codes = rows.codes.span
  for row in 0..<(panel.count / columns) {
    for run in runs {
      let scale = rows.scales[row * groups + run.group]
      let zeroPoint = rows.zeroPoints[row * groups + run.group]
      let first = row * columns
      for index in (first + run.columns.lowerBound)..<(first + run.columns.upperBound) {
        panel[index] = scale * (Float(codes[index]) - zeroPoint)
      }
    }
  }
}

extension PackedCheckpoint {
  /// The checkpoint as one of weights, to be quantized once more.
  public var unpacked: CheckpointReader {
    let suffixes = layout.codesSuffixes
    return CheckpointReader(
      reader,
      unpacking: linears.map { weight, linear in
        let tensors = suffixes.map { linear.name + $0 }.filter { reader.tensors[$0] != nil }
        return (weight, [linear.outFeatures, linear.inFeatures], tensors)
      }, by: self)
  }
}

/// Opens a checkpoint, or a GGUF file, for reading its weights, packed or not.
/// - Returns: The reader of its files, and what gives its weights.
/// - Throws: What ``CheckpointReader`` and ``PackedCheckpoint`` throw.
public func openWeights(
  _ directory: String, symlinks: SymlinkPolicy = .follow
) throws -> (reader: CheckpointReader, weights: any WeightSource) {
  let reader = try CheckpointReader.open(directory, symlinks: symlinks)
  let isPacked = reader.configuration["quantization_config"]?.object != nil && !reader.isScaled
  guard isPacked else { return (reader, reader) }
  return (reader, try PackedCheckpoint(reader, symlinks: symlinks))
}
