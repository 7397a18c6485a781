import Checkpoint
import Compute
import Glibc
import Tensors

/// Rotary position embedding (arXiv 2104.09864) with the scalings of long-context models.
struct RotaryEmbedding: Sendable, Hashable {
  /// The part of a head that turns, its first elements.
  let headDimension: Int
  let theta: Double
  var scaling = Scaling.none
  /// Whether elements 2i and 2i + 1 of a head are a pair, and not i and one half of the rotated part further.
  var isInterleaved = false

  /// Radians per position of each pair of elements.
  var frequencies: [Float] { frequencies(sequenceLength: 0) }

  /// The same for sequences of so many tokens.
  private func frequencies(sequenceLength: Int) -> [Float] {
    let plain = (0..<headDimension / 2).map { pair in
      1 / pow(theta, Double(2 * pair) / Double(headDimension))
    }
    switch scaling {
    case .longrope(let longrope):
      let isLong = sequenceLength > longrope.originalPositions
      return zip(plain, isLong ? longrope.long : longrope.short).map { Float($0 / $1) }
    case .yarn(let yarn):
      return yarn.apply(to: plain, theta: theta).map { Float($0) }
    case .proportional(let share, let divisor):
      let turning = Int(share * Double(headDimension) / 2)
      return plain.enumerated().map { Float($0 < turning ? $1 / divisor : 0) }
    case .none, .linear, .llama3:
      return plain.map { Float(scaling.apply(to: $0)) }
    }
  }

  /// A factor of the rotated elements.
  private var factor: Double {
    switch scaling {
    case .longrope(let longrope): longrope.attentionFactor
    case .yarn(let yarn): yarn.attentionFactor
    case .none, .linear, .llama3, .proportional: 1
    }
  }

  enum Scaling: Sendable, Hashable {
    case none
    /// Positions divided by a factor.
    case linear(factor: Double)
    /// Llama 3.1: long wavelengths divided by a factor, short ones kept, a ramp between.
    case llama3(factor: Double, lowFrequency: Double, highFrequency: Double, originalPositions: Double)
    /// A share of the pairs turns, the first ones, by frequencies of the whole head, divided by a factor.
    case proportional(share: Double, factor: Double)
    case yarn(Yarn)
    case longrope(LongRope)

    func apply(to frequency: Double) -> Double {
      switch self {
      case .none, .yarn, .longrope, .proportional: return frequency
      case .linear(let factor): return frequency / factor
      case .llama3(let factor, let low, let high, let originalPositions):
        let turns = originalPositions * frequency / (2 * Double.pi)
        let keep = min(max((turns - low) / (high - low), 0), 1)
        return frequency * (keep + (1 - keep) / factor)
      }
    }
  }

  /// YaRN (arXiv 2309.00071): what turns often within the original positions is kept, what turns seldom divided by a
  /// factor, a ramp between.
  struct Yarn: Sendable, Hashable {
    let factor: Double
    /// Turns within the original positions at the ramp's ends.
    let fast: Double
    let slow: Double
    let originalPositions: Double
    /// Whether the ramp begins and ends at whole pairs.
    let isTruncated: Bool
    let attentionFactor: Double

    func apply(to frequencies: [Double], theta: Double) -> [Double] {
      let dimension = Double(2 * frequencies.count)
      func pair(turning turns: Double) -> Double {
        dimension * log(originalPositions / (turns * 2 * Double.pi)) / (2 * log(theta))
      }
      var (low, high) = (pair(turning: fast), pair(turning: slow))
      if isTruncated { (low, high) = (low.rounded(.down), high.rounded(.up)) }
      (low, high) = (max(low, 0), min(high, dimension - 1))
      let width = low == high ? 0.001 : high - low
      return frequencies.enumerated().map { pair, frequency in
        let divided = min(max((Double(pair) - low) / width, 0), 1)
        return frequency * (1 - divided) + frequency / factor * divided
      }
    }
  }

  /// LongRoPE (arXiv 2402.13753): a divisor of every pair's frequency, others for sequences beyond the original positions.
  struct LongRope: Sendable, Hashable {
    let short: [Double]
    let long: [Double]
    let originalPositions: Int
    let attentionFactor: Double
  }

  /// The table for sequences of up to `sequenceLength` tokens.
  func table(sequenceLength: Int, backend: any DecoderOperations) -> RotaryTable {
    let frequencies = frequencies(sequenceLength: sequenceLength)
    let factor = factor
    let cosines = Matrix(rows: sequenceLength, columns: frequencies.count)
    let sines = Matrix(rows: sequenceLength, columns: frequencies.count)
    for position in 0..<sequenceLength {
      for (pair, frequency) in frequencies.enumerated() {
        // The product in fp32, as the models were trained.
        let angle = Double(Float(position) * frequency)
        cosines[position, pair] = Float(cos(angle) * factor)
        sines[position, pair] = Float(sin(angle) * factor)
      }
    }
    return RotaryTable(
      cosines: backend.upload(cosines), sines: backend.upload(sines), isInterleaved: isInterleaved)
  }
}
