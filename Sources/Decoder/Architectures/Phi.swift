extension Architecture {
  /// Phi 1, 1.5 and 2: attention and MLP side by side behind one layer norm, half of every head turned, biases everywhere,
  /// the head's included.
  static let phi = Architecture(modelTypes: ["phi"]) { config in
    let norm = try NormStyle.layer(epsilon: config.epsilon("layer_norm_eps", default: 1e-5))
    let normalizesHeads = try config.flag("qk_layernorm", default: false)
    var model = try ModelDescription.llamaLike(
      config, norm: norm, projectionHasBias: true, outputHasBias: true, mlpHasBias: true,
      activation: config.activation("hidden_act", default: "gelu_new"), rotary: RotaryStyle(partial: 0.5)
    ) { layer, _ in
      layer.arrangement = .parallelSharedNorm
      layer.mlpNorm = nil
      layer.attention.output = "self_attn.dense"
      layer.mlp.expansion = .plain(up: "mlp.fc1")
      layer.mlp.down = "mlp.fc2"
      if normalizesHeads {
        layer.attention.queryNorm = norm("self_attn.q_layernorm")
        layer.attention.keyNorm = norm("self_attn.k_layernorm")
      }
    }
    let prefix = config.prefix("model.", "", holding: "embed_tokens.weight")
    model.head.norm = norm(prefix + "final_layernorm")
    model.head.bias = "lm_head.bias"
    return model
  }

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
