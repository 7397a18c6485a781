import Checkpoint

/// What OpenAI's GPT-2 began: `transformer.wte`, blocks `h`, `ln_f`.
extension Architecture {
  /// GPT-2: learned positions; every linear is stored the other way round.
  static let gpt2 = Architecture(modelTypes: ["gpt2"]) { config in
    try config.require("add_cross_attention", false, default: false)
    let scalesScores = try config.flag("scale_attn_weights", default: true)
    let scalesByLayer = try config.flag("scale_attn_by_inverse_layer_idx", default: false)
    var model = try ModelDescription.gpt(
      config, isTied: true, learnsPositions: true, mlpNorm: "ln_2"
    ) { heads, dimension in
      AttentionDescription(
        heads: heads, keyValueHeads: heads, headDimension: dimension,
        projection: .fused("attn.c_attn", .blocks), output: "attn.c_proj", projectionHasBias: true,
        outputHasBias: true, positions: .none)
    }
    for index in model.layers.indices {
      if !scalesScores { model.layers[index].attention.scoreScale = 1 }
      if scalesByLayer { model.layers[index].attention.scoreScale /= Float(index + 1) }
      model.layers[index].mlp.expansion = .plain(up: "mlp.c_fc")
      model.layers[index].mlp.down = "mlp.c_proj"
    }
    return model
  }

  /// GPT-J: attention and MLP side by side behind one norm, the first elements of every head turned in neighbouring pairs.
  static let gptJ = Architecture(modelTypes: ["gptj"]) { config in
    let turned = try config.integer("rotary_dim", default: 64)
    try config.requireRotary(turned)
    var model = try ModelDescription.gpt(
      config, isTied: false, learnsPositions: false, mlpNorm: nil
    ) { heads, dimension in
      guard turned <= dimension else {
        throw DecoderError.unsupportedSetting(
          key: "rotary_dim", value: "\(turned)", supported: "up to the \(dimension) of a head")
      }
      return AttentionDescription(
        heads: heads, keyValueHeads: heads, headDimension: dimension,
        projection: .separate(query: "attn.q_proj", key: "attn.k_proj", value: "attn.v_proj"),
        output: "attn.out_proj", projectionHasBias: false, outputHasBias: false,
        positions: .rotary(RotaryEmbedding(headDimension: turned, theta: 10_000, isInterleaved: true)))
    }
    for index in model.layers.indices { model.layers[index].arrangement = .parallelSharedNorm }
    model.head.bias = "lm_head.bias"
    return model
  }
}

extension ModelDescription {
  fileprivate static func gpt(
    _ config: ConfigurationReader, isTied: Bool, learnsPositions: Bool, mlpNorm: String?,
    attention: (_ heads: Int, _ dimension: Int) throws -> AttentionDescription
  ) throws -> ModelDescription {
    let hiddenSize = try config.integer("n_embd", "hidden_size")
    let heads = try config.integer("n_head", "num_attention_heads")
    let norm = try NormStyle.layer(epsilon: config.epsilon("layer_norm_epsilon", default: 1e-5))
    let prefix = config.prefix("transformer.", "", holding: "wte.weight")
    let embeddings = prefix + "wte.weight"
    let positions = try config.integer("n_positions", "max_position_embeddings", default: 1_024)
    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      layerCount: try config.layerCount("n_layer", "num_hidden_layers"),
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: positions,
      embedding: EmbeddingDescription(
        tokens: embeddings, width: hiddenSize,
        positions: learnsPositions
          ? LearnedPositions(name: prefix + "wpe.weight", count: positions, offset: 0) : nil),
      layer: LayerDescription(
        prefix: prefix + "h.",
        attention: try attention(heads, hiddenSize / heads),
        mlp: MLPDescription(
          expansion: .plain(up: "mlp.fc_in"), down: "mlp.fc_out",
          intermediateSize: try config.integer("n_inner", default: 4 * hiddenSize),
          activation: try config.activation("activation_function", default: "gelu_new"), hasBias: true),
        attentionNorm: norm("ln_1"), mlpNorm: mlpNorm.map { norm($0) }),
      head: HeadDescription(
        norm: norm(prefix + "ln_f"),
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: isTied),
        width: hiddenSize))
  }
}
