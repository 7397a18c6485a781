import Tensors

/// Numbers that look random and are the same in every run: xorshift64*.
struct Noise {
  private var state: UInt64

  init(seed: UInt64) {
    state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
    for _ in 0..<8 { _ = bits() }
  }

  private mutating func bits() -> UInt64 {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return state &* 0x2545_F491_4F6C_DD1D
  }

  /// Mean 0, variance 1: the sum of four uniform numbers, one from each 16 bits.
  mutating func normal() -> Float {
    let bits = bits()
    let sum = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48)
    return (Float(sum) / 65_536 - 2) * 1.732_051
  }

  mutating func matrix(rows: Int, columns: Int, deviation: Float = 1) -> Matrix {
    let matrix = Matrix(rows: rows, columns: columns)
    fill(matrix, deviation: deviation)
    return matrix
  }

  mutating func fill(_ matrix: Matrix, deviation: Float = 1) {
    matrix.withMutableSpan { span in
      for index in span.indices { span[index] = deviation * normal() }
    }
  }
}
