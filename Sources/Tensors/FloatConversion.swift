// Conversions between fp32 and the 16-bit floats of checkpoints. Integer arithmetic on bit patterns:
// exact on every processor, and simple enough for the compiler to vectorise the loops over spans.

extension Float {
  /// The value of a bfloat16 bit pattern.
  @inlinable
  public init(bfloat16Bits bits: UInt16) {
    self.init(bitPattern: UInt32(bits) << 16)
  }

  /// This value as bfloat16 bits, rounded to nearest, ties to even. NaN stays NaN.
  @inlinable
  public var bfloat16Bits: UInt16 {
    let bits = bitPattern
    if isNaN { return UInt16(truncatingIfNeeded: bits >> 16) | 0x0040 }
    let roundingBias = 0x7FFF + ((bits >> 16) & 1)
    return UInt16(truncatingIfNeeded: (bits &+ roundingBias) >> 16)
  }

  /// The value of an IEEE 754 binary16 bit pattern.
  @inlinable
  public init(float16Bits bits: UInt16) {
    let sign = UInt32(bits & 0x8000) << 16
    let magnitude = UInt32(bits & 0x7FFF)
    if magnitude >= 0x7C00 {  // infinity and NaN
      self.init(bitPattern: sign | 0x7F80_0000 | ((magnitude & 0x03FF) << 13))
    } else {
      // Shifted into place, the exponent is 112 too small; one multiplication by 2^112 mends normal
      // and subnormal numbers alike.
      let scaled = Float(bitPattern: magnitude << 13) * Float(bitPattern: 0x7780_0000)
      self.init(bitPattern: sign | scaled.bitPattern)
    }
  }

  /// This value as IEEE 754 binary16 bits, rounded to nearest, ties to even; beyond ±65,504 infinity.
  @inlinable
  public var float16Bits: UInt16 {
    let sign = UInt16(truncatingIfNeeded: (bitPattern >> 16) & 0x8000)
    let magnitude = bitPattern & 0x7FFF_FFFF
    if magnitude > 0x7F80_0000 { return sign | 0x7E00 }
    if magnitude >= 0x4780_0000 { return sign | 0x7C00 }
    if magnitude < 0x3880_0000 {
      // Subnormal: adding 0.5 lines the result's last bit up with fp32's, and the addition rounds.
      let shifted = Float(bitPattern: magnitude) + 0.5
      return sign | UInt16(truncatingIfNeeded: shifted.bitPattern &- Float(0.5).bitPattern)
    }
    let roundingBias = 0x0FFF + ((magnitude >> 13) & 1)
    return sign | UInt16(truncatingIfNeeded: (magnitude &+ roundingBias &- 0x3800_0000) >> 13)
  }

  /// This value after a round trip through `dtype`, one of the three float types of checkpoints.
  @inlinable
  public func rounded(to dtype: DType) -> Float {
    switch dtype {
    case .bfloat16: Float(bfloat16Bits: bfloat16Bits)
    case .float16: Float(float16Bits: float16Bits)
    default: self
    }
  }
}
