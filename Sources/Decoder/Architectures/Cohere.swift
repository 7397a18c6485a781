extension Architecture {
  /// Command R: attention and MLP side by side behind one layer norm without a bias, scaled logits.
  static let cohere = Architecture(modelTypes: ["cohere"]) { config in
    let norm = try NormStyle.layer(epsilon: config.epsilon("layer_norm_eps", default: 1e-5), hasBias: false)
    // Command R+.
    let normalizesHeads = try config.flag("use_qk_norm", default: false)
    return try .cohereLike(config) { layer, _ in
      guard normalizesHeads else { return }
      layer.attention.queryNorm = norm("self_attn.q_norm")
      layer.attention.keyNorm = norm("self_attn.k_norm")
      layer.attention.headNorm = .ofEachHeadByItsOwn
    }
  }

  /// Command R7B and A: three of four layers see a window, the fourth all and knows no positions.
  static let cohere2 = Architecture(modelTypes: ["cohere2"]) { config in
    let pattern = try config.integer("sliding_window_pattern", default: 4)
    let windows = try config.windows(default: 4_096) { ($0 + 1) % pattern != 0 }
    return try .cohereLike(config) { layer, index in
      layer.attention.see(windowOrAllWithoutPositions: windows[index])
    }
  }
}

extension ModelDescription {
  fileprivate static func cohereLike(
    _ config: ConfigurationReader, change: (inout LayerDescription, Int) throws -> Void
  ) throws -> ModelDescription {
    let hasBias = try config.flag("attention_bias", default: false)
    let epsilon = try config.epsilon("layer_norm_eps", default: 1e-5)
    var model = try llamaLike(
      config, norm: .layer(epsilon: epsilon, hasBias: false), projectionHasBias: hasBias,
      outputHasBias: hasBias, isTied: true,
      rotary: RotaryStyle(isInterleaved: true)
    ) { layer, index in
      layer.arrangement = .parallelSharedNorm
      layer.mlpNorm = nil
      try change(&layer, index)
    }
    model.head.scale = try config.factor("logit_scale", default: 0.0625)
    return model
  }
}
