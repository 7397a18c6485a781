import Checkpoint
import Compute
import Glibc
import Tensors

/// Rotary position embedding (arXiv 2104.09864) with the scalings of long-context models.
struct RotaryEmbedding: Sendable {
  /// Radians per position of each pair of elements, `headDimension / 2` values.
  let frequencies: [Float]

  init(headDimension: Int, theta: Double, scaling: Scaling = .none) {
    frequencies = (0..<headDimension / 2).map { pair in
      let frequency = 1 / pow(theta, Double(2 * pair) / Double(headDimension))
      return Float(scaling.apply(to: frequency))
    }
  }

  enum Scaling: Sendable, Equatable {
    case none
    /// Positions divided by a factor.
    case linear(factor: Double)
    /// Llama 3.1: long wavelengths divided by a factor, short ones kept, a ramp between.
    case llama3(factor: Double, lowFrequency: Double, highFrequency: Double, originalPositions: Double)

    func apply(to frequency: Double) -> Double {
      switch self {
      case .none: return frequency
      case .linear(let factor): return frequency / factor
      case .llama3(let factor, let low, let high, let originalPositions):
        let turns = originalPositions * frequency / (2 * Double.pi)
        let keep = min(max((turns - low) / (high - low), 0), 1)
        return frequency * (keep + (1 - keep) / factor)
      }
    }
  }

  /// The table for sequences of up to `sequenceLength` tokens.
  func table(sequenceLength: Int, backend: any ComputeBackend) -> RotaryTable {
    let cosines = Matrix(rows: sequenceLength, columns: frequencies.count)
    let sines = Matrix(rows: sequenceLength, columns: frequencies.count)
    for position in 0..<sequenceLength {
      for (pair, frequency) in frequencies.enumerated() {
        // The product in fp32, as the models were trained.
        let angle = Double(Float(position) * frequency)
        cosines[position, pair] = Float(cos(angle))
        sines[position, pair] = Float(sin(angle))
      }
    }
    return RotaryTable(cosines: backend.upload(cosines), sines: backend.upload(sines))
  }
}

extension ConfigurationReader {
  /// The rotary embedding of config.json, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.
  func rotaryEmbedding(headDimension: Int, defaultTheta: Double = 10_000) throws(DecoderError)
    -> RotaryEmbedding
  {
    try refuseContradiction("rope_parameters", "rope_scaling")
    guard headDimension.isMultiple(of: 2) else {
      throw .unsupportedSetting(
        key: "head_dim", value: "\(headDimension)",
        supported: "an even number, as rotary positions turn pairs")
    }
    let newer = values["rope_parameters"].flatMap { $0 == .null ? nil : $0 }
    let settings = newer ?? values["rope_scaling"].flatMap { $0 == .null ? nil : $0 } ?? .object([:])
    let outerTheta = try number("rope_theta", default: defaultTheta)
    let theta = settings["rope_theta"]?.double ?? outerTheta
    if let partial = settings["partial_rotary_factor"]?.double ?? values["partial_rotary_factor"]?.double,
      partial != 1
    {
      throw .unsupportedSetting(key: "partial_rotary_factor", value: "\(partial)", supported: "1")
    }
    func setting(_ key: String) throws(DecoderError) -> Double {
      guard let value = settings[key]?.double else { throw .missingKey("rope_scaling.\(key)") }
      return value
    }
    let kind = settings["rope_type"]?.string ?? settings["type"]?.string ?? "default"
    let scaling: RotaryEmbedding.Scaling
    switch kind {
    case "default": scaling = .none
    case "linear": scaling = .linear(factor: try setting("factor"))
    case "llama3":
      scaling = .llama3(
        factor: try setting("factor"), lowFrequency: try setting("low_freq_factor"),
        highFrequency: try setting("high_freq_factor"),
        originalPositions: try setting("original_max_position_embeddings"))
    default:
      throw .unsupportedSetting(
        key: "rope_scaling.rope_type", value: kind, supported: "default, linear, llama3")
    }
    return RotaryEmbedding(headDimension: headDimension, theta: theta, scaling: scaling)
  }
}
