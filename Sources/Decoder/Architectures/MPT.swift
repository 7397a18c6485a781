import Checkpoint

extension Architecture {
  /// MosaicML's MPT: alibi, layer norms and linears without biases.
  static let mpt = Architecture(modelTypes: ["mpt"]) { config in
    let hiddenSize = try config.integer("d_model", "hidden_size")
    let heads = try config.integer("n_heads", "num_attention_heads")
    let norm = try NormStyle.layer(
      epsilon: config.epsilon("layer_norm_epsilon", default: 1e-5), hasBias: false)
    try config.require("no_bias", true, default: true)
    let prefix = config.prefix("transformer.", "", holding: "wte.weight")
    let embeddings = prefix + "wte.weight"
    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.layerCount("n_layers", "num_hidden_layers"),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: try config.integer("max_seq_len", default: 2_048),
      embedding: EmbeddingDescription(tokens: embeddings, width: hiddenSize),
      layer: LayerDescription(
        prefix: prefix + "blocks.",
        attention: try config.mptAttention(heads: heads, headDimension: hiddenSize / heads),
        mlp: MLPDescription(
          expansion: .plain(up: "ffn.up_proj"), down: "ffn.down_proj",
          intermediateSize: try config.integer("expansion_ratio", default: 4) * hiddenSize,
          activation: .gelu, hasBias: false),
        attentionNorm: norm("norm_1"), mlpNorm: norm("norm_2")),
      head: HeadDescription(
        norm: norm(prefix + "norm_f"),
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: true),
        width: hiddenSize))
  }
}

extension ConfigurationReader {
  /// Of `attn_config`.
  fileprivate func mptAttention(heads: Int, headDimension: Int) throws -> AttentionDescription {
    let settings = ConfigurationReader(
      values: values["attn_config"] ?? .object([:]), hasTensor: hasTensor)
    try settings.require("alibi", true, default: true)
    try settings.require("prefix_lm", false, default: false)
    try settings.require("qk_ln", false, default: false)
    let largest = try settings.integer("alibi_bias_max", default: 8)
    guard largest == 8 else {
      throw DecoderError.unsupportedSetting(
        key: "attn_config.alibi_bias_max", value: "\(largest)", supported: "8")
    }
    try settings.requireNames(["attn_type": ["multihead_attention"]])
    var attention = AttentionDescription(
      heads: heads, keyValueHeads: heads, headDimension: headDimension,
      projection: .fused("attn.Wqkv", .blocks), output: "attn.out_proj", projectionHasBias: false,
      outputHasBias: false, positions: .alibi(Alibi(heads: heads)))
    let clip = try settings.number("clip_qkv", default: 0)
    if clip != 0 { attention.clip = try settings.factor("clip_qkv", default: 1) }
    if settings.values["softmax_scale"] ?? .null != .null {
      attention.scoreScale = try settings.factor("softmax_scale", default: 1)
    }
    return attention
  }
}
