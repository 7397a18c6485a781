import Tensors

extension Matrix {
  /// Writes codes, whole numbers from 0 to 255, to their place among a linear's.
  func store(in codes: inout [UInt8], firstRow: Int) {
    let place = firstRow * columns..<firstRow * columns + count
    precondition(place.lowerBound >= 0 && place.upperBound <= codes.count, "rows outside the linear")
    withSpan { span in
      unsafe codes.withUnsafeMutableBufferPointer { codes in
        for index in 0..<span.count {
          // The last bits of 2²³ + n are n: a conversion that the compiler vectorises, as it has nothing to trap.
          let bits = unsafe (span[unchecked: index] + 0x1p23).bitPattern
          unsafe codes[place.lowerBound + index] = UInt8(truncatingIfNeeded: bits)
        }
      }
    }
  }

  /// Reads codes from their place among a linear's.
  func load(from codes: [UInt8], firstRow: Int) {
    let place = firstRow * columns..<firstRow * columns + count
    precondition(place.lowerBound >= 0 && place.upperBound <= codes.count, "rows outside the linear")
    withMutableSpan { span in
      unsafe codes.withUnsafeBufferPointer { codes in
        for index in 0..<span.count {
          unsafe span[unchecked: index] = Float(codes[place.lowerBound + index])
        }
      }
    }
  }
}
