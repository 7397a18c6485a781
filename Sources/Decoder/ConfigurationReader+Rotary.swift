import Checkpoint
import Glibc

extension ConfigurationReader {
  /// The rotary embedding of config.json, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.
  func rotaryEmbedding(
    headDimension: Int, _ style: RotaryStyle = RotaryStyle()
  ) throws(DecoderError) -> RotaryEmbedding {
    try refuseContradiction("rope_parameters", "rope_scaling")
    var settings = object("rope_parameters") ?? object("rope_scaling") ?? .object([:])
    if let layerType = style.layerType, let own = settings[layerType] { settings = own }
    let rope = RopeSettings(values: settings)
    let theta = try rope.number("rope_theta", default: number("rope_theta", default: style.defaultTheta))
    // A proportional scaling is for whole heads, of which it leaves pairs where they are.
    let share =
      rope.kind == "proportional"
      ? 1
      : try rope.number(
        "partial_rotary_factor", default: number("partial_rotary_factor", default: style.partial ?? 1))
    guard style.partial != nil ? share > 0 && share <= 1 : share == 1 else {
      throw .unsupportedSetting(
        key: "partial_rotary_factor", value: "\(share)",
        supported: style.partial == nil ? "1" : "above 0, up to 1")
    }
    guard theta > 1 else {
      throw .unsupportedSetting(key: "rope_theta", value: "\(theta)", supported: "a number above 1")
    }
    let dimension = Int((Double(headDimension) * share).rounded())
    try requireRotary(dimension)
    return RotaryEmbedding(
      headDimension: dimension, theta: try rope.stretched(theta, dimension: dimension),
      scaling: try scaling(rope, pairs: dimension / 2),
      isInterleaved: style.isInterleaved || ggufLayout("rope_interleaved"))
  }

  /// The same of a layer of a model with a theta of its own for layers with a window: an entry of `rope_parameters` for
  /// each kind of layer, or, as published, a scaling that is not for layers with a window.
  /// - Parameters:
  ///   - defaultTheta: of layers that see all
  ///   - slidingTheta: the key that the theta of the others was published under, and what it is without
  func rotaryEmbedding(
    headDimension: Int, isSliding: Bool, defaultTheta: Double, slidingTheta: (key: String, fallback: Double)
  ) throws(DecoderError) -> RotaryEmbedding {
    let type = isSliding ? "sliding_attention" : "full_attention"
    if values["rope_parameters"]?[type] != nil || !isSliding {
      let theta = isSliding ? slidingTheta.fallback : defaultTheta
      return try rotaryEmbedding(
        headDimension: headDimension, RotaryStyle(defaultTheta: theta, layerType: type))
    }
    return RotaryEmbedding(
      headDimension: headDimension, theta: try number(slidingTheta.key, default: slidingTheta.fallback))
  }

  /// Refuses heads that cannot turn.
  func requireRotary(_ headDimension: Int) throws(DecoderError) {
    guard headDimension.isMultiple(of: 2), headDimension <= Self.widestHead else {
      throw .unsupportedSetting(
        key: "head_dim", value: "\(headDimension)",
        supported: "an even number up to \(Self.widestHead), as rotary positions turn pairs")
    }
  }

  /// Beyond any head, and a table of positions that fits everywhere.
  private static let widestHead = 1 << 16

  private func scaling(_ rope: RopeSettings, pairs: Int) throws(DecoderError) -> RotaryEmbedding.Scaling {
    switch rope.kind {
    // Scaled for sequences beyond the model's positions alone, or once and for all by an alpha, which theta has.
    case "default", "dynamic": return .none
    // Of text, all three positions of a token are the same.
    case "mrope" where isWrapped: return .none
    case "linear": return .linear(factor: try rope.required("factor"))
    case "llama3":
      return .llama3(
        factor: try rope.required("factor"), lowFrequency: try rope.required("low_freq_factor"),
        highFrequency: try rope.required("high_freq_factor"),
        originalPositions: try rope.required("original_max_position_embeddings"))
    case "yarn":
      let original = try originalPositions(rope)
      let factor = try rope.number("factor", default: growth(from: original))
      return .yarn(
        RotaryEmbedding.Yarn(
          factor: factor, fast: try rope.number("beta_fast", default: 32),
          slow: try rope.number("beta_slow", default: 1),
          originalPositions: original, isTruncated: rope.values["truncate"]?.bool ?? true,
          attentionFactor: try rope.number("attention_factor", default: rope.yarnAttentionFactor(factor))))
    case "longrope":
      let original = try originalPositions(rope)
      let factor = try rope.number("factor", default: growth(from: original))
      let suggested = factor <= 1 ? 1 : (1 + log(factor) / log(original)).squareRoot()
      return .longrope(
        RotaryEmbedding.LongRope(
          short: try rope.divisors("short_factor", count: pairs),
          long: try rope.divisors("long_factor", count: pairs), originalPositions: Int(original),
          attentionFactor: try rope.number("attention_factor", default: suggested)))
    case "proportional":
      return .proportional(
        share: try rope.number("partial_rotary_factor", default: 1),
        factor: try rope.number("factor", default: 1))
    default:
      throw .unsupportedSetting(
        key: "rope_scaling.rope_type", value: rope.kind,
        supported: "default, dynamic, linear, llama3, yarn, longrope")
    }
  }

