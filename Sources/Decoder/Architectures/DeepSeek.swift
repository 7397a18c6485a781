import Checkpoint
import Glibc

/// Families whose queries, keys and values are made of latents.
extension Architecture {
  /// DeepSeek V2, and its Lite and Coder models.
  static let deepSeekV2 = Architecture(modelTypes: ["deepseek_v2"]) { config in
    try config.requireNames([
      "scoring_func": ["softmax"], "topk_method": ["greedy", "group_limited_greedy"],
    ])
    try config.require("norm_topk_prob", false, default: false)
    try config.require("mlp_bias", false, default: false)
    var mixture = try config.deepSeekMixture()
    if config.values["topk_method"]?.string == "group_limited_greedy" {
      mixture.groups = .init(
        count: try config.integer("n_group"), chosen: try config.integer("topk_group"), best: 1)
    }
    return try .latentLike(
      config, mixture: mixture, denseLayers: Set(0..<config.count("first_k_dense_replace", default: 0)))
  }

  /// DeepSeek V3, R1 and V3.1, and Moonshot's Kimi K2.
  static let deepSeekV3 = Architecture(modelTypes: ["deepseek_v3", "kimi_k2"]) { config in
    try config.requireNames(["scoring_func": ["sigmoid"], "topk_method": ["noaux_tc"]])
    return try .latentLike(
      config, mixture: config.correctedMixture(groups: (8, 4)),
      denseLayers: Set(0..<config.count("first_k_dense_replace", default: 3)))
  }

  /// GLM 4.7 Flash.
  static let glm4MoELite = Architecture(modelTypes: ["glm4_moe_lite"]) { config in
    try .latentLike(
      config, mixture: config.correctedMixture(groups: (1, 1)),
      denseLayers: config.denseLayers(default: config.count("first_k_dense_replace", default: 1)))
  }
}

extension ModelDescription {
  /// - Parameter denseLayers: those with an MLP
  fileprivate static func latentLike(
    _ config: ConfigurationReader, mixture: MixtureDescription, denseLayers: Set<Int>
  ) throws -> ModelDescription {
    let hasBias = try config.flag("attention_bias", default: false)
    let everySo = try config.integer("moe_layer_freq", default: 1)
    guard everySo == 1 else {
      throw DecoderError.unsupportedSetting(key: "moe_layer_freq", value: "\(everySo)", supported: "1")
    }
    let isNull = config.values["q_lora_rank"] == .null
    let latent = LatentAttentionDescription(
      heads: try config.integer("num_attention_heads"),
      queryRank: isNull ? nil : try config.integer("q_lora_rank", default: 1_536),
      rank: try config.integer("kv_lora_rank", default: 512),
      plainDimension: try config.integer("qk_nope_head_dim", default: 128),
      rotaryDimension: try config.integer("qk_rope_head_dim", default: 64),
      valueDimension: try config.integer("v_head_dim", default: 128),
      // Of the norms of latents, config.json says nothing.
      hasBias: hasBias, epsilon: 1e-6)
    let isInterleaved = try config.flag("rope_interleave", default: true)
    let rotary = try config.rotaryEmbedding(
      headDimension: latent.rotaryDimension, RotaryStyle(isInterleaved: isInterleaved))
    let scale = try config.latentScoreScale(headDimension: latent.headDimension)
    // What the common layer would make of these is not used.
    let common = config.replacing([
      "head_dim": .integer(latent.headDimension), "num_key_value_heads": .integer(latent.heads),
      "rope_scaling": nil, "rope_parameters": nil, "partial_rotary_factor": nil,
    ])
    return try .llamaLike(common, projectionHasBias: hasBias, outputHasBias: hasBias) { layer, index in
      layer.latentAttention = latent
      layer.attention.positions = .rotary(rotary)
      layer.attention.scoreScale = scale
      if !denseLayers.contains(index) { try layer.mix(mixture) }
    }
  }
}

extension ConfigurationReader {
  /// Routed experts, and one for all tokens that is as wide as several.
  fileprivate func deepSeekMixture() throws(DecoderError) -> MixtureDescription {
    var mixture = try mixture(count: "n_routed_experts")
    mixture.scale = try factor("routed_scaling_factor", default: 1)
    mixture.share("mlp.shared_experts", count: try integer("n_shared_experts", default: 1))
    return mixture
  }

  /// The same, chosen by sigmoids with a correction.
  /// - Parameter groups: all, and those that are chosen, where config.json does not say
  func correctedMixture(groups: (count: Int, chosen: Int)) throws(DecoderError)
    -> MixtureDescription
  {
    var mixture = try deepSeekMixture()
    mixture.renormalizes = try flag("norm_topk_prob", default: true)
    mixture.scoring = .sigmoid
    mixture.correction = "mlp.gate.e_score_correction_bias"
    mixture.groups = .init(
      count: try integer("n_group", default: groups.count),
      chosen: try integer("topk_group", default: groups.chosen))
    return mixture
  }

  /// The factor of q·k, which grows with a model's stretched positions.
  fileprivate func latentScoreScale(headDimension: Int) throws(DecoderError) -> Float {
    let plain = 1 / Double(headDimension).squareRoot()
    guard let rope = values["rope_parameters"] ?? values["rope_scaling"], rope != .null,
      rope["rope_type"]?.string ?? rope["type"]?.string ?? "default" != "default",
      let share = rope["mscale_all_dim"]?.double, share != 0
    else { return Float(plain) }
    guard let factor = rope["factor"]?.double, factor.isFinite, factor > 0, share.isFinite else {
      throw .missingKey("rope_scaling.factor")
    }
    let magnitude = factor <= 1 ? 1 : 0.1 * share * log(factor) + 1
    return Float(plain * magnitude * magnitude)
  }
}
