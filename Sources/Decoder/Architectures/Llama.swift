import Compute

extension Architecture {
  /// LLaMA 1 to 3, and everything that kept its layer: SmolLM2, TinyLlama, Yi, …
  static let llama = Architecture(modelTypes: ["llama"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias,
      mlpHasBias: config.flag("mlp_bias", default: false))
  }

  static let mistral = Architecture(
    modelTypes: ["mistral", "ministral3"], wrappers: ["mistral3": ["mistral", "ministral3"]]
  ) { config in
    let window = try config.window()
    var model = try ModelDescription.llamaLike(config) { layer, _ in layer.attention.window = window }
    // Queries grow with their positions beyond those that the model was first trained with.
    if let rope = config.values["rope_parameters"], rope["llama_4_scaling_beta"]?.double ?? 0 != 0 {
      guard let original = rope["original_max_position_embeddings"]?.int, original > 0 else {
        throw DecoderError.missingKey("rope_parameters.original_max_position_embeddings")
      }
      model.maximumSequenceLength = min(model.maximumSequenceLength ?? original, original)
    }
    return model
  }

  /// Arcee's AFM: an MLP without a gate.
  static let arcee = Architecture(modelTypes: ["arcee"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    return try .llamaLike(
      config, norm: .rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-5)),
      projectionHasBias: hasBias, outputHasBias: hasBias,
      mlpHasBias: config.flag("mlp_bias", default: false),
      activation: config.activation("hidden_act", default: "relu2")
    ) { layer, _ in
      layer.mlp.expansion = .plain(up: "mlp.up_proj")
    }
  }

  /// The Swiss AI Initiative's Apertus: queries and keys normalized head by head, an MLP without a gate whose activation has
  /// learned parameters.
  static let apertus = Architecture(modelTypes: ["apertus"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    let norm = try NormStyle.rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-5))
    let filled = config.filled(withRotary: [
      "rope_type": "llama3", "rope_theta": 12_000_000, "factor": 8, "low_freq_factor": 1,
      "high_freq_factor": 4, "original_max_position_embeddings": 8_192,
    ])
    let isLearned = config.values["hidden_act"]?.string ?? "xielu" == "xielu"
    return try .llamaLike(
      filled, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias,
      normalizesHeads: true, activation: isLearned ? .relu : nil,
      rotary: RotaryStyle(defaultTheta: 12_000_000)
    ) { layer, _ in
      layer.attentionNorm = norm("attention_layernorm")
      layer.mlpNorm = norm("feedforward_layernorm")
      layer.mlp.expansion = .plain(up: "mlp.up_proj")
      if isLearned { layer.mlp.xielu = "mlp.act_fn" }
    }
  }

  /// Tencent's Hunyuan, dense: heads are normalized after they have turned.
  static let hunyuan = Architecture(modelTypes: ["hunyuan_v1_dense"]) { try .hunyuanLike($0) }

  static let seedOSS = Architecture(modelTypes: ["seed_oss"]) { config in
    try .llamaLike(
      config, projectionHasBias: config.flag("attention_bias", default: true),
      outputHasBias: config.flag("attention_out_bias", default: false),
      mlpHasBias: config.flag("mlp_bias", default: false), headDimension: 128)
  }

  /// ERNIE 4.5, dense.
  static let ernie = Architecture(modelTypes: ["ernie4_5"]) { config in
    let hasBias = try config.flag("use_bias", default: false)
    return try .llamaLike(
      config, norm: .rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-5)),
      projectionHasBias: hasBias, outputHasBias: hasBias, mlpHasBias: hasBias, headDimension: 128,
      isTied: true, rotary: RotaryStyle(defaultTheta: 500_000, isInterleaved: true))
  }

  /// SmolLM3: every fourth layer knows no positions.
  static let smolLM3 = Architecture(modelTypes: ["smollm3"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    let count = try config.layerCount()
    let isRotated = try config.rotatedLayers(count: count)
    let window = try config.flag("use_sliding_window", default: false) ? config.window() : nil
    let isSliding = try config.slidingLayers(count: count) { !isRotated[$0] }
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias,
      mlpHasBias: config.flag("mlp_bias", default: false), isTied: true,
      rotary: RotaryStyle(defaultTheta: 2_000_000)
    ) { layer, index in
      if !isRotated[index] { layer.attention.positions = .none }
      if isSliding[index] { layer.attention.window = window }
    }
  }

  /// IBM's Granite: factors at every junction.
  static let granite = Architecture(modelTypes: ["granite"]) { try .graniteLike($0) }
}

extension ConfigurationReader {
  /// Which layers have rotary positions: all but every fourth, or as it is said of each.
  func rotatedLayers(count: Int) throws(DecoderError) -> [Bool] {
    let interval = try integer("no_rope_layer_interval", default: 4)
    let listed = values["no_rope_layers"]?.array?.compactMap(\.int) ?? []
    if listed.isEmpty { return (0..<count).map { ($0 + 1) % interval != 0 } }
    guard listed.count >= count else {
      throw .unsupportedSetting(
        key: "no_rope_layers", value: "\(listed.count) values", supported: "a value for every layer")
    }
    return listed.prefix(count).map { $0 != 0 }
  }

  /// A number that is multiplied or divided by.
  func factor(_ key: String, default fallback: Double) throws(DecoderError) -> Float {
    let value = Float(try number(key, default: fallback))
    guard value.isFinite, value > 0 else {
      throw .unsupportedSetting(key: key, value: "\(value)", supported: "a positive number")
    }
    return value
  }

