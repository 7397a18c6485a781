import Compute
import Tensors

extension Architecture {
  /// Gemma 1: norms whose weights are stored less 1, embeddings times the root of their width.
  static let gemma = Architecture(modelTypes: ["gemma"]) { config in
    // What was published as "gelu" was trained with the approximation.
    let activation = try config.activation("hidden_act", default: "gelu_pytorch_tanh")
    return try .gemmaLike(config) { layer, _ in
      layer.mlp.activation = activation == .gelu ? .geluTanh : activation
    }
  }

  /// Gemma 2: norms on what the blocks make, capped scores and logits, a window in every second layer.
  static let gemma2 = Architecture(modelTypes: ["gemma2"]) { config in
    let windows = try config.windows(default: 4_096) { $0 % 2 == 0 }
    return try .gemmaLike(config, capsByDefault: true) { layer, index in
      layer.attention.window = windows[index]
      layer.attention.scoreScale = try 1 / config.factor("query_pre_attn_scalar", default: 256).squareRoot()
      layer.addBlockNorms(try config.gemmaNorm())
    }
  }

  /// Gemma 3's text model: heads normalized, positions of their own in layers that see all.
  static let gemma3 = Architecture(
    modelTypes: ["gemma3_text"], wrappers: ["gemma3": ["gemma3_text"]]
  ) { config in
    // Published without what the code has as defaults.
    let config = config.filled(with: [
      "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208,
      "max_position_embeddings": 131_072,
    ])
    let count = try config.layerCount()
    let pattern = try config.integer("sliding_window_pattern", default: 6)
    let isSliding = try config.slidingLayers(count: count) { ($0 + 1) % pattern != 0 }
    let window = try config.window(default: 4_096)
    return try .gemmaLike(config, normalizesHeads: true) { layer, index in
      layer.attention.window = isSliding[index] ? window : nil
      layer.attention.positions = .rotary(
        try config.rotaryEmbedding(
          headDimension: layer.attention.headDimension, isSliding: isSliding[index],
          defaultTheta: 1_000_000, slidingTheta: (key: "rope_local_base_freq", fallback: 10_000)))
      layer.attention.scoreScale = try 1 / config.factor("query_pre_attn_scalar", default: 256).squareRoot()
      layer.addBlockNorms(try config.gemmaNorm())
    }
  }
}

extension Architecture {
  /// Gemma 4: layers that see all have wider heads of their own number, whose keys are their values, too; in one size
  /// experts beside the MLP.
  static let gemma4 = Architecture(
    modelTypes: ["gemma4_text"],
    wrappers: ["gemma4": ["gemma4_text"], "gemma4_unified": ["gemma4_unified_text"]]
  ) { config in
    for (key, value) in [("hidden_size_per_layer_input", 0), ("num_kv_shared_layers", 0)] {
      guard config.values[key]?.int ?? value == value || config.values[key] == .null else {
        throw DecoderError.unsupportedSetting(
          key: key, value: config.values[key]?.compactText ?? "", supported: "\(value)")
      }
    }
    let mixture = try config.gemma4Mixture()
    let count = try config.layerCount()
    var isSliding = try config.slidingLayers(count: count) { ($0 + 1) % 6 != 0 }
    isSliding[count - 1] = false
    let window = try config.window(default: 512)
    let wideDimension = try config.integer("global_head_dim", default: 512)
    let sharesKeys = try config.flag("attention_k_eq_v", default: false)
    let epsilon = try config.epsilon("rms_norm_eps", default: 1e-6)
    return try .gemmaLike(
      config, norm: .rootMeanSquare(epsilon: epsilon), normalizesHeads: true
    ) { layer, index in
      if isSliding[index] {
        layer.attention.window = window
      } else {
        layer.attention.headDimension = wideDimension
        if sharesKeys {
          layer.attention.projection = .sharedKeyValue(query: "self_attn.q_proj", key: "self_attn.k_proj")
          layer.attention.keyValueHeads = try config.integer(
            "num_global_key_value_heads", default: layer.attention.keyValueHeads)
        }
      }
      if let own = try config.ownSettings(ofLayer: index, known: ["head_dim", "num_key_value_heads"]) {
        layer.attention.headDimension = try own.integer("head_dim", default: layer.attention.headDimension)
        layer.attention.keyValueHeads = try own.integer(
          "num_key_value_heads", default: layer.attention.keyValueHeads)
      }
      layer.attention.positions = .rotary(
        try config.gemma4Rotary(
          headDimension: layer.attention.headDimension, isSliding: isSliding[index]))
      layer.attention.scoreScale = 1
      layer.attention.valueNormEpsilon = epsilon
      layer.outputScale = "layer_scalar"
      let norm = NormStyle.rootMeanSquare(epsilon: epsilon)
      layer.addBlockNorms(norm)
      if var mixture {
        mixture.shared = layer.mlp
        mixture.norms = MixtureDescription.Norms(
          routerEpsilon: epsilon, routerFactors: "router.scale", shared: norm("pre_feedforward_layernorm"),
          routedOutput: norm("post_feedforward_layernorm_2"),
          sharedOutput: norm("post_feedforward_layernorm_1"))
        layer.mlpNorm = norm("pre_feedforward_layernorm_2")
        try layer.mix(mixture)
      }
    }
  }
}

