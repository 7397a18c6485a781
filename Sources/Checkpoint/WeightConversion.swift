import Tensors

/// Converts weights, or what else has elements of their types, to fp32.
///
/// - Parameters:
///   - bytes: Elements of type `dtype`, a float type of checkpoints or their scales; at any alignment.
///   - panel: As many elements as `bytes` holds.
/// - Returns: Whether every element is finite.
public func convertWeights(_ bytes: RawSpan, _ dtype: DType, into panel: inout MutableSpan<Float>) -> Bool {
  precondition(bytes.byteCount == panel.count * dtype.byteWidth, "the bytes do not fill the panel")
  return unsafe panel.withUnsafeMutableBufferPointer { panel in
    unsafe bytes.withUnsafeBytes { bytes in
      guard let source = bytes.baseAddress, let destination = panel.baseAddress else { return true }
      return switch dtype {
      case .float32:
        unsafe convert(source, UInt32.self, into: destination, panel.count) { Float(bitPattern: $0) }
      case .bfloat16:
        unsafe convert(source, UInt16.self, into: destination, panel.count) { Float(bfloat16Bits: $0) }
      case .float16:
        unsafe convert(source, UInt16.self, into: destination, panel.count) { Float(float16Bits: $0) }
      case .float8E8M0:
        // Of scales: the exponent of a power of two, and one NaN. 2⁻¹²⁷ has no normal float.
        unsafe convert(source, UInt8.self, into: destination, panel.count) {
          $0 == 255 ? .nan : $0 == 0 ? 0x1p-127 : Float(bitPattern: UInt32($0) << 23)
        }
      default:
        preconditionFailure("weights are F32, F16 or BF16")
      }
    }
  }
}

/// Converts rows of weights that stand among others.
/// - Parameters:
///   - bytes: from the part's first one on
///   - panel: `[rows.count, columns]`
/// - Returns: Whether every element is finite.
func convertScattered(
  _ bytes: RawSpan, _ dtype: DType, _ part: TensorPart, rows: Range<Int>, into panel: Matrix
) -> Bool {
  guard !rows.isEmpty else { return true }
  let columns = panel.columns
  // What a column's elements stand among.
  let width = (rows.count - 1) * part.rowStride + 1
  let line = Matrix(rows: 1, columns: width)
  var isFinite = true
  for column in 0..<columns {
    let start = (part.place(row: rows.lowerBound, column: column) - part.start) * dtype.byteWidth
    let stored = bytes.extracting(start..<start + width * dtype.byteWidth)
    // Those between them count, too: whether they are finite is asked again of the panel alone.
    isFinite = line.withMutableSpan { convertWeights(stored, dtype, into: &$0) } && isFinite
    panel.withMutableSpan { panel in
      line.withSpan { line in
        for row in 0..<rows.count { panel[row * columns + column] = line[row * part.rowStride] }
      }
    }
  }
  return isFinite
}

/// The loop for one type: written so that the compiler vectorises it, finiteness included. An exponent
/// of all ones, and no other, carries into the sign's place when its lowest bit is added.
@inline(__always)
private func convert<Bits: FixedWidthInteger>(
  _ source: UnsafeRawPointer, _: Bits.Type, into destination: UnsafeMutablePointer<Float>,
  _ count: Int, _ value: (Bits) -> Float
) -> Bool {
  var carries: UInt32 = 0
  for index in 0..<count {
    let offset = index &* MemoryLayout<Bits>.size
    let element = value(unsafe source.loadUnaligned(fromByteOffset: offset, as: Bits.self))
    carries |= (element.bitPattern & 0x7F80_0000) &+ 0x0080_0000
    unsafe destination[index] = element
  }
  return carries & 0x8000_0000 == 0
}
