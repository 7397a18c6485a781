import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

@testable import Pipeline

struct ExpertPriorTests {
  private let backend = OpenBLASBackend(threads: 2)

  /// Tokens whose columns vary by their own factors.
  private func tokens(_ count: Int, seed: UInt64, _ factors: [Float]) -> Matrix {
    let tokens = Matrix(rows: count, columns: factors.count)
    var generator = SeededGenerator(seed: seed)
    for row in 0..<count {
      for column in factors.indices {
        // Three of them are near enough to normal.
        let value = (0..<3).reduce(0 as Float) { sum, _ in sum + Float.random(in: -1...1, using: &generator) }
        tokens[row, column] = value * factors[column]
      }
    }
    return tokens
  }

  private func prior(_ own: Matrix, _ others: Matrix, upTo most: Double = 1_000) -> Double {
    ExpertPrior(backend: backend).tokens(
      own: own.copy(), others: others.copy(), times: 3, upTo: most)
  }

  private let like = [Float](repeating: 1, count: 24)
  private var unlike: [Float] { (0..<24).map { $0 < 4 ? 3 : 0.1 } }

  @Test func `experts whose tokens are like all others' are solved for all of them`() {
    #expect(prior(tokens(500, seed: 1, like), tokens(500, seed: 2, like)) > 300)
  }

  @Test func `those that have specialized are solved for their own`() {
    let lambda = prior(tokens(500, seed: 1, unlike), tokens(500, seed: 2, like))
    #expect(lambda > 0 && lambda < 30, "\(lambda)")
  }

  @Test(arguments: [20, 60, 400])
  func `it is what is defined, however many tokens there are`(_ count: Int) {
    let (own, others) = (tokens(count, seed: 3, unlike), tokens(300, seed: 4, like))
    // In double, by the definition, in columns of the others' size.
    let scales = like.indices.map { column in
      ((0..<300).reduce(0) { $0 + Double(others[$1, column]) * Double(others[$1, column]) } / 300)
        .squareRoot()
    }
    func row(_ matrix: Matrix, _ row: Int) -> [Double] {
      scales.indices.map { Double(matrix[row, $0]) / scales[$0] }
    }
    func square(_ a: [Double], _ b: [Double]) -> Double {
      let product = zip(a, b).reduce(0) { $0 + $1.0 * $1.1 }
      return product * product
    }
    let (mine, theirs) = ((0..<count).map { row(own, $0) }, (0..<300).map { row(others, $0) })
    func mean(_ a: [[Double]], _ b: [[Double]], _ isCounted: (Int, Int) -> Bool) -> Double {
      var (sum, pairs) = (0.0, 0.0)
      for i in a.indices {
        for j in b.indices where isCounted(i, j) { (sum, pairs) = (sum + square(a[i], b[j]), pairs + 1) }
      }
      return sum / pairs
    }
    let inner = mean(mine, mine) { $0 != $1 }
    let distance = inner + mean(theirs, theirs) { $0 != $1 } - 2 * mean(mine, theirs) { _, _ in true }
    let expected = 3 * (mean(mine, mine) { $0 == $1 } - inner) / distance
    #expect(abs(prior(own, others) / expected - 1) < 1e-4)
  }

  @Test func `few tokens, and none, leave it at the most`() {
    for count in [0, 1, 7] {
      #expect(prior(tokens(count, seed: 5, unlike), tokens(300, seed: 6, like), upTo: 12) == 12)
    }
  }

  @Test func `columns of zeros say nothing`() {
    let (own, others) = (tokens(100, seed: 7, unlike), tokens(100, seed: 8, like))
    let wide = [own, others].map { narrow in
      let wide = Matrix(rows: 100, columns: 30)
      for row in 0..<100 { for column in 0..<24 { wide[row, column] = narrow[row, column] } }
      return wide
    }
    #expect(abs(prior(wide[0], wide[1]) / prior(own, others) - 1) < 1e-5)
  }
}
