extension Architecture {
  /// GPT-NeoX and Pythia: attention and MLP side by side, each behind a norm of its own, a quarter of every head turned.
  static let gptNeoX = Architecture(modelTypes: ["gpt_neox"]) { config in
    let hiddenSize = try config.integer("hidden_size")
    let heads = try config.integer("num_attention_heads")
    let hasBias = try config.flag("attention_bias", default: true)
    let isParallel = try config.flag("use_parallel_residual", default: true)
    let epsilon = try config.epsilon("layer_norm_eps", default: 1e-5)
    let prefix = config.prefix("gpt_neox.", "model.", "", holding: "embed_in.weight")
    let embeddings = prefix + "embed_in.weight"

    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.layerCount(),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: try config.integer("max_position_embeddings", default: 2_048),
      embedding: EmbeddingDescription(tokens: embeddings, width: hiddenSize),
      layer: LayerDescription(
        prefix: prefix + "layers.",
        attention: AttentionDescription(
          heads: heads,
          keyValueHeads: heads,
          headDimension: hiddenSize / heads,
          projection: .fused("attention.query_key_value", config.fusedRows),
          output: "attention.dense",
          projectionHasBias: hasBias,
          outputHasBias: hasBias,
          positions: .rotary(
            try config.rotaryEmbedding(
              headDimension: hiddenSize / heads,
              RotaryStyle(
                defaultTheta: config.number("rotary_emb_base", default: 10_000),
                partial: config.number("rotary_pct", default: 0.25))))),
        mlp: MLPDescription(
          expansion: .plain(up: "mlp.dense_h_to_4h"),
          down: "mlp.dense_4h_to_h",
          intermediateSize: try config.integer("intermediate_size"),
          activation: try config.activation("hidden_act", default: "gelu"),
          hasBias: true),
        attentionNorm: .layer("input_layernorm", epsilon: epsilon),
        mlpNorm: .layer("post_attention_layernorm", epsilon: epsilon),
        arrangement: isParallel ? .parallelSeparateNorms : .sequential),
      head: HeadDescription(
        norm: .layer(prefix + "final_layer_norm", epsilon: epsilon),
        weights: try config.headWeights("embed_out.weight", embeddings: embeddings, tiedByDefault: false),
        width: hiddenSize))
  }
}
