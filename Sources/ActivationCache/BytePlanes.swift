import Tensors

// Elements of n bytes are stored as n planes: the lowest bytes of all elements, then the next ones. The
// high bytes, sign and exponent, are much alike and compress well; the low bytes are noise.
//
// These loops know no errors and branch on nothing but their length, so that they vectorise.

/// Rounds `count` floats to `elementType` and writes plane p from `planes[p · stride]` on.
///
/// - Returns: Whether every value is finite and stays finite in `elementType`. Otherwise the planes hold
///   rubbish; ``firstUnrepresentable(_:count:elementType:)`` finds the culprit.
@unsafe func splitIntoPlanes(
  _ source: UnsafePointer<Float>, count: Int, elementType: DType,
  planes: UnsafeMutablePointer<UInt8>, stride: Int
) -> Bool {
  switch elementType {
  case .bfloat16:
    unsafe split16(source, count, planes, planes + stride, elementType.firstMagnitudeBeyondRange) {
      // Finite values only, so that there is no NaN to guard: compare `Float.bfloat16Bits`.
      UInt16(truncatingIfNeeded: ($0 &+ 0x7FFF &+ (($0 >> 16) & 1)) >> 16)
    }
  case .float16:
    unsafe split16(source, count, planes, planes + stride, elementType.firstMagnitudeBeyondRange) {
      Float(bitPattern: $0).float16Bits
    }
  default:
    unsafe split32(source, count, planes, stride)
  }
}

/// Rounds `count` floats, all of them finite in `elementType`, to it.
@unsafe func round(_ values: UnsafeMutablePointer<Float>, count: Int, to elementType: DType) {
  switch elementType {
  case .bfloat16:
    for index in 0..<count {
      let bits = unsafe values[index].bitPattern
      unsafe values[index] = Float(bitPattern: (bits &+ 0x7FFF &+ ((bits >> 16) & 1)) & 0xFFFF_0000)
    }
  case .float16:
    for index in 0..<count { unsafe values[index] = Float(float16Bits: values[index].float16Bits) }
  default: break
  }
}

/// The inverse of `splitIntoPlanes`; the planes may lie anywhere.
@unsafe func mergePlanes(
  _ planes: [UnsafePointer<UInt8>], count: Int, elementType: DType,
  into target: UnsafeMutablePointer<Float>
) {
  switch elementType {
  case .bfloat16:
    let (low, high) = unsafe (planes[0], planes[1])
    for index in 0..<count {
      let bits = unsafe UInt32(high[index]) << 24 | UInt32(low[index]) << 16
      unsafe target[index] = Float(bitPattern: bits)
    }
  case .float16:
    let (low, high) = unsafe (planes[0], planes[1])
    for index in 0..<count {
      let bits = unsafe UInt16(high[index]) << 8 | UInt16(low[index])
      unsafe target[index] = Float(float16Bits: bits)
    }
  default:
    let (plane0, plane1, plane2, plane3) = unsafe (planes[0], planes[1], planes[2], planes[3])
    for index in 0..<count {
      let low = unsafe UInt32(plane1[index]) << 8 | UInt32(plane0[index])
      let high = unsafe UInt32(plane3[index]) << 8 | UInt32(plane2[index])
      unsafe target[index] = Float(bitPattern: high << 16 | low)
    }
  }
}

/// The index of the first value that is not finite, or not after rounding to `elementType`.
@unsafe func firstUnrepresentable(
  _ source: UnsafePointer<Float>, count: Int, elementType: DType
) -> Int? {
  let limit = elementType.firstMagnitudeBeyondRange
  return (0..<count).first { unsafe source[$0].magnitude.bitPattern >= limit }
}

extension DType {
  /// The bit pattern of the smallest positive fp32 value, infinity included, that rounds to infinity.
  var firstMagnitudeBeyondRange: UInt32 {
    switch self {
    case .bfloat16: 0x7F7F_8000
    case .float16: 0x477F_F000
    default: 0x7F80_0000
    }
  }
}

@inline(__always)
private func split16(
  _ source: UnsafePointer<Float>, _ count: Int,
  _ low: UnsafeMutablePointer<UInt8>, _ high: UnsafeMutablePointer<UInt8>,
  _ limit: UInt32, _ convert: (UInt32) -> UInt16
) -> Bool {
  // The top bit of `limit − 1 − magnitude` is set exactly when the magnitude reaches the limit.
  var beyond: UInt32 = 0
  for index in 0..<count {
    let bits = unsafe source[index].bitPattern
    beyond |= (limit &- 1) &- (bits & 0x7FFF_FFFF)
    let element = convert(bits)
    unsafe low[index] = UInt8(truncatingIfNeeded: element)
    unsafe high[index] = UInt8(truncatingIfNeeded: element >> 8)
  }
  return beyond < 0x8000_0000
}

private func split32(
  _ source: UnsafePointer<Float>, _ count: Int, _ planes: UnsafeMutablePointer<UInt8>, _ stride: Int
) -> Bool {
  var beyond: UInt32 = 0
  for index in 0..<count {
    let bits = unsafe source[index].bitPattern
    beyond |= 0x7F7F_FFFF &- (bits & 0x7FFF_FFFF)
    unsafe planes[index] = UInt8(truncatingIfNeeded: bits)
    unsafe planes[index + stride] = UInt8(truncatingIfNeeded: bits >> 8)
    unsafe planes[index + 2 * stride] = UInt8(truncatingIfNeeded: bits >> 16)
    unsafe planes[index + 3 * stride] = UInt8(truncatingIfNeeded: bits >> 24)
  }
  return beyond < 0x8000_0000
}
