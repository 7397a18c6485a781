import Checkpoint
import Quantization
import Tensors

/// Reads what ``CompressedTensorsFormat`` describes, with `weight_g_idx` where columns were sorted.
struct CompressedTensorsLayout: PackedLayout {
  let codesSuffix = ".weight_packed"
  let codesSuffixes = [
    ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
  ]

  private struct Scheme: Sendable {
    let targets: ModuleTargets
    let bitWidth: BitWidth
    let isSymmetric: Bool
    let groupSize: GroupSize
  }

  private let schemes: [Scheme]

  init(configuration: JSONValue, directory: String) throws(PackedCheckpointError) {
    func unsupported(_ what: String) -> PackedCheckpointError {
      .unsupported(directory: directory, what: what)
    }
    let format = configuration["format"]?.string ?? "missing"
    guard format == "pack-quantized" else { throw unsupported("format \(format)") }
    guard let groups = configuration["config_groups"]?.object, !groups.isEmpty else {
      throw unsupported("no config_groups")
    }
    var schemes: [Scheme] = []
    for (name, group) in groups.sorted(by: { $0.key < $1.key }) {
      guard group["input_activations"].map(\.isNull) ?? true else {
        throw unsupported("quantized activations (\(name))")
      }
      guard let weights = group["weights"], let targets = group["targets"]?.array else {
        throw unsupported("a group without weights or targets (\(name))")
      }
      guard weights["type"]?.string ?? "int" == "int", let bits = weights["num_bits"]?.int,
        let bitWidth = BitWidth(rawValue: bits)
      else { throw unsupported("weights \(weights.compactText) (\(name))") }
      let groupSize: GroupSize?
      switch weights["strategy"]?.string {
      case "channel": groupSize = .channel
      case "group": groupSize = weights["group_size"]?.int.flatMap { GroupSize($0) }
      case nil: groupSize = GroupSize(weights["group_size"]?.int ?? -1)
      default: groupSize = nil
      }
      guard let groupSize else { throw unsupported("weights \(weights.compactText) (\(name))") }
      schemes.append(
        Scheme(
          targets: ModuleTargets(targets.compactMap(\.string)), bitWidth: bitWidth,
          isSymmetric: weights["symmetric"]?.bool ?? true, groupSize: groupSize))
    }
    self.schemes = schemes
  }

  /// The scheme whose target fits best; the first one among equals.
  private func scheme(for linear: String) -> Scheme? {
    let ranked = schemes.compactMap { scheme in
      scheme.targets.rank(of: linear).map { (scheme, $0) }
    }
    // One group alone can be meant for every packed linear, by whatever class its targets name.
    return ranked.min { $0.1 < $1.1 }?.0 ?? (schemes.count == 1 ? schemes.first : nil)
  }

  func linear(_ name: String, in reader: CheckpointReader) throws -> PackedLinear {
    guard let scheme = scheme(for: name) else { throw PackedCheckpointError.noScheme(linear: name) }
    let bits = scheme.bitWidth.rawValue
    let (outFeatures, words) = try reader.matrixShape("\(name).weight_packed", [.int32])
    try reader.require("\(name).weight_shape", [.int64, .int32], shape: [2])
    let shape = try reader.integers("\(name).weight_shape", 0..<2)
    // Compared before it is used: the numbers come from the file.
    guard shape[0] == outFeatures, shape[1] > 0, shape[1] <= words * 32,
      wordCount(codes: shape[1], bits: bits) == words
    else {
      let expected = shape[1].multipliedReportingOverflow(by: bits)
      throw PackedCheckpointError.unexpectedTensor(
        "\(name).weight_packed", found: [outFeatures, words], .int32,
        expected: [shape[0], expected.overflow ? Int.max : expected.partialValue / 32], [.int32])
    }
    let inFeatures = shape[1]
    let groups = scheme.groupSize.groupCount(inFeatures: inFeatures)
    try reader.require("\(name).weight_scale", .scales, shape: [outFeatures, groups])
    if !scheme.isSymmetric {
      try reader.require(
        "\(name).weight_zero_point", [.int32],
        shape: [wordCount(codes: outFeatures, bits: bits), groups])
    }
    let groupIndex = "\(name).weight_g_idx"
    let hasGroupIndex = reader.tensors[groupIndex] != nil
    if hasGroupIndex { try reader.require(groupIndex, [.int32, .int64], shape: [inFeatures]) }
    return PackedLinear(
      name: name, outFeatures: outFeatures, inFeatures: inFeatures, bitWidth: scheme.bitWidth,
      isSymmetric: scheme.isSymmetric, groups: groups,
      columnsPerGroup: scheme.groupSize.columns(inFeatures: inFeatures),
      groupIndexTensor: hasGroupIndex ? groupIndex : nil)
  }

  func unpack(
    _ rows: Range<Int>, of linear: PackedLinear, in reader: CheckpointReader
  ) throws -> UnpackedRows {
    let (bits, groups) = (linear.bits, linear.groups)
    let wordsPerRow = wordCount(codes: linear.inFeatures, bits: bits)
    let packed = try reader.words("\(linear.name).weight_packed", rows: rows, columns: 0..<wordsPerRow)
    var codes = [UInt8](repeating: 0, count: rows.count * linear.inFeatures)
    var output = codes.mutableSpan
    for index in 0..<rows.count {
      Export.unpack(
        packed.span, bits: bits, start: index * wordsPerRow, count: linear.inFeatures,
        into: &output, at: index * linear.inFeatures)
    }
    return UnpackedRows(
      codes: codes,
      scales: try reader.floats("\(linear.name).weight_scale", rows: rows, columns: 0..<groups),
      zeroPoints: try zeroPoints(rows, of: linear, in: reader))
  }

  /// `[rows, groups]`; the middle code throughout for a symmetric grid.
  private func zeroPoints(
    _ rows: Range<Int>, of linear: PackedLinear, in reader: CheckpointReader
  ) throws -> [Float] {
    let (bits, groups) = (linear.bits, linear.groups)
    guard !linear.isSymmetric else {
      return Array(repeating: Float(1 << (bits - 1)), count: rows.count * groups)
    }
    // 32 rows share `bits` words; the first row may stand anywhere among them, the last block of all
    // may be shorter.
    let firstBlock = rows.lowerBound / 32
    let last = wordCount(codes: rows.upperBound, bits: bits)
    let packed = try reader.words(
      "\(linear.name).weight_zero_point", rows: firstBlock * bits..<last, columns: 0..<groups)
    let count = rows.upperBound - firstBlock * 32
    let first = rows.lowerBound - firstBlock * 32
    var codes = [UInt8](repeating: 0, count: count)
    var zeroPoints = [Float](repeating: 0, count: rows.count * groups)
    for group in 0..<groups {
      var output = codes.mutableSpan
      Export.unpack(packed.span, bits: bits, start: group, stride: groups, count: count, into: &output)
      for row in 0..<rows.count { zeroPoints[row * groups + group] = Float(codes[first + row]) }
    }
    return zeroPoints
  }
}
