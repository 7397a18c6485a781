import Checkpoint
import Quantization
import Tensors

/// Reads what ``AWQFormat`` describes, whoever wrote it.
struct AWQLayout: PackedLayout {
  let codesSuffix = ".qweight"
  let codesSuffixes = [".qweight", ".qzeros", ".scales"]
  private let columnsPerGroup: Int?

  init(configuration: JSONValue, directory: String) throws(PackedCheckpointError) {
    func unsupported(_ what: String) -> PackedCheckpointError {
      .unsupported(directory: directory, what: what)
    }
    let bits = configuration["bits"] ?? configuration["w_bit"]
    guard bits?.int == 4 else { throw unsupported("awq with bits \(bits?.compactText ?? "missing")") }
    let version = configuration["version"]?.string ?? "gemm"
    guard version.lowercased() == "gemm" else { throw unsupported("awq version \(version)") }
    guard configuration["zero_point"]?.bool ?? true else { throw unsupported("awq without zero points") }
    let size = configuration["group_size"] ?? configuration["q_group_size"]
    guard let groupSize = GroupSize(size?.int ?? 128) else {
      throw unsupported("group_size \(size?.compactText ?? "missing")")
    }
    if case .columns(let count) = groupSize { columnsPerGroup = count } else { columnsPerGroup = nil }
  }

  func linear(_ name: String, in reader: CheckpointReader) throws -> PackedLinear {
    let (inFeatures, words) = try reader.matrixShape("\(name).qweight", [.int32])
    // A tensor of the file: its extents are far from any overflow.
    let outFeatures = words * 8
    let groups = (inFeatures - 1) / (columnsPerGroup ?? inFeatures) + 1
    try reader.require("\(name).scales", .scales, shape: [groups, outFeatures])
    try reader.require("\(name).qzeros", [.int32], shape: [groups, words])
    return PackedLinear(
      name: name, outFeatures: outFeatures, inFeatures: inFeatures, bitWidth: .four, isSymmetric: false,
      groups: groups, columnsPerGroup: columnsPerGroup ?? inFeatures, groupIndexTensor: nil)
  }

  func unpack(
    _ rows: Range<Int>, of linear: PackedLinear, in reader: CheckpointReader
  ) throws -> UnpackedRows {
    // Eight rows share a word; the first row may stand anywhere in one.
    let words = rows.lowerBound / 8..<(rows.upperBound + 7) / 8
    func codes(_ tensor: String, lines: Int) throws -> [UInt8] {
      let packed = try reader.words(tensor, rows: 0..<lines, columns: words)
      var codes = [UInt8](repeating: 0, count: rows.count * lines)
      for line in 0..<lines {
        for word in 0..<words.count {
          let bits = UInt32(littleEndian: packed[line * words.count + word])
          for (place, row) in AWQFormat.order.enumerated() {
            let index = (words.lowerBound + word) * 8 + row - rows.lowerBound
            guard rows.indices.contains(index + rows.lowerBound) else { continue }
            codes[index * lines + line] = UInt8(truncatingIfNeeded: bits >> UInt32(4 * place) & 15)
          }
        }
      }
      return codes
    }
    let groups = linear.groups
    let scales = try reader.floats("\(linear.name).scales", rows: 0..<groups, columns: rows)
    let zeroPoints = try codes("\(linear.name).qzeros", lines: groups)
    return UnpackedRows(
      codes: try codes("\(linear.name).qweight", lines: linear.inFeatures),
      scales: (0..<rows.count).flatMap { row in (0..<groups).map { scales[$0 * rows.count + row] } },
      zeroPoints: zeroPoints.map(Float.init))
  }
}
