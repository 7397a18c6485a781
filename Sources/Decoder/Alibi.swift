import Glibc
import Tensors

/// Attention with linear biases (arXiv 2108.12409): a head-wise slope times the key's position.
struct Alibi: Sendable, Hashable {
  let heads: Int
  /// Falcon adds the bias before it scales the scores, in bfloat16; BLOOM after, in full precision.
  var isScaledWithScores = false

  /// One slope per head: powers of 2^(−8/n) for n heads, n a power of two; further heads take every
  /// second slope of the next power of two.
  var slopes: [Float] {
    var powerOfTwo = 1
    while powerOfTwo * 2 <= heads { powerOfTwo *= 2 }
    func slope(_ exponent: Int, of count: Int) -> Float {
      Float(pow(pow(2, -8 / Double(count)), Double(exponent)))
    }
    return (0..<heads).map { head in
      head < powerOfTwo
        ? slope(head + 1, of: powerOfTwo) : slope(2 * (head - powerOfTwo) + 1, of: 2 * powerOfTwo)
    }
  }

  /// What attention adds to the scaled scores, `[heads, sequenceLength]`.
  func bias(sequenceLength: Int, scoreScale: Float) -> Matrix {
    let bias = Matrix(rows: heads, columns: sequenceLength)
    for (head, slope) in slopes.enumerated() {
      for position in 0..<sequenceLength {
        bias[head, position] =
          isScaledWithScores
          ? (slope.rounded(to: .bfloat16) * Float(position).rounded(to: .bfloat16)).rounded(to: .bfloat16)
            * scoreScale
          : slope * Float(position)
      }
    }
    return bias
  }
}
