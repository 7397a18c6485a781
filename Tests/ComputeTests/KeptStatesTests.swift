import Compute
import ComputeCUDA
import Tensors
import TestSupport
import Testing

/// States that a device keeps, in its memory or the host's, are those that the activation cache would give back.
struct KeptStatesTests {
  private static let values: [Float] = [
    0, -0.0, 1, -1.000_488_3, 1.000_488_3, 1.001_464_8, 65_504, -65_519.99, 6.1e-5, 6.097_555e-5, 5.96e-8,
    2.98e-8,
    2.980_232_2e-8, 1e-9, 0.333_333_34, -1234.567,
  ]

  @Test(arguments: [DType.float32, .float16, .bfloat16], [KeptStates.Place.device, .host])
  func `kept states are rounded as in the cache, in place, and come back`(
    _ type: DType, _ place: KeptStates.Place
  ) throws {
    let backend = try EmulatedGPU.backend()
    let random = Matrix.random(61, 16, seed: 3).elements.map { $0 * 900 }
    let values = Matrix(rows: 62, columns: 16, Self.values + random)
    let states = backend.upload(values)
    let kept = try #require(backend.keep(states, as: type, in: place))
    let expected = values.elements.map { $0.rounded(to: type) }
    #expect(backend.download(states).elements.map(\.bitPattern) == expected.map(\.bitPattern))
    let restored = backend.makeMatrix(rows: 62, columns: 16)
    backend.restore(kept, into: restored)
    #expect(backend.download(restored).elements.map(\.bitPattern) == expected.map(\.bitPattern))
  }

  @Test func `states of several blocks come back from the host, and their memory is taken again`() throws {
    let backend = try EmulatedGPU.backend()
    let restored = backend.makeMatrix(rows: 1_111, columns: 1_000)
    // The second are wider than what the first, which have gone, stood in, and two stand beside one another.
    for rows in [300, 1_111, 700] {
      let values = [4, 5].map { Matrix.random(rows, 1_000, seed: UInt64($0 * rows)) }
      let kept = try values.map { try #require(backend.keep(backend.upload($0), as: .float32, in: .host)) }
      for (values, kept) in zip(values, kept) {
        backend.restore(kept, into: restored.prefix(rows))
        #expect(backend.download(restored.prefix(rows)).elements == values.elements)
      }
    }
  }

  @Test(
    arguments: [
      (DType.float32, Float.nan), (.float32, -.infinity), (.bfloat16, .infinity), (.bfloat16, 3.4e38),
      (.float16, 65_520),
      (.float16, .nan), (.float16, -1e9),
    ])
  func `what has no value in the type is not kept, and stays to be told`(_ type: DType, _ value: Float) throws
  {
    let backend = try EmulatedGPU.backend()
    let states = backend.upload(Matrix(rows: 1, columns: 3, [1, value, 2]))
    for place in [KeptStates.Place.device, .host] {
      #expect(backend.keep(states, as: type, in: place) == nil)
    }
    #expect(backend.download(states)[0, 1].bitPattern == value.bitPattern)
  }

  @Test(arguments: [DType.float32, .float16, .bfloat16])
  func `every stored value is converted as the host converts it`(_ type: DType) throws {
    let backend = try EmulatedGPU.backend()
    // All there are of 16 bits; of 32 those with the same upper half.
    let bits = (0...UInt16.max).map { $0 }
    let stored: [UInt8] =
      type == .float32
      ? bits.flatMap { [0, 0, UInt8(truncatingIfNeeded: $0), UInt8($0 >> 8)] }
      : bits.flatMap { [UInt8(truncatingIfNeeded: $0), UInt8($0 >> 8)] }
    let expected = bits.map { bits in
      switch type {
      case .float16: Float(float16Bits: bits)
      default: Float(bitPattern: UInt32(bits) << 16)
      }
    }
    let matrix = backend.makeMatrix(rows: 256, columns: 256)
    unsafe backend.convert(stored.span.bytes, type, into: matrix)
    let found = backend.download(matrix).elements
    for (one, other) in zip(found, expected) {
      #expect(one.bitPattern == other.bitPattern || (one.isNaN && other.isNaN))
    }
    // What is not finite is seen, and one of it is enough.
    #expect(!backend.isFinite(matrix))
    let largest = backend.upload(
      Matrix(rows: 1, columns: 300, (0..<300).map { $0 == 7 ? .greatestFiniteMagnitude : 1 }))
    #expect(backend.isFinite(largest))
    for value in [Float.nan, .infinity, -.infinity] {
      #expect(
        !backend.isFinite(
          backend.upload(Matrix(rows: 1, columns: 300, (0..<300).map { $0 == 299 ? value : 1 }))))
    }
  }
}
