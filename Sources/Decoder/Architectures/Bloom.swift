extension Architecture {
  /// BLOOM and BLOOMZ: alibi, a norm after the embeddings, queries, keys and values fused head by head.
  static let bloom = Architecture(modelTypes: ["bloom"]) { config in
    let hiddenSize = try config.integer("hidden_size", "n_embed")
    let heads = try config.integer("n_head", "num_attention_heads")
    let epsilon = Float(try config.number("layer_norm_epsilon", default: 1e-5))
    try config.require("apply_residual_connection_post_layernorm", false, default: false)
    let prefix = config.prefix("transformer.", "", holding: "word_embeddings.weight")
    let embeddings = prefix + "word_embeddings.weight"

    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.layerCount("n_layer", "num_hidden_layers"),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: nil,
      embedding: EmbeddingDescription(
        tokens: embeddings,
        width: hiddenSize,
        norm: .layer(prefix + "word_embeddings_layernorm", epsilon: epsilon)),
      layer: LayerDescription(
        prefix: prefix + "h.",
        attention: AttentionDescription(
          heads: heads,
          keyValueHeads: heads,
          headDimension: hiddenSize / heads,
          projection: .fused("self_attention.query_key_value", config.fusedRows),
          output: "self_attention.dense",
          projectionHasBias: true,
          outputHasBias: true,
          positions: .alibi(Alibi(heads: heads))),
        mlp: MLPDescription(
          expansion: .plain(up: "mlp.dense_h_to_4h"),
          down: "mlp.dense_4h_to_h",
          intermediateSize: 4 * hiddenSize,
          activation: .geluTanh,
          hasBias: true),
        attentionNorm: .layer("input_layernorm", epsilon: epsilon),
        mlpNorm: .layer("post_attention_layernorm", epsilon: epsilon)),
      head: HeadDescription(
        norm: .layer(prefix + "ln_f", epsilon: epsilon),
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: true),
        width: hiddenSize))
  }
}