  func epsilon(_ key: String, default fallback: Double) throws(DecoderError) -> Float {
    Float(try number(key, default: fallback))
  }
}

/// What the norms of a model have in common.
struct NormStyle {
  let kind: NormalizationParameters.Kind
  let epsilon: Float
  var hasBias = false
  var addsOne = false

  static func rootMeanSquare(epsilon: Float, addingOne addsOne: Bool = false) -> NormStyle {
    NormStyle(kind: .rootMeanSquare, epsilon: epsilon, addsOne: addsOne)
  }

  static func layer(epsilon: Float, hasBias: Bool = true, addingOne addsOne: Bool = false) -> NormStyle {
    NormStyle(kind: .layer, epsilon: epsilon, hasBias: hasBias, addsOne: addsOne)
  }

  func callAsFunction(_ name: String) -> NormDescription {
    NormDescription(name: name, kind: kind, hasBias: hasBias, epsilon: epsilon, addsOne: addsOne)
  }
}

extension ModelDescription {
  static func graniteLike(
    _ config: ConfigurationReader, change: (inout LayerDescription) throws -> Void = { _ in }
  ) throws -> ModelDescription {
    let hasBias = try config.flag("attention_bias", default: false)
    let residual = try config.factor("residual_multiplier", default: 1)
    let attention = try config.factor("attention_multiplier", default: 1)
    var model = try llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias,
      mlpHasBias: config.flag("mlp_bias", default: false)
    ) { layer, _ in
      layer.residualScale = residual
      layer.attention.scoreScale = attention
      try change(&layer)
    }
    model.embedding.scale = try config.factor("embedding_multiplier", default: 1)
    model.head.scale = try 1 / config.factor("logits_scaling", default: 1)
    return model
  }

  static func hunyuanLike(
    _ config: ConfigurationReader, change: (inout LayerDescription) throws -> Void = { _ in }
  ) throws -> ModelDescription {
    let hasBias = try config.flag("attention_bias", default: false)
    let norm = try NormStyle.rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-5))
    return try llamaLike(config, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias) {
      layer, _ in
      layer.attention.queryNorm = norm("self_attn.query_layernorm")
      layer.attention.keyNorm = norm("self_attn.key_layernorm")
      layer.attention.turnsFirst = true
      try change(&layer)
    }
  }

  /// The layer that llama made common: RMS norms before, rotary positions, grouped queries, a gated MLP.
  /// - Parameters:
  ///   - norm: of every norm; RMS if nil
  ///   - normalizesHeads: whether queries and keys are normalized, each head on its own
  ///   - activation: of the MLP, if another key than `hidden_act` names it
  ///   - headDimension: where config.json has none, if it is not that of heads that share the hidden size
  ///   - isTied: whether the head is that of the embeddings where config.json does not say
  ///   - rotary: of the positions
  ///   - change: makes of the common layer that with the given index
  static func llamaLike(
    _ config: ConfigurationReader, norm: NormStyle? = nil,
    projectionHasBias: Bool = false, outputHasBias: Bool = false, mlpHasBias: Bool = false,
    normalizesHeads: Bool = false, activation: ActivationFunction? = nil, headDimension: Int? = nil,
    isTied: Bool = false, rotary: RotaryStyle = RotaryStyle(),
    change: (_ layer: inout LayerDescription, _ index: Int) throws -> Void = { _, _ in }
  ) throws -> ModelDescription {
    let hiddenSize = try config.integer("hidden_size")
    let heads = try config.integer("num_attention_heads")
    let headDimension = try config.integer("head_dim", default: headDimension ?? hiddenSize / heads)
    let norm = try norm ?? .rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-6))
    let prefix = config.prefix(
      "model.", "model.language_model.", "language_model.model.", "", holding: "embed_tokens.weight")
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
      positions: .rotary(try config.rotaryEmbedding(headDimension: headDimension, rotary)),
      queryNorm: normalizesHeads ? norm("self_attn.q_norm") : nil,
      keyNorm: normalizesHeads ? norm("self_attn.k_norm") : nil)
    let mlp = MLPDescription(
      expansion: .gated(gate: "mlp.gate_proj", up: "mlp.up_proj"),
      down: "mlp.down_proj",
      intermediateSize: try config.integer("intermediate_size"),
      activation: try activation ?? config.activation("hidden_act", default: "silu"),
      hasBias: mlpHasBias)
    let layer = LayerDescription(
      prefix: prefix + "layers.",
      attention: attention,
      mlp: mlp,
      attentionNorm: norm("input_layernorm"),
      mlpNorm: norm("post_attention_layernorm"))
    return ModelDescription(
      modelType: try config.modelType,
      hiddenSize: hiddenSize,
      vocabularySize: try config.integer("vocab_size"),
      maximumSequenceLength: try config.integer("max_position_embeddings", default: 2_048),
      embedding: EmbeddingDescription(tokens: embeddings, width: hiddenSize),
      layers: try (0..<config.layerCount()).map { index in
        var layer = layer
        try change(&layer, index)
        return layer
      },
      head: HeadDescription(
        norm: norm(prefix + "norm"),
        weights: try config.headWeights(embeddings: embeddings, tiedByDefault: isTied),
        width: hiddenSize))
  }
}
