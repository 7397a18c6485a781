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
    let count = try config.integer("num_hidden_layers")
    let isSliding = try config.slidingLayers(count: count) { $0 % 2 == 0 }
    let window = try config.window(default: 4_096)
    return try .gemmaLike(config, capsByDefault: true) { layer, index in
      layer.attention.window = isSliding[index] ? window : nil
      try config.addBlockNorms(to: &layer)
    }
  }

  /// Gemma 3's text model: heads normalized, positions of their own in layers that see all.
  static let gemma3 = Architecture(modelTypes: ["gemma3_text"]) { config in
    let count = try config.integer("num_hidden_layers")
    let pattern = try config.integer("sliding_window_pattern", default: 6)
    let isSliding = try config.slidingLayers(count: count) { ($0 + 1) % pattern != 0 }
    let window = try config.window(default: 4_096)
    return try .gemmaLike(config, normalizesHeads: true) { layer, index in
      layer.attention.window = isSliding[index] ? window : nil
      layer.attention.positions = .rotary(
        try config.gemma3Rotary(
          headDimension: layer.attention.headDimension, isSliding: isSliding[index]))
      try config.addBlockNorms(to: &layer)
    }
  }
}

extension ModelDescription {
  fileprivate static func gemmaLike(
    _ config: ConfigurationReader, normalizesHeads: Bool = false, capsByDefault: Bool = false,
    change: (inout LayerDescription, Int) throws -> Void
  ) throws -> ModelDescription {
    try config.require("use_bidirectional_attention", false, default: false)
    let hasBias = try config.flag("attention_bias", default: false)
    let hasQueryScale = try config.modelType != "gemma"
    let softcap = try config.cap("attn_logit_softcapping", default: capsByDefault ? 50 : nil)
    var model = try llamaLike(
      config, norm: config.gemmaNorm(), projectionHasBias: hasBias, outputHasBias: hasBias,
      normalizesHeads: normalizesHeads,
      activation: config.activation("hidden_activation", default: "gelu_pytorch_tanh"), headDimension: 256,
      isTied: true
    ) { layer, index in
      if hasQueryScale {
        layer.attention.scoreScale =
          1 / (try config.factor("query_pre_attn_scalar", default: 256)).squareRoot()
      }
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
    .rootMeanSquare(epsilon: try epsilon("rms_norm_eps", default: 1e-6), addingOne: true)
  }

  /// `null` is no cap.
  fileprivate func cap(_ key: String, default fallback: Double?) throws(DecoderError) -> Float? {
    if values[key] == .null { return nil }
    guard values[key] != nil else { return fallback.map { Float($0) } }
    return try factor(key, default: 1)
  }

  fileprivate func addBlockNorms(to layer: inout LayerDescription) throws {
    let norm = try gemmaNorm()
    layer.attentionOutputNorm = norm("post_attention_layernorm")
    layer.mlpNorm = norm("pre_feedforward_layernorm")
    layer.mlpOutputNorm = norm("post_feedforward_layernorm")
  }

  /// An entry of `rope_parameters` for every kind of layer, or, as published, a theta of their own for layers with a
  /// window, which the scaling is not for.
  fileprivate func gemma3Rotary(headDimension: Int, isSliding: Bool) throws(DecoderError) -> RotaryEmbedding {
    let type = isSliding ? "sliding_attention" : "full_attention"
    if values["rope_parameters"]?[type] != nil || !isSliding {
      return try rotaryEmbedding(
        headDimension: headDimension,
        RotaryStyle(defaultTheta: isSliding ? 10_000 : 1_000_000, layerType: type))
    }
    return RotaryEmbedding(
      headDimension: headDimension, theta: try number("rope_local_base_freq", default: 10_000))
  }
}