  /// The positions that a model was first trained with.
  private func originalPositions(_ rope: RopeSettings) throws(DecoderError) -> Double {
    let key = "original_max_position_embeddings"
    if let own = values[key], own != .null { return Double(try integer(key)) }
    let original = try rope.number(key, default: Double(integer("max_position_embeddings")))
    guard original >= 1, original <= 1e9 else {
      throw .unsupportedSetting(key: key, value: "\(original)", supported: "a number of positions")
    }
    return original
  }

  /// How many times as many positions a model now has.
  private func growth(from original: Double) throws(DecoderError) -> Double {
    Double(try integer("max_position_embeddings")) / original
  }

  private func object(_ key: String) -> JSONValue? { values[key].flatMap { $0 == .null ? nil : $0 } }
}

/// What a family makes of rotary positions.
struct RotaryStyle {
  var defaultTheta = 10_000.0
  /// The share of a head that turns where config.json does not say; nil for families that turn whole heads.
  var partial: Double?
  var isInterleaved = false
  /// The kind of layer, where `rope_parameters` has an entry for each.
  var layerType: String?
}

/// `rope_parameters`, or `rope_scaling`, of config.json.
private struct RopeSettings {
  let values: JSONValue

  /// What the scaling is called; phi's first long-context models had other names for it.
  var kind: String {
    let name = values["rope_type"]?.string ?? values["type"]?.string ?? "default"
    return name == "su" ? "longrope" : name
  }

  func number(_ key: String) throws(DecoderError) -> Double? {
    guard let value = values[key], value != .null else { return nil }
    guard let number = value.double, number.isFinite, number > 0 else {
      throw .unsupportedSetting(
        key: "rope_scaling.\(key)", value: value.compactText, supported: "a positive number")
    }
    return number
  }

  func number(
    _ key: String, default fallback: @autoclosure () throws(DecoderError) -> Double
  ) throws(DecoderError) -> Double {
    if let number = try number(key) { return number }
    return try fallback()
  }

  /// Theta as a fixed alpha stretches it.
  func stretched(_ theta: Double, dimension: Int) throws(DecoderError) -> Double {
    guard kind == "dynamic", dimension > 2, let alpha = try number("alpha") else { return theta }
    return theta * pow(alpha, Double(dimension) / Double(dimension - 2))
  }

  func required(_ key: String) throws(DecoderError) -> Double {
    guard let number = try number(key) else { throw .missingKey("rope_scaling.\(key)") }
    return number
  }

  func divisors(_ key: String, count: Int) throws(DecoderError) -> [Double] {
    guard let values = values[key]?.array else { throw .missingKey("rope_scaling.\(key)") }
    let numbers = values.compactMap(\.double).filter { $0.isFinite && $0 > 0 }
    guard numbers.count == values.count, numbers.count == count else {
      throw .unsupportedSetting(
        key: "rope_scaling.\(key)", value: "\(values.count) values", supported: "\(count) positive numbers")
    }
    return numbers
  }

  func yarnAttentionFactor(_ factor: Double) throws(DecoderError) -> Double {
    func magnitude(_ share: Double) -> Double { factor <= 1 ? 1 : 0.1 * share * log(factor) + 1 }
    guard let numerator = try number("mscale"), let denominator = try number("mscale_all_dim") else {
      return magnitude(1)
    }
    return magnitude(numerator) / magnitude(denominator)
  }
}
