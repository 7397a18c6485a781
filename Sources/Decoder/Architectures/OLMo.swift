extension Architecture {
  /// OLMo 2: norms on what the blocks make and none before, queries and keys normalized as a whole.
  static let olmo2 = Architecture(modelTypes: ["olmo2"]) { config in
    try .olmoLike(config) { _, _ in }
  }

  /// OLMo 3: three of four layers see a window, and positions are scaled in the fourth alone.
  static let olmo3 = Architecture(modelTypes: ["olmo3"]) { config in
    let isSliding = try config.slidingLayers(count: config.layerCount()) { ($0 + 1) % 4 != 0 }
    let window = try config.window(default: 4_096)
    return try .olmoLike(config) { layer, index in
      layer.attention.window = isSliding[index] ? window : nil
      layer.attention.positions = .rotary(
        try config.rotaryEmbedding(
          headDimension: layer.attention.headDimension, isSliding: isSliding[index], defaultTheta: 500_000,
          slidingTheta: (key: "rope_theta", fallback: 500_000)))
    }
  }

  /// EXAONE 4: OLMo's norms, Qwen's heads; the layers that see all know no positions where others have a window.
  static let exaone4 = Architecture(modelTypes: ["exaone4"]) { config in
    let hasWindow = try config.window(default: 4_096) != nil
    let pattern = config.values["sliding_window_pattern"]
    let interval = pattern?.int ?? pattern?.string?.count ?? 4
    let windows = try config.windows(default: 4_096) { interval > 0 && ($0 + 1) % interval != 0 }
    return try .llamaLike(config, norm: config.olmoNorm(), normalizesHeads: true) { layer, index in
      try config.moveNormsToOutputs(of: &layer)
      if hasWindow { layer.attention.see(windowOrAllWithoutPositions: windows[index]) }
    }
  }
}

extension ModelDescription {
  fileprivate static func olmoLike(
    _ config: ConfigurationReader, change: (inout LayerDescription, Int) throws -> Void
  ) throws -> ModelDescription {
    let hasBias = try config.flag("attention_bias", default: false)
    return try llamaLike(
      config, norm: config.olmoNorm(), projectionHasBias: hasBias, outputHasBias: hasBias,
      normalizesHeads: true,
      rotary: RotaryStyle(layerType: "full_attention")
    ) { layer, index in
      layer.attention.headNorm = .ofWhole
      try config.moveNormsToOutputs(of: &layer)
      try change(&layer, index)
    }
  }
}

extension ConfigurationReader {
  fileprivate func olmoNorm() throws(DecoderError) -> NormStyle {
    .rootMeanSquare(epsilon: try epsilon("rms_norm_eps", default: 1e-5))
  }

  fileprivate func moveNormsToOutputs(of layer: inout LayerDescription) throws {
    let norm = try olmoNorm()
    layer.attentionNorm = nil
    layer.mlpNorm = nil
    layer.attentionOutputNorm = norm("post_attention_layernorm")
    layer.mlpOutputNorm = norm("post_feedforward_layernorm")
  }
}
