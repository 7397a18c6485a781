extension Architecture {
  /// OPT, 125m to 175b: learned positions; 350m alone normalises after each half and projects its
  /// embeddings to another width.
  static let opt = Architecture(modelTypes: ["opt"]) { config in
    let hiddenSize = try config.integer("hidden_size")
    let heads = try config.integer("num_attention_heads")
    let width = try config.integer("word_embed_proj_dim", default: hiddenSize)
    let positions = try config.integer("max_position_embeddings", default: 2_048)
    let hasBias = try config.flag("enable_bias", default: true)
    let normFirst = try config.flag("do_layer_norm_before", default: true)
    let hasFinalNorm = try normFirst && !config.flag("_remove_final_layer_norm", default: false)
    try config.require("layer_norm_elementwise_affine", true, default: true)
    let epsilon: Float = 1e-5
    let prefix = config.prefix("model.decoder.", "decoder.", holding: "embed_tokens.weight")
    let embeddings = prefix + "embed_tokens.weight"

    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.layerCount(),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: positions,
      embedding: EmbeddingDescription(
        tokens: embeddings,
        width: width,
        // Two rows stand before position 0, from the padding index of fairseq.
        positions: LearnedPositions(
          name: prefix + "embed_positions.weight", count: positions + 2, offset: 2),
        projection: width == hiddenSize ? nil : prefix + "project_in.weight"),
      layer: LayerDescription(
        prefix: prefix + "layers.",
        attention: AttentionDescription(
          heads: heads,
          keyValueHeads: heads,
          headDimension: hiddenSize / heads,
          projection: .separate(
            query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj"),
          output: "self_attn.out_proj",
          projectionHasBias: hasBias,
          outputHasBias: hasBias,
          positions: .none),
        mlp: MLPDescription(
          expansion: .plain(up: "fc1"),
          down: "fc2",
          intermediateSize: try config.integer("ffn_dim"),
          activation: try config.activation("activation_function", default: "relu"),
          hasBias: hasBias),
        attentionNorm: .layer("self_attn_layer_norm", epsilon: epsilon),
        mlpNorm: .layer("final_layer_norm", epsilon: epsilon),
        placement: normFirst ? .before : .after),
      head: HeadDescription(
        norm: hasFinalNorm ? .layer(prefix + "final_layer_norm", epsilon: epsilon) : nil,
        projection: width == hiddenSize ? nil : prefix + "project_out.weight",
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: true),
        width: width))
  }
}
