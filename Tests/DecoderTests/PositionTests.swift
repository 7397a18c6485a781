import Compute
import Foundation
import Testing

@testable import Decoder

struct PositionTests {
  @Test func `rotary frequencies fall from one by the powers of theta`() {
    let rotary = RotaryEmbedding(headDimension: 8, theta: 10_000)
    expectClose(rotary.frequencies, [1, 0.1, 0.01, 0.001])
  }

  @Test func `linear scaling divides every frequency`() {
    let rotary = RotaryEmbedding(headDimension: 4, theta: 100, scaling: .linear(factor: 4))
    expectClose(rotary.frequencies, [0.25, 0.025])
  }

  @Test func `llama3 scaling keeps short waves, divides long ones and blends between`() {
    // A frequency f turns 64 f / 2π times over the original 64 positions; the band is 1 to 4 turns.
    let scaling = RotaryEmbedding.Scaling.llama3(
      factor: 8, lowFrequency: 1, highFrequency: 4, originalPositions: 64)
    func frequency(turns: Double) -> Double { turns * 2 * Double.pi / 64 }
    func factor(turns: Double) -> Double {
      scaling.apply(to: frequency(turns: turns)) / frequency(turns: turns)
    }
    #expect(factor(turns: 5) == 1)
    #expect(factor(turns: 0.5) == 1.0 / 8)
    // Half-way: half of the kept frequency and half of the divided one.
    #expect(abs(factor(turns: 2.5) - (0.5 + 0.5 / 8)) < 1e-12)
    let factors = stride(from: 0.5, through: 5, by: 0.25).map(factor)
    #expect(zip(factors, factors.dropFirst()).allSatisfy { $0 <= $1 })
  }

  @Test func `a rotary table holds cosine and sine of position times frequency`() {
    let table = RotaryEmbedding(headDimension: 4, theta: 100).table(
      sequenceLength: 5, backend: ReferenceBackend())
    #expect(table.sequenceLength == 5)
    for position in 0..<5 {
      for (pair, frequency) in [1.0, 0.1].enumerated() {
        #expect(abs(Double(table.cosines[position, pair]) - cos(Double(position) * frequency)) < 1e-6)
        #expect(abs(Double(table.sines[position, pair]) - sin(Double(position) * frequency)) < 1e-6)
      }
    }
  }

  @Test(arguments: [
    (4, [-2, -4, -6, -8]),
    (8, [-1, -2, -3, -4, -5, -6, -7, -8]),
    // Beyond a power of two: every second slope of the next one's.
    (6, [-2, -4, -6, -8, -1, -3]),
    (5, [-2, -4, -6, -8, -1]),
    (1, [-8]),
  ])
  func `alibi slopes are powers of two`(_ heads: Int, _ exponents: [Double]) {
    let slopes = Alibi(heads: heads).slopes
    expectClose(slopes, exponents.map { Float(exp2($0)) })
  }

  @Test func `alibi adds a slope per position, of falcon before the scores are scaled`() {
    let plain = Alibi(heads: 2).bias(sequenceLength: 4, scoreScale: 0.5)
    #expect(plain.elements == [0, 1, 2, 3].map { 0.0625 * $0 } + [0, 1, 2, 3].map { 0.003_906_25 * $0 })
    let scaled = Alibi(heads: 2, isScaledWithScores: true).bias(sequenceLength: 4, scoreScale: 0.5)
    #expect(scaled.elements == plain.elements.map { $0 / 2 })
  }

  private func expectClose(
    _ values: [Float], _ expected: [Float], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let isClose = zip(values, expected).allSatisfy { abs($0 - $1) <= 1e-6 * abs($1) }
    #expect(values.count == expected.count && isClose, "\(values)", sourceLocation: sourceLocation)
  }
}
