import Checkpoint
import Tensors

// Parts of the stored matrices of packed linears, read without taking the whole into memory.

extension CheckpointReader {
  /// 32-bit words of a matrix as they are in the file, row after row.
  func words(_ tensor: String, rows: Range<Int>, columns: Range<Int>) throws -> [UInt32] {
    try elements(tensor, rows: rows, columns: columns, zero: 0)
  }

  /// Floats of a matrix of any float type, row after row.
  func floats(_ tensor: String, rows: Range<Int>, columns: Range<Int>) throws -> [Float] {
    switch tensors[tensor]?.dtype {
    case .float32:
      try elements(tensor, rows: rows, columns: columns, zero: UInt32(0))
        .map { Float(bitPattern: UInt32(littleEndian: $0)) }
    case .float16:
      try elements(tensor, rows: rows, columns: columns, zero: UInt16(0))
        .map { Float(float16Bits: UInt16(littleEndian: $0)) }
    case .bfloat16:
      try elements(tensor, rows: rows, columns: columns, zero: UInt16(0))
        .map { Float(bfloat16Bits: UInt16(littleEndian: $0)) }
    case let dtype?: throw CheckpointError.notAFloat(tensor: tensor, dtype)
    case nil: throw CheckpointError.unknownTensor(tensor)
    }
  }

  /// Elements of a vector of int32 or int64.
  func integers(_ tensor: String, _ range: Range<Int>) throws -> [Int] {
    if tensors[tensor]?.dtype == .int64 {
      return try elements(tensor, rows: 0..<1, columns: range, zero: Int64(0))
        .map { Int(Int64(littleEndian: $0)) }
    }
    return try elements(tensor, rows: 0..<1, columns: range, zero: Int32(0))
      .map { Int(Int32(littleEndian: $0)) }
  }

  /// The elements of a part of a matrix; a vector is one row. `zero` is of the stored width.
  private func elements<Element: FixedWidthInteger & BitwiseCopyable>(
    _ tensor: String, rows: Range<Int>, columns: Range<Int>, zero: Element
  ) throws -> [Element] {
    guard let info = tensors[tensor] else { throw CheckpointError.unknownTensor(tensor) }
    let width = MemoryLayout<Element>.size
    let rowLength = info.matrixDimensions.columns
    precondition(info.dtype.byteWidth == width, "elements of another width")
    precondition(columns.lowerBound >= 0 && columns.upperBound <= rowLength, "columns outside the tensor")
    var elements = [Element](repeating: zero, count: rows.count * columns.count)
    // Whole rows follow one another in the file and come in one piece.
    let isWhole = columns.count == rowLength
    let pieces = isWhole ? 1 : rows.count
    let pieceCount = isWhole ? elements.count : columns.count
    for piece in 0..<pieces where pieceCount > 0 {
      let start = ((rows.lowerBound + piece) * rowLength + columns.lowerBound) * width
      try withBytes(of: tensor, start..<(start + pieceCount * width)) { bytes in
        unsafe elements.withUnsafeMutableBytes { target in
          unsafe bytes.withUnsafeBytes { source in
            let part = unsafe target.dropFirst(piece * pieceCount * width)
            unsafe UnsafeMutableRawBufferPointer(rebasing: part).copyMemory(from: source)
          }
        }
      }
    }
    if isWhole {
      release(tensor, rows.lowerBound * rowLength * width..<rows.upperBound * rowLength * width)
    } else if columns.upperBound == rowLength {
      // Panels go from left to right: with the last one, the pages that all of them share are done.
      release(tensor, 0..<info.byteRange.count)
    }
    return elements
  }
}
