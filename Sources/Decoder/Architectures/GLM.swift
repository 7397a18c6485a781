extension Architecture {
  /// GLM 4 (0414): norms before the blocks and on what they make, half of every head turned.
  static let glm4 = Architecture(modelTypes: ["glm4"]) { config in
    let norm = NormStyle.rootMeanSquare(
      epsilon: try config.epsilon("rms_norm_eps", default: 1.5625e-7))
    return try .llamaLike(
      config, norm: norm, projectionHasBias: config.flag("attention_bias", default: true), headDimension: 128,
      rotary: RotaryStyle(partial: 0.5, isInterleaved: true)
    ) { layer, _ in
      layer.mlp.expansion = .fused("mlp.gate_up_proj")
      layer.attentionOutputNorm = norm("post_self_attn_layernorm")
      layer.mlpOutputNorm = norm("post_mlp_layernorm")
    }
  }
}