extension ModelDescription {
  fileprivate static func gemmaLike(
    _ config: ConfigurationReader, norm: NormStyle? = nil, normalizesHeads: Bool = false,
    capsByDefault: Bool = false,
    change: (inout LayerDescription, Int) throws -> Void
  ) throws -> ModelDescription {
    // "vision" is for tokens of pictures alone.
    if config.values["use_bidirectional_attention"]?.string != "vision" {
      try config.require("use_bidirectional_attention", false, default: false)
    }
    let hasBias = try config.flag("attention_bias", default: false)
    let softcap = try config.cap("attn_logit_softcapping", default: capsByDefault ? 50 : nil)
    var model = try llamaLike(
      config, norm: norm ?? config.gemmaNorm(), projectionHasBias: hasBias, outputHasBias: hasBias,
      normalizesHeads: normalizesHeads,
      activation: config.activation("hidden_activation", default: "gelu_pytorch_tanh"), headDimension: 256,
      isTied: true
    ) { layer, index in
      layer.attention.softcap = softcap
      try change(&layer, index)
    }
    // Rounded as the model was trained.
    model.embedding.scale = Float(model.hiddenSize).squareRoot().rounded(to: config.weightType)
    model.head.softcap = try config.cap("final_logit_softcapping", default: capsByDefault ? 30 : nil)
    return model
  }
}

extension ConfigurationReader {
  fileprivate func gemmaNorm() throws(DecoderError) -> NormStyle {
    .rootMeanSquare(
      epsilon: try epsilon("rms_norm_eps", default: 1e-6), addingOne: !ggufLayout("norms_hold_one"))
  }

  /// What transformers writes for a layer that differs from the others.
  /// - Parameter known: what may be said of it
  fileprivate func ownSettings(
    ofLayer index: Int, known: Set<String>
  ) throws(DecoderError) -> ConfigurationReader? {
    guard let own = values["per_layer_config"]?["\(index)"]?.object else { return nil }
    if let other = own.keys.sorted().first(where: { !known.contains($0) }) {
      throw .unsupportedSetting(
        key: "per_layer_config.\(index).\(other)", value: (own[other] ?? .null).compactText,
        supported: known.sorted().joined(separator: ", "))
    }
    return ConfigurationReader(values: .object(own), hasTensor: hasTensor)
  }

  /// Gemma 4's experts, without their norms and the MLP beside them; nil for a model without experts.
  fileprivate func gemma4Mixture() throws(DecoderError) -> MixtureDescription? {
    guard try flag("enable_moe_block", default: false) else { return nil }
    var mixture = MixtureDescription(
      router: "router.proj", count: try integer("num_experts"), perToken: try integer("top_k_experts"),
      expert: MLPDescription(
        expansion: .gated(gate: "experts.#.gate_proj", up: "experts.#.up_proj"), down: "experts.#.down_proj",
        intermediateSize: try integer("moe_intermediate_size"),
        activation: try activation("hidden_activation", default: "gelu_pytorch_tanh"), hasBias: false))
    mixture.expertFactors = "router.per_expert_scale"
    mixture.loaders = .vLLM
    return mixture
  }

  /// `null` is no cap.
  fileprivate func cap(_ key: String, default fallback: Double?) throws(DecoderError) -> Float? {
    if values[key] == .null { return nil }
    guard values[key] != nil else { return fallback.map { Float($0) } }
    return try factor(key, default: 1)
  }

  fileprivate func gemma4Rotary(headDimension: Int, isSliding: Bool) throws(DecoderError) -> RotaryEmbedding {
    let type = isSliding ? "sliding_attention" : "full_attention"
    guard values["rope_parameters"]?[type] == nil else {
      return try rotaryEmbedding(headDimension: headDimension, RotaryStyle(layerType: type))
    }
    try requireRotary(headDimension)
    return isSliding
      ? RotaryEmbedding(headDimension: headDimension, theta: 10_000)
      : RotaryEmbedding(
        headDimension: headDimension, theta: 1_000_000, scaling: .proportional(share: 0.25, factor: 1))
  }
}

extension LayerDescription {
  fileprivate mutating func addBlockNorms(_ norm: NormStyle) {
    attentionOutputNorm = norm("post_attention_layernorm")
    mlpNorm = norm("pre_feedforward_layernorm")
    mlpOutputNorm = norm("post_feedforward_layernorm")
  }
}
