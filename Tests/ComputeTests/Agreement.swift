import Compute
import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

typealias Operations = LinearAlgebra & DecoderOperations

/// Runs `body` on the reference, on the processor with one, two and three threads, and on the emulated GPU with its threads
/// in several orders. Those of a backend must give the same bits, and these lie within `tolerance`, relative to the largest
/// value, of the reference.
/// - Parameter bfloat16: how the processor multiplies 16-bit operands, which the GPU then does, too; it also rounds operands
///   of other products, to TF32
func expectAgreement(
  within tolerance: Float, by bfloat16: BFloat16Kernels? = nil,
  sourceLocation: SourceLocation = #_sourceLocation,
  _ body: (any Operations) throws -> Matrix
) throws {
  let expected = try body(ReferenceBackend()).elements
  let largest = expected.map { abs($0) }.max() ?? 0
  let results = [
    "processor": try (1...3).map { try body(OpenBLASBackend(threads: $0, bfloat16: bfloat16)).elements },
    "GPU": try EmulatedGPU.results(isExact: bfloat16 == nil) { try body($0).elements },
  ]
  for (name, results) in results {
    for result in results.dropFirst() {
      #expect(
        result.map(\.bitPattern) == results[0].map(\.bitPattern), "\(name)", sourceLocation: sourceLocation)
    }
    let error = zip(results[0], expected).map { abs($0 - $1) }.max() ?? 0
    #expect(
      results[0].count == expected.count && results[0].allSatisfy(\.isFinite), "\(name)",
      sourceLocation: sourceLocation)
    let rounding: Float = name == "GPU" && bfloat16 != nil ? 1e-3 : 0
    #expect(
      error <= max(tolerance, rounding) * max(largest, 1e-30), "\(name)", sourceLocation: sourceLocation)
  }
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
