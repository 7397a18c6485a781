/// Families that have llama's names and layer norms.
extension Architecture {
  /// StableLM 2: a quarter of every head turns.
  static let stableLM = Architecture(modelTypes: ["stablelm"]) { config in
    let epsilon = try config.epsilon("layer_norm_eps", default: 1e-5)
    let isParallel = try config.flag("use_parallel_residual", default: false)
    let normalizesHeads = try config.flag("qk_layernorm", default: false)
    let headNorm = NormStyle.layer(epsilon: epsilon, hasBias: false)
    return try .llamaLike(
      config, norm: .layer(epsilon: epsilon),
      projectionHasBias: config.flag("use_qkv_bias", default: false),
      rotary: RotaryStyle(partial: 0.25)
    ) { layer, _ in
      if normalizesHeads {
        layer.attention.queryNorm = headNorm("self_attn.q_layernorm")
        layer.attention.keyNorm = headNorm("self_attn.k_layernorm")
        layer.attention.headNorm = .ofEachHeadByItsOwnTensor
      }
      guard isParallel else { return }
      layer.arrangement = .parallelSharedNorm
      layer.mlpNorm = nil
    }
  }

  /// StarCoder 2: biases everywhere, an MLP without a gate.
  static let starcoder2 = Architecture(modelTypes: ["starcoder2"]) { config in
    let epsilon = try config.epsilon("norm_epsilon", default: 1e-5)
    let hasBias = try config.flag("use_bias", default: true)
    let window = try config.window()
    return try .llamaLike(
      config, norm: .layer(epsilon: epsilon), projectionHasBias: hasBias, outputHasBias: hasBias,
      mlpHasBias: hasBias, activation: config.activation("hidden_act", default: "gelu_pytorch_tanh"),
      isTied: true
    ) { layer, _ in
      layer.attention.window = window
      layer.mlp.expansion = .plain(up: "mlp.c_fc")
      layer.mlp.down = "mlp.c_proj"
    }
  }

  /// Nemotron 3 and 4, Minitron: layer norms whose weights are stored less 1, squared ReLU.
  static let nemotron = Architecture(modelTypes: ["nemotron"]) { config in
    let epsilon = try config.epsilon("norm_eps", default: 1e-5)
    let hasBias = try config.flag("attention_bias", default: false)
    return try .llamaLike(
      config, norm: .layer(epsilon: epsilon, addingOne: !config.ggufLayout("norms_hold_one")),
      projectionHasBias: hasBias,
      outputHasBias: hasBias, mlpHasBias: config.flag("mlp_bias", default: false),
      activation: config.activation("hidden_act", default: "relu2"),
      rotary: RotaryStyle(partial: 0.5)
    ) { layer, _ in
      layer.mlp.expansion = .plain(up: "mlp.up_proj")
    }
  }
}
