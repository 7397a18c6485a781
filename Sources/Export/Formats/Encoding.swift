import Checkpoint
import Quantization
import SystemIO
import Tensors

/// Codes that a format packs before it hands them to the writer: memory stays small, writes large.
let codesPerPanel = 1 << 22

extension GridFormat {
  /// Whether linears of both formats can stand under one setting of a file.
  func hasSameLayout(as other: GridFormat) -> Bool {
    bitWidth == other.bitWidth && groupSize == other.groupSize && isSymmetric == other.isSymmetric
      && coding == other.coding
  }
}

extension LinearDescription {
  /// Whether the last group of a row has fewer columns than its group size says.
  var hasShorterLastGroup: Bool {
    guard case .columns(let count) = gridFormat?.groupSize else { return false }
    return !inFeatures.isMultiple(of: count)
  }

  /// Refuses what does not fill the words of a format that packs both ways.
  func requireMultiplesOf32(for format: OutputFormatName) throws(ExportError) {
    guard outFeatures.isMultiple(of: 32), inFeatures.isMultiple(of: 32) else {
      throw .featuresNotMultipleOf32(
        linear: name, outFeatures: outFeatures, inFeatures: inFeatures, format: format)
    }
  }
}

extension [LinearDescription] {
  /// Refuses quantized linears that differ where a format has one setting for all.
  func requireOneLayout(for format: OutputFormatName) throws(ExportError) {
    guard let first, let grid = first.gridFormat else { return }
    if let other = self.first(where: { !($0.gridFormat ?? grid).hasSameLayout(as: grid) }) {
      throw .mixedGrids(linear: first.name, other: other.name, format: format)
    }
  }
}

/// The little-endian bytes of `values` in `type`, one of the float types of checkpoints.
func encode(_ values: Span<Float>, as type: DType) -> [UInt8] {
  precondition(type.isSupportedFloat, "weights are stored as F32, F16 or BF16")
  var bytes = [UInt8](repeating: 0, count: values.count * type.byteWidth)
  var output = bytes.mutableSpan
  // Which type it is is asked once, and not of every element.
  if type == .float32 {
    for index in values.indices {
      let bits = values[index].bitPattern
      for byte in 0..<4 { output[index * 4 + byte] = UInt8(truncatingIfNeeded: bits >> (8 * byte)) }
    }
    return bytes
  }
  let isHalf = type == .float16
  for index in values.indices {
    let bits = isHalf ? values[index].float16Bits : values[index].bfloat16Bits
    output[index * 2] = UInt8(truncatingIfNeeded: bits)
    output[index * 2 + 1] = UInt8(truncatingIfNeeded: bits >> 8)
  }
  return bytes
}

/// ``encode(_:as:)`` for values that were not rounded to `type` before.
/// - Throws: ``ExportError/valueOutOfRange(tensor:index:type:)`` if one is finite no more.
func encodeChecked(
  _ values: Span<Float>, as type: DType, tensor: String
) throws(ExportError) -> [UInt8] {
  for index in values.indices where !values[index].rounded(to: type).isFinite {
    throw .valueOutOfRange(tensor: tensor, index: index, type: type)
  }
  return encode(values, as: type)
}

extension CheckpointWriter {
  /// Writes rows of a tensor into the one that the source has it in.
  /// - Parameter rows: `[count, columns]`, which the tensor's type can hold
  func write(_ rows: Matrix, firstRow: Int, of tensor: TensorInfo) throws(FileError) {
    let width = tensor.dtype.byteWidth
    guard let part = tensor.part else {
      return try write(
        tensor.name, rows.withSpan { encode($0, as: tensor.dtype) }, at: firstRow * rows.columns * width)
    }
    if part.columnStride == 1 && (part.rowStride == rows.columns || rows.rows == 1) {
      let bytes = rows.withSpan { encode($0, as: tensor.dtype) }
      return try write(part.whole, bytes, at: part.place(row: firstRow, column: 0) * width)
    }
    // A row of its own is spread over its columns, a matrix column by column.
    let isRow = rows.rows == 1
    let lines = isRow ? 1 : rows.columns
    for line in 0..<lines {
      let values = isRow ? rows.elements : (0..<rows.rows).map { rows[$0, line] }
      let bytes = encode(values.span, as: tensor.dtype)
      try scatter(
        part.whole, bytes, width: width, stride: isRow ? part.columnStride : part.rowStride,
        at: part.place(row: firstRow, column: line) * width)
    }
  }
}

/// The bytes of a grid's scales, `[outFeatures, groups]`, as they stand or transposed.
func encodeScales(_ scales: Matrix, as type: DType, transposed: Bool = false) -> [UInt8] {
  for row in 0..<scales.rows {
    for group in 0..<scales.columns {
      let scale = scales[row, group]
      precondition(
        scale.isFinite && scale.rounded(to: type) == scale,
        "a scale that was not rounded to the type in which the output keeps it")
    }
  }
  return (transposed ? scales.transposed() : scales).withSpan { encode($0, as: type) }
}

extension Matrix {
  fileprivate func transposed() -> Matrix {
    let result = Matrix(rows: columns, columns: rows)
    for row in 0..<rows {
      for column in 0..<columns { result[column, row] = self[row, column] }
    }
    return result
  }
}

/// The zero points of one group, row after row, less `offset`.
func zeroPointCodes(of grid: Grid, group: Int, offset: Int) -> [UInt8] {
  (0..<grid.outFeatures).map { row in
    let stored = Int(grid.zeroPoint(row, group)) - offset
    precondition(
      (0...grid.format.maximumCode).contains(stored), "a zero point that the format cannot store")
    return UInt8(stored)
  }
}

extension CheckpointWriter {
  /// Writes integers, which are in little-endian order already.
  func write<Element: FixedWidthInteger & BitwiseCopyable>(
    _ tensor: String, littleEndian elements: [Element], at offset: Int = 0
  ) throws(FileError) {
    // Safe: an integer has no padding.
    try write(tensor, unsafe elements.span.bytes, at: offset)
  }
}
