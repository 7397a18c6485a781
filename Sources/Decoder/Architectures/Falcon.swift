extension Architecture {
  /// Falcon: 7b (multi-query, parallel), 40b and 180b (grouped queries, two norms), 11b (grouped
  /// queries, one norm) and the RefinedWeb models (alibi, sequential).
  static let falcon = Architecture(modelTypes: ["falcon", "RefinedWeb", "RefinedWebModel"]) { config in
    let hiddenSize = try config.integer("hidden_size")
    let heads = try config.integer("num_attention_heads", "n_head")
    let headDimension = hiddenSize / heads
    let isNewDecoder = try config.flag("new_decoder_architecture", default: false)
    let isParallel = try isNewDecoder || config.flag("parallel_attn", default: true)
    let isMultiQuery = try config.flag("multi_query", default: true)
    let hasBias = try config.flag("bias", default: false)
    let epsilon = Float(try config.number("layer_norm_epsilon", default: 1e-5))
    // The first new decoders had two norms and no key that said so.
    let hasTwoNorms = try isNewDecoder && config.integer("num_ln_in_parallel_attn", default: 2) == 2
    let isAlibi = try config.flag("alibi", default: false)
    let keyValueHeads =
      isNewDecoder
      ? try config.integer("num_kv_heads", "n_head_kv", default: heads) : (isMultiQuery ? 1 : heads)
    let prefix = config.prefix("transformer.", "", holding: "word_embeddings.weight")
    let embeddings = prefix + "word_embeddings.weight"

    let arrangement: LayerDescription.Arrangement =
      hasTwoNorms ? .parallelSeparateNorms : isParallel ? .parallelSharedNorm : .sequential
    let mlpNorm: String? =
      switch arrangement {
      case .sequential: "post_attention_layernorm"
      case .parallelSharedNorm: nil
      case .parallelSeparateNorms: "ln_mlp"
      }
    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.layerCount("num_hidden_layers", "n_layer"),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: isAlibi ? nil : try config.integer("max_position_embeddings", default: 2_048),
      embedding: EmbeddingDescription(tokens: embeddings, width: hiddenSize),
      layer: LayerDescription(
        prefix: prefix + "h.",
        attention: AttentionDescription(
          heads: heads,
          keyValueHeads: keyValueHeads,
          headDimension: headDimension,
          projection: .fused("self_attention.query_key_value", config.fusedRows),
          output: "self_attention.dense",
          projectionHasBias: hasBias,
          outputHasBias: hasBias,
          positions: isAlibi
            ? .alibi(Alibi(heads: heads, isScaledWithScores: true))
            : .rotary(try config.rotaryEmbedding(headDimension: headDimension))),
        mlp: MLPDescription(
          expansion: .plain(up: "mlp.dense_h_to_4h"),
          down: "mlp.dense_4h_to_h",
          intermediateSize: try config.integer("ffn_hidden_size", default: 4 * hiddenSize),
          activation: try config.activation("activation", default: "gelu"),
          hasBias: hasBias),
        attentionNorm: .layer(hasTwoNorms ? "ln_attn" : "input_layernorm", epsilon: epsilon),
        mlpNorm: mlpNorm.map { .layer($0, epsilon: epsilon) },
        arrangement: arrangement),
      head: HeadDescription(
        norm: .layer(prefix + "ln_f", epsilon: epsilon),
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: true),
        width: hiddenSize))
  }
}
