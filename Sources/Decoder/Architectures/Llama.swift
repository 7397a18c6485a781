extension Architecture {
  /// LLaMA 1 to 3, and everything that kept its layer: SmolLM2, TinyLlama, Yi, …
  static let llama = Architecture(modelTypes: ["llama"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias,
      mlpHasBias: config.flag("mlp_bias", default: false))
  }

  static let mistral = Architecture(modelTypes: ["mistral"]) { config in
    try .llamaLike(config, isWindowed: true)
  }
}

extension ModelDescription {
  /// The layer that llama made common: RMS norms before, rotary positions, grouped queries, a gated MLP.
  static func llamaLike(
    _ config: ConfigurationReader, projectionHasBias: Bool = false, outputHasBias: Bool = false,
    mlpHasBias: Bool = false, normalizesHeads: Bool = false, isWindowed: Bool = false
  ) throws(DecoderError) -> ModelDescription {
    let hiddenSize = try config.integer("hidden_size")
    let heads = try config.integer("num_attention_heads")
    let headDimension = try config.integer("head_dim", default: hiddenSize / heads)
    let epsilon = Float(try config.number("rms_norm_eps", default: 1e-6))
    let prefix = config.prefix("model.", "", holding: "embed_tokens.weight")
    let embeddings = prefix + "embed_tokens.weight"

    let attention = AttentionDescription(
      heads: heads,
      keyValueHeads: try config.integer("num_key_value_heads", default: heads),
      headDimension: headDimension,
      projection: .separate(
        query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj"),
      output: "self_attn.o_proj",
      projectionHasBias: projectionHasBias,
      outputHasBias: outputHasBias,
      positions: .rotary(try config.rotaryEmbedding(headDimension: headDimension)),
      queryNorm: normalizesHeads ? .rootMeanSquare("self_attn.q_norm", epsilon: epsilon) : nil,
      keyNorm: normalizesHeads ? .rootMeanSquare("self_attn.k_norm", epsilon: epsilon) : nil)
    let mlp = MLPDescription(
      expansion: .gated(gate: "mlp.gate_proj", up: "mlp.up_proj"),
      down: "mlp.down_proj",
      intermediateSize: try config.integer("intermediate_size"),
      activation: try config.activation("hidden_act", default: "silu"),
      hasBias: mlpHasBias)
    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.integer("num_hidden_layers"),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: try config.windowedSequenceLength(
        isWindowed: isWindowed, maximum: config.integer("max_position_embeddings", default: 2_048)),
      embedding: EmbeddingDescription(tokens: embeddings, width: hiddenSize),
      layer: LayerDescription(
        prefix: prefix + "layers.",
        attention: attention,
        mlp: mlp,
        attentionNorm: .rootMeanSquare("input_layernorm", epsilon: epsilon),
        mlpNorm: .rootMeanSquare("post_attention_layernorm", epsilon: epsilon)),
      head: HeadDescription(
        norm: .rootMeanSquare(prefix + "norm", epsilon: epsilon),
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: false),
        width: hiddenSize))
  }
}
