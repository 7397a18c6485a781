import Compute
import ComputeOpenBLAS
import Tensors
import Testing

typealias Operations = LinearAlgebra & DecoderOperations

/// Runs `body` on the reference and on the backend with one, two and three threads. The thread counts must
/// give the same bits, and these lie within `tolerance`, relative to the largest value, of the reference.
func expectAgreement(
  within tolerance: Float, by bfloat16: BFloat16Kernels? = nil,
  sourceLocation: SourceLocation = #_sourceLocation,
  _ body: (any Operations) throws -> Matrix
) rethrows {
  let expected = try body(ReferenceBackend()).elements
  let results = try (1...3).map { try body(OpenBLASBackend(threads: $0, bfloat16: bfloat16)).elements }
  for result in results.dropFirst() {
    #expect(result.map(\.bitPattern) == results[0].map(\.bitPattern), sourceLocation: sourceLocation)
  }
  let largest = expected.map { abs($0) }.max() ?? 0
  let error = zip(results[0], expected).map { abs($0 - $1) }.max() ?? 0
  #expect(
    results[0].count == expected.count && results[0].allSatisfy(\.isFinite), sourceLocation: sourceLocation)
  #expect(error <= tolerance * max(largest, 1e-30), sourceLocation: sourceLocation)
}

extension Matrix {
  /// Uniform values in -1 ..< 1 that follow from the seed.
  static func random(_ rows: Int, _ columns: Int, seed: UInt64) -> Matrix {
    var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    let elements = (0..<rows * columns).map { _ -> Float in
      // Xorshift64*
      state ^= state >> 12
      state ^= state << 25
      state ^= state >> 27
      return Float((state &* 0x2545_F491_4F6C_DD1D) >> 40) / Float(1 << 23) - 1
    }
    return Matrix(rows: rows, columns: columns, elements)
  }

  /// XᵀX / tokens + I / 10 of random X, both triangles.
  static func positiveDefinite(order: Int, seed: UInt64) -> Matrix {
    let inputs = random(order + 16, order, seed: seed)
    let gram = Matrix(rows: order, columns: order)
    let backend = OpenBLASBackend(threads: 2)
    backend.accumulateGram(inputs, into: gram)
    backend.symmetrize(gram)
    for row in 0..<order {
      for column in 0..<order { gram[row, column] /= Float(order + 16) }
      gram[row, row] += 0.1
    }
    return gram
  }
}
