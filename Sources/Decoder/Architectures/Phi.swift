extension Architecture {
  /// Phi 3 and 4: llama's layer with fused projections.
  static let phi3 = Architecture(modelTypes: ["phi3"]) { config in
    let window = try config.window()
    return try .llamaLike(
      config, norm: .rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-5)),
      rotary: RotaryStyle(partial: 1)
    ) { layer, _ in
      layer.attention.projection = .fused("self_attn.qkv_proj", .blocks)
      layer.attention.window = window
      layer.mlp.expansion = .fused("mlp.gate_up_proj")
    }
  }
}
