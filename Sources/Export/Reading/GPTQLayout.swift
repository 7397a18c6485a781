import Checkpoint
import Quantization
import Tensors

/// Reads what ``GPTQFormat`` describes, whoever wrote it: `g_idx` may put any column into any group.
struct GPTQLayout: PackedLayout {
  let codesSuffix = ".qweight"
  let codesSuffixes = [".qweight", ".qzeros", ".scales", ".g_idx"]
  private let bitWidth: BitWidth
  private let columnsPerGroup: Int?
  private let isSymmetric: Bool
  private let version: GPTQFormat.Version

  init(configuration: JSONValue, directory: String) throws(PackedCheckpointError) {
    func unsupported(_ what: String) -> PackedCheckpointError {
      .unsupported(directory: directory, what: what)
    }
    guard let bits = configuration["bits"]?.int, let bitWidth = BitWidth(rawValue: bits),
      GPTQFormat.bitWidths.contains(bitWidth)
    else {
      throw unsupported("bits \(configuration["bits"]?.compactText ?? "missing")")
    }
    guard let groupSize = GroupSize(configuration["group_size"]?.int ?? -1) else {
      throw unsupported("group_size \(configuration["group_size"]?.compactText ?? "missing")")
    }
    let packType = configuration["pack_dtype"]?.string ?? "int32"
    guard packType == "int32" else { throw unsupported("pack_dtype \(packType)") }
    // A rule that begins with a minus takes modules out, which then have plain weights.
    if let dynamic = configuration["dynamic"]?.object, !dynamic.keys.allSatisfy({ $0.hasPrefix("-:") }) {
      throw unsupported("settings for single modules (dynamic)")
    }
    // Newer versions of GPTQModel call it `format`; before there was a second one, none said which.
    let notation =
      configuration["checkpoint_format"]?.string ?? configuration["format"]?.string ?? "gptq"
    switch notation {
    case GPTQFormat.Version.one.notation: version = .one
    case GPTQFormat.Version.two.notation: version = .two
    default: throw unsupported("checkpoint_format \(notation)")
    }
    self.bitWidth = bitWidth
    if case .columns(let count) = groupSize { columnsPerGroup = count } else { columnsPerGroup = nil }
    isSymmetric = configuration["sym"]?.bool ?? true
  }

  func linear(_ name: String, in reader: CheckpointReader) throws -> PackedLinear {
    let bits = bitWidth.rawValue
    let (packedRows, outFeatures) = try reader.matrixShape("\(name).qweight", [.int32])
    guard packedRows % bits == 0, outFeatures % 32 == 0 else {
      let found = [packedRows, outFeatures]
      throw PackedCheckpointError.unexpectedTensor(
        "\(name).qweight", found: found, .int32,
        expected: [(packedRows + bits - 1) / bits * bits, (outFeatures + 31) / 32 * 32], [.int32])
    }
    // A tensor of the file: its extents are far from any overflow.
    let inFeatures = packedRows / bits * 32
    let (groups, _) = try reader.matrixShape("\(name).scales", .scales)
    try reader.require("\(name).scales", .scales, shape: [groups, outFeatures])
    try reader.require("\(name).qzeros", [.int32], shape: [groups, outFeatures / 32 * bits])
    let groupIndex = "\(name).g_idx"
    let hasGroupIndex = reader.tensors[groupIndex] != nil
    if hasGroupIndex {
      try reader.require(groupIndex, [.int32, .int64], shape: [inFeatures])
    } else {
      let expected = (inFeatures - 1) / (columnsPerGroup ?? inFeatures) + 1
      try reader.require("\(name).scales", .scales, shape: [expected, outFeatures])
    }
    return PackedLinear(
      name: name, outFeatures: outFeatures, inFeatures: inFeatures, bitWidth: bitWidth,
      isSymmetric: isSymmetric, groups: groups, columnsPerGroup: columnsPerGroup ?? inFeatures,
      groupIndexTensor: hasGroupIndex ? groupIndex : nil)
  }

  func unpack(
    _ rows: Range<Int>, of linear: PackedLinear, in reader: CheckpointReader
  ) throws -> UnpackedRows {
    let (bits, groups) = (linear.bits, linear.groups)
    let packed = try reader.words(
      "\(linear.name).qweight", rows: 0..<(linear.inFeatures / 32 * bits), columns: rows)
    var codes = [UInt8](repeating: 0, count: rows.count * linear.inFeatures)
    var output = codes.mutableSpan
    for row in rows.indices {
      let index = row - rows.lowerBound
      Export.unpack(
        packed.span, bits: bits, start: index, stride: rows.count, count: linear.inFeatures,
        into: &output, at: index * linear.inFeatures)
    }

    let scales = try reader.floats("\(linear.name).scales", rows: 0..<groups, columns: rows)
    // 32 rows share `bits` words; the first row may stand anywhere among them.
    let blocks = (rows.lowerBound / 32)..<((rows.upperBound + 31) / 32)
    let wordsPerGroup = blocks.count * bits
    let packedZeroPoints = try reader.words(
      "\(linear.name).qzeros", rows: 0..<groups,
      columns: blocks.lowerBound * bits..<blocks.upperBound * bits)
    var zeroPoints = [UInt8](repeating: 0, count: groups * blocks.count * 32)
    var zeroPointOutput = zeroPoints.mutableSpan
    for group in 0..<groups {
      Export.unpack(
        packedZeroPoints.span, bits: bits, start: group * wordsPerGroup, count: blocks.count * 32,
        into: &zeroPointOutput, at: group * blocks.count * 32)
    }

    var result = UnpackedRows(codes: codes, scales: [], zeroPoints: [])
    let first = rows.lowerBound - blocks.lowerBound * 32
    for row in 0..<rows.count {
      for group in 0..<groups {
        let stored = zeroPoints[group * blocks.count * 32 + first + row]
        result.scales.append(scales[group * rows.count + row])
        result.zeroPoints.append(Float(Int(stored) + version.zeroPointOffset))
      }
    }
    return result
  }
}
