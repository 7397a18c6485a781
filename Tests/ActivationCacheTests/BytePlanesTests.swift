import Tensors
import Testing

@testable import ActivationCache

@Suite struct BytePlanesTests {
  /// Every finite bfloat16 and float16 pattern, and values around each rounding boundary.
  static let values: [Float] = (0...UInt16.max).flatMap { bits -> [Float] in
    let value = Float(bfloat16Bits: bits)
    let half = Float(float16Bits: bits)
    return [
      value, Float(bitPattern: value.bitPattern | 0x8000), Float(bitPattern: value.bitPattern | 0x8001),
      half, Float(bitPattern: half.bitPattern | 0x1000), Float(bitPattern: half.bitPattern | 0x0FFF),
    ]
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16])
  func `planes hold the bytes of the rounded elements and merge back`(elementType: DType) {
    let values = Self.values.filter { $0.rounded(to: elementType).isFinite }
    let (count, width) = (values.count, elementType.byteWidth)
    var planes = [UInt8](repeating: 0xAA, count: count * width)
    let isSound = unsafe planes.withUnsafeMutableBufferPointer { planes in
      unsafe splitIntoPlanes(
        values, count: count, elementType: elementType, planes: planes.baseAddress!, stride: count)
    }
    #expect(isSound)

    // The plain version: round, take the bytes one by one.
    var expected = [UInt8](repeating: 0, count: count * width)
    for (index, value) in values.enumerated() {
      let bits: UInt32 =
        switch elementType {
        case .bfloat16: UInt32(value.bfloat16Bits)
        case .float16: UInt32(value.float16Bits)
        default: value.bitPattern
        }
      for plane in 0..<width {
        expected[plane * count + index] = UInt8(truncatingIfNeeded: bits >> (8 * UInt32(plane)))
      }
    }
    #expect(planes == expected)

    var merged = [Float](repeating: 0, count: count)
    unsafe planes.withUnsafeBufferPointer { planes in
      let pointers = unsafe (0..<width).map { unsafe planes.baseAddress! + $0 * count }
      unsafe mergePlanes(pointers, count: count, elementType: elementType, into: &merged)
    }
    #expect(merged.map(\.bitPattern) == values.map { $0.rounded(to: elementType).bitPattern })
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16])
  func `a value is refused exactly if it does not stay finite`(elementType: DType) {
    for value in Self.values {
      var plane: [UInt8] = [0, 0, 0, 0]
      let isSound = unsafe splitIntoPlanes(
        [value], count: 1, elementType: elementType, planes: &plane, stride: 1)
      if isSound != value.rounded(to: elementType).isFinite {
        Issue.record("\(value) as \(elementType)")
      }
    }
  }
}
