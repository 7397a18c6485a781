extension Architecture {
  /// Qwen 1.5 to 2.5: llama's layer with biases on queries, keys and values.
  static let qwen2 = Architecture(
    modelTypes: ["qwen2"], wrappers: ["qwen2_5_vl": ["qwen2_5_vl_text", "qwen2_5_vl"]]
  ) { config in
    let windows = try config.qwenWindows()
    return try .llamaLike(config, projectionHasBias: true) { $0.attention.window = windows[$1] }
  }

  /// Qwen 3, dense: a norm over every head of queries and keys.
  static let qwen3 = Architecture(modelTypes: ["qwen3"], wrappers: ["qwen3_vl": ["qwen3_vl_text"]]) {
    config in
    let hasBias = try config.flag("attention_bias", default: false)
    let windows = try config.qwenWindows()
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias, normalizesHeads: true
    ) { $0.attention.window = windows[$1] }
  }

  /// Qwen 3.5 and 3.6, dense: three of four layers by the gated delta rule, attention with a gate in the fourth.
  static let qwen3_5 = Architecture(
    modelTypes: ["qwen3_5_text"], wrappers: ["qwen3_5": ["qwen3_5_text"]]
  ) { config in
    try .qwen3_5(config)
  }

  /// Qwen3-Next: the same with experts, its linear attention's projections in one matrix.
  static let qwen3Next = Architecture(modelTypes: ["qwen3_next"]) { config in
    let config = config.filled(with: ["num_key_value_heads": 2])
    let mixture = try config.gatedMixture(renormalizes: true)
    let isSparse = try config.sparseLayers()
    return try .qwen3_5(config) { layer, index in
      layer.linearAttention?.isFused = !config.ggufLayout("has_decays")
      layer.linearAttention?.hasFusedGates = true
      if isSparse[index] { try layer.mix(mixture) }
    }
  }

  /// The same with experts.
  static let qwen3_5MoE = Architecture(
    modelTypes: ["qwen3_5_moe_text"], wrappers: ["qwen3_5_moe": ["qwen3_5_moe_text"]]
  ) { config in
    // What a model without dense layers has no use for, and llama's layer asks for.
    let config = config.filled(with: ["num_key_value_heads": 2, "intermediate_size": 1])
    var mixture = try config.gatedMixture(renormalizes: true)
    mixture.renormalizes = true
    return try .qwen3_5(config) { layer, _ in try layer.mix(mixture) }
  }
}

extension ModelDescription {
  fileprivate static func qwen3_5(
    _ config: ConfigurationReader,
    change: (inout LayerDescription, _ index: Int) throws -> Void = { _, _ in }
  ) throws -> ModelDescription {
    let config = config.filled(with: ["num_key_value_heads": 4])
    let hasBias = try config.flag("attention_bias", default: false)
    try config.require("attn_output_gate", true, default: true)
    let epsilon = try config.epsilon("rms_norm_eps", default: 1e-6)
    let interval = try config.integer("full_attention_interval", default: 4)
    let isLinear = try config.layers(of: "linear_attention", count: config.layerCount()) {
      ($0 + 1) % interval != 0
    }
    var mixer = GatedDeltaNetDescription(
      keyHeads: try config.integer("linear_num_key_heads", default: 16),
      valueHeads: try config.integer("linear_num_value_heads", default: 32),
      keyDimension: try config.integer("linear_key_head_dim", default: 128),
      valueDimension: try config.integer("linear_value_head_dim", default: 128),
      taps: try config.integer("linear_conv_kernel_dim", default: 4), epsilon: epsilon)
    mixer.isTiled = config.ggufLayout("tiles_value_heads")
    mixer.hasDecays = config.ggufLayout("has_decays")
    guard mixer.valueHeads.isMultiple(of: mixer.keyHeads) else {
      throw DecoderError.inconsistentHeads(heads: mixer.valueHeads, keyValueHeads: mixer.keyHeads)
    }
    return try llamaLike(
      config, norm: .rootMeanSquare(epsilon: epsilon, addingOne: !config.ggufLayout("norms_hold_one")),
      projectionHasBias: hasBias,
      outputHasBias: hasBias, normalizesHeads: true, headDimension: 256, rotary: RotaryStyle(partial: 0.25)
    ) { layer, index in
      layer.attention.hasOutputGate = true
      if isLinear[index] { layer.linearAttention = mixer }
      try change(&layer, index)
    }
  }
}

extension ConfigurationReader {
  /// Experts, and one with a gate that every token goes through.
  fileprivate func gatedMixture(renormalizes: Bool) throws(DecoderError) -> MixtureDescription {
    var mixture = try mixture(renormalizes: renormalizes)
    mixture.share(
      "mlp.shared_expert", width: try integer("shared_expert_intermediate_size", default: 512))
    mixture.sharedGate = "mlp.shared_expert_gate"
    return mixture
  }

  /// The window of every layer: the first layers have none.
  func qwenWindows() throws(DecoderError) -> [Int?] {
    guard try flag("use_sliding_window", default: false), try window(default: 4_096) != nil else {
      return Array(repeating: nil, count: try layerCount())
    }
    let first = values["max_window_layers"]?.int ?? 28
    return try windows(default: 4_096) { $0 >= first }
  }
}
