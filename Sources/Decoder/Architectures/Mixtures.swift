import Compute

/// Families whose MLP is a mixture of experts.
extension Architecture {
  /// Mixtral.
  static let mixtral = Architecture(modelTypes: ["mixtral"]) { config in
    let norm = NormStyle.rootMeanSquare(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let window = try config.window()
    let mixture = MixtureDescription(
      router: "block_sparse_moe.gate", count: try config.integer("num_local_experts", default: 8),
      perToken: try config.integer("num_experts_per_tok", default: 2), expert: try config.blockSparseExpert())
    return try .llamaLike(config, norm: norm) { layer, _ in
      layer.attention.window = window
      try layer.mix(mixture)
    }
  }

  /// MiniMax M2: a norm over all heads of queries and of keys, half of every head turned.
  static let minimaxM2 = Architecture(modelTypes: ["minimax_m2"]) { config in
    var mixture = MixtureDescription(
      router: "block_sparse_moe.gate", count: try config.integer("num_local_experts", default: 256),
      perToken: try config.integer("num_experts_per_tok", default: 8), scoring: .sigmoid,
      correction: "block_sparse_moe.e_score_correction_bias", expert: try config.blockSparseExpert())
    let headDimension = try config.integer("head_dim", default: 128)
    let rotated = try config.integer("rotary_dim", default: headDimension)
    return try .llamaLike(
      config, normalizesHeads: true, headDimension: 128,
      rotary: RotaryStyle(defaultTheta: 5_000_000, partial: Double(rotated) / Double(headDimension))
    ) { layer, _ in
      layer.attention.headNorm = .ofWhole
      try layer.mix(mixture)
    }
  }

  /// OLMoE: llama's layer with a norm over all queries and over all keys.
  static let olmoe = Architecture(modelTypes: ["olmoe"]) { config in
    let norm = NormStyle.rootMeanSquare(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let hasBias = try config.flag("attention_bias", default: false)
    try config.refuse("clip_qkv")
    let mixture = try config.mixture(width: "intermediate_size")
    return try .llamaLike(
      config, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias, normalizesHeads: true
    ) { layer, _ in
      layer.attention.headNorm = .ofWhole
      try layer.mix(mixture)
    }
  }

  /// Qwen 1.5 and 2 with experts, and one that every token goes through.
  static let qwen2MoE = Architecture(modelTypes: ["qwen2_moe"]) { config in
    let windows = try config.qwenWindows()
    var mixture = try config.mixture()
    try mixture.share("mlp.shared_expert", width: config.integer("shared_expert_intermediate_size"))
    mixture.sharedGate = "mlp.shared_expert_gate"
    let isSparse = try config.sparseLayers()
    let hasBias = try config.flag("qkv_bias", default: true)
    return try .llamaLike(config, projectionHasBias: hasBias) { layer, index in
      layer.attention.window = windows[index]
      if isSparse[index] { try layer.mix(mixture) }
    }
  }

  /// Qwen 3 with experts.
  static let qwen3MoE = Architecture(modelTypes: ["qwen3_moe"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    let window = try config.flag("use_sliding_window", default: false) ? config.window(default: 4_096) : nil
    let mixture = try config.mixture()
    let isSparse = try config.sparseLayers()
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias, normalizesHeads: true
    ) { layer, index in
      layer.attention.window = window
      if isSparse[index] { try layer.mix(mixture) }
    }
  }

  /// ERNIE 4.5 with experts, between a first and a last layer that have some.
  static let ernieMoE = Architecture(modelTypes: ["ernie4_5_moe"]) { config in
    let norm = NormStyle.rootMeanSquare(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let hasBias = try config.flag("use_bias", default: false)
    var mixture = try config.mixture(
      count: "moe_num_experts", perToken: "moe_k", renormalizes: true, hasBias: hasBias)
    mixture.correction = "mlp.moe_statics.e_score_correction_bias"
    mixture.correctionIsMatrix = true
    mixture.smallestSum = try config.factor("moe_norm_min", default: 1e-12)
    try mixture.share(
      "mlp.shared_experts", count: config.count("moe_num_shared_experts", default: 2))
    let layers = try config.layerCount()
    let first = try config.count("moe_layer_start_index", default: 1)
    let last = config.values["moe_layer_end_index"]?.int ?? -1
    let interval = try config.integer("moe_layer_interval", default: 1)
    return try .llamaLike(
      config, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias, mlpHasBias: hasBias,
      isTied: true, rotary: RotaryStyle(defaultTheta: 500_000, isInterleaved: true)
    ) { layer, index in
      let end = last < 0 ? layers - 1 : last
      if index >= first && index <= end && (index + 1) % interval == 0 { try layer.mix(mixture) }
    }
  }

  /// Tencent's Hunyuan with experts: heads are normalized after they have turned.
  static let hunyuanMoE = Architecture(modelTypes: ["hunyuan_v1_moe"]) { config in
    var mixture = try config.mixture(perToken: "moe_topk", width: "intermediate_size", renormalizes: true)
    mixture.router = "mlp.gate.wg"
    try mixture.share("mlp.shared_mlp", width: config.integer("intermediate_size"))
    return try .hunyuanLike(config) { try $0.mix(mixture) }
  }

  /// Hunyuan 3.
  static let hunyuan3 = Architecture(modelTypes: ["hy_v3"]) { config in
    let norm = NormStyle.rootMeanSquare(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let hasBias = try config.flag("attention_bias", default: false)
    try config.require("mlp_bias", false, default: false)
    var mixture = try config.mixture(renormalizes: true)
    mixture.router = "mlp.router.gate"
    mixture.scoring = .sigmoid
    mixture.correction = "mlp.expert_bias"
    mixture.scale = try config.factor("router_scaling_factor", default: 2.826)
    try mixture.share("mlp.shared_mlp", count: config.count("num_shared_experts", default: 1))
    let dense = try config.denseLayers(default: 1)
    return try .llamaLike(
      config, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias, normalizesHeads: true,
      headDimension: 128
    ) { layer, index in
      if !dense.contains(index) { try layer.mix(mixture) }
    }
  }

  /// IBM's Granite with experts.
  static let graniteMoE = Architecture(modelTypes: ["granitemoe"]) { config in
    var mixture = MixtureDescription(
      router: "block_sparse_moe.router.layer", count: try config.integer("num_local_experts", default: 8),
      perToken: try config.integer("num_experts_per_tok", default: 2), expert: try config.blockSparseExpert())
    mixture.loaders = .vLLM
    return try .graniteLike(config) { try $0.mix(mixture) }
  }

  /// Phi 3.5 with experts: layer norms, two experts a token of those that are near the best.
  static let phiMoE = Architecture(modelTypes: ["phimoe"]) { config in
    let norm = NormStyle.layer(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let hasBias = try config.flag("attention_bias", default: false)
    let window = try config.window()
    let jitter = Float(try config.number("router_jitter_noise", default: 0.01))
    let mixture = MixtureDescription(
      router: "block_sparse_moe.gate", count: try config.integer("num_local_experts", default: 16),
      perToken: try config.integer("num_experts_per_tok", default: 2), scoring: .sparseMixer(jitter: jitter),
      expert: try config.blockSparseExpert())
    guard mixture.perToken == 2 else {
      throw DecoderError.unsupportedSetting(
        key: "num_experts_per_tok", value: "\(mixture.perToken)", supported: "2")
    }
    let (rotary, longest) = try config.phiMoERotary()
    var model = try ModelDescription.llamaLike(
      rotary, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias,
      rotary: RotaryStyle(defaultTheta: 1_000_000)
    ) { layer, _ in
      layer.attention.window = window
      try layer.mix(mixture)
    }
    if try config.flag("lm_head_bias", default: false) { model.head.bias = "lm_head.bias" }
    model.maximumSequenceLength = min(model.maximumSequenceLength ?? .max, longest ?? .max)
    return model
  }

  /// OpenAI's GPT-OSS: biases everywhere, a sink for every head, a window in every second layer.
  static let gptOSS = Architecture(modelTypes: ["gpt_oss"]) { config in
    let config = config.filled(withRotary: [
      "rope_type": "yarn", "rope_theta": 150_000, "factor": 32, "beta_fast": 32, "beta_slow": 1,
      "truncate": false, "original_max_position_embeddings": 4_096,
    ])
    let hasBias = try config.flag("attention_bias", default: true)
    let windows = try config.windows(default: 128) { $0.isMultiple(of: 2) }
    var mixture = try config.mixture(
      count: "num_local_experts", width: "intermediate_size", renormalizes: true, hasBias: true)
    mixture.router = "mlp.router"
    mixture.routerHasBias = true
    mixture.loaders = .none
    mixture.expert.clampedSwiGLU = ClampedSwiGLU(
      alpha: try config.factor("swiglu_alpha", default: 1.702),
      limit: try config.factor("swiglu_limit", default: 7))
    return try .llamaLike(
      config, norm: .rootMeanSquare(epsilon: config.epsilon("rms_norm_eps", default: 1e-5)),
      projectionHasBias: hasBias, outputHasBias: hasBias, headDimension: 64,
      rotary: RotaryStyle(defaultTheta: 150_000)
    ) { layer, index in
      layer.attention.window = windows[index]
      layer.attention.sinks = "self_attn.sinks"
      try layer.mix(mixture)
    }
  }

  /// Llama 4's text model: one expert a token, whose input its score scales, and a shared one; no positions in every fourth
  /// layer.
  static let llama4 = Architecture(modelTypes: ["llama4_text"], wrappers: ["llama4": ["llama4_text"]]) {
    config in
    let count = try config.layerCount()
    let hasBias = try config.flag("attention_bias", default: false)
    let norm = NormStyle.rootMeanSquare(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let normalizes = try config.flag("use_qk_norm", default: true)
    let isRotated = try config.rotatedLayers(count: count)
    let width = try config.integer("intermediate_size", default: 8_192)
    let denseWidth = try config.integer("intermediate_size_mlp", default: 16_384)
    var mixture = MixtureDescription(
      router: "feed_forward.router", count: try config.integer("num_local_experts", default: 16),
      perToken: try config.integer("num_experts_per_tok", default: 1), scoring: .sigmoid,
      renormalizes: false, scalesInputs: true,
      expert: MLPDescription(
        expansion: .gated(
          gate: "feed_forward.experts.#.gate_proj", up: "feed_forward.experts.#.up_proj"),
        down: "feed_forward.experts.#.down_proj", intermediateSize: width,
        activation: try config.activation("hidden_act", default: "silu"), hasBias: false))
    mixture.share("feed_forward.shared_expert", width: width)
    let step = try config.integer("interleave_moe_layer_step", default: 1)
    let sparse = config.values["moe_layers"]?.array?.compactMap(\.int)
    var model = try ModelDescription.llamaLike(
      config, norm: norm, projectionHasBias: hasBias, outputHasBias: hasBias, headDimension: 128,
      rotary: RotaryStyle(defaultTheta: 500_000, isInterleaved: true)
    ) { layer, index in
      if isRotated[index] {
        if normalizes { layer.attention.plainNormEpsilon = norm.epsilon }
        layer.attention.turnsFirst = true
      } else {
        layer.attention.positions = .none
      }
      if sparse?.contains(index) ?? ((index + 1) % step == 0) {
        try layer.mix(mixture)
      } else {
        layer.mlp.expansion = .gated(gate: "feed_forward.gate_proj", up: "feed_forward.up_proj")
        layer.mlp.down = "feed_forward.down_proj"
        layer.mlp.intermediateSize = denseWidth
      }
    }
    // Beyond a chunk queries see less, and beyond the floor those without positions grow.
    var longest = try config.integer("max_position_embeddings", default: 131_072)
    if config.values["attention_chunk_size"] != .null {
      longest = min(longest, try config.integer("attention_chunk_size", default: 8_192))
    }
    if try config.flag("attn_temperature_tuning", default: true) {
      longest = min(longest, try config.integer("floor_scale", default: 8_192) - 1)
    }
    model.maximumSequenceLength = longest
    return model
  }

  /// GLM 4.5 to 4.7: the first layers dense, experts chosen by group and with a correction.
  static let glm4MoE = Architecture(modelTypes: ["glm4_moe"]) { config in
    let norm = NormStyle.rootMeanSquare(epsilon: try config.epsilon("rms_norm_eps", default: 1e-5))
    let mixture = try config.correctedMixture(groups: (1, 1))
    let dense = try config.count("first_k_dense_replace", default: 1)
    let hasQKNorm = try config.flag("use_qk_norm", default: false)
    return try .llamaLike(
      config, norm: norm, projectionHasBias: config.flag("attention_bias", default: false),
      normalizesHeads: hasQKNorm, headDimension: 128, rotary: RotaryStyle(partial: 0.5)
    ) { layer, index in
      if index >= dense { try layer.mix(mixture) }
    }
  }
}

extension ConfigurationReader {
  /// Phi's long factors are for sequences that are longer than the model was first trained with, and so have other
  /// positions from their first token on: those are left out.
  fileprivate func phiMoERotary() throws(DecoderError) -> (reader: ConfigurationReader, longest: Int?) {
    let key = values["rope_parameters"]?.object != nil ? "rope_parameters" : "rope_scaling"
    guard var rope = values[key]?.object, let type = (rope["rope_type"] ?? rope["type"])?.string,
      type != "default"
    else { return (self, nil) }
    guard let magnitude = rope["short_mscale"]?.double else { throw .missingKey("\(key).short_mscale") }
    rope["attention_factor"] = .number(magnitude)
    let original = (values["original_max_position_embeddings"] ?? rope["original_max_position_embeddings"])?
      .int
    return (replacing([key: .object(rope)]), original)
  }
}

extension LayerDescription {
  /// Puts a mixture in the place of the MLP.
  /// - Throws: ``DecoderError`` for numbers of experts that cannot be
  mutating func mix(_ mixture: MixtureDescription) throws(DecoderError) {
    guard mixture.count <= 4_096 else {
      throw .unsupportedSetting(key: "number of experts", value: "\(mixture.count)", supported: "up to 4096")
    }
    guard mixture.perToken <= mixture.count else {
      throw .unsupportedSetting(
        key: "num_experts_per_tok", value: "\(mixture.perToken)", supported: "no more than there are experts")
    }
    if let groups = mixture.groups {
      guard mixture.count.isMultiple(of: groups.count), groups.chosen <= groups.count,
        mixture.count / groups.count * groups.chosen >= mixture.perToken
      else {
        throw .unsupportedSetting(
          key: "n_group", value: "\(groups.count)", supported: "groups of equal size with enough experts")
      }
    }
    self.mixture = mixture
    // The largest, as buffers are made for it.
    mlp =
      mixture.shared.flatMap { $0.intermediateSize > mixture.expert.intermediateSize ? $0 : nil }
      ?? mixture.mlp(of: 0)
  }
}

extension MixtureDescription {
  /// Gives it one that is as wide as several experts.
  mutating func share(_ prefix: String, count: Int) {
    if count > 0 { share(prefix, width: count * expert.intermediateSize) }
  }

  /// Gives it an expert that every token goes through.
  mutating func share(_ prefix: String, width: Int) {
    shared = MLPDescription(
      expansion: .gated(gate: "\(prefix).gate_proj", up: "\(prefix).up_proj"), down: "\(prefix).down_proj",
      intermediateSize: width, activation: expert.activation, hasBias: expert.hasBias)
  }
}

extension ConfigurationReader {
  /// Experts below `mlp.experts`, chosen by softmax.
  /// - Parameters:
  ///   - count: the key of their number, and `perToken` that of those that a token goes through
  ///   - width: the key of their intermediate size
  ///   - renormalizes: what holds where `norm_topk_prob` is not given
  func mixture(
    count: String = "num_experts", perToken: String = "num_experts_per_tok",
    width: String = "moe_intermediate_size", renormalizes: Bool = false, hasBias: Bool = false
  ) throws(DecoderError) -> MixtureDescription {
    MixtureDescription(
      router: "mlp.gate", count: try integer(count, "num_local_experts"), perToken: try integer(perToken),
      renormalizes: try flag("norm_topk_prob", default: renormalizes),
      expert: MLPDescription(
        expansion: .gated(gate: "mlp.experts.#.gate_proj", up: "mlp.experts.#.up_proj"),
        down: "mlp.experts.#.down_proj", intermediateSize: try integer(width),
        activation: try activation("hidden_act", default: "silu"), hasBias: hasBias))
  }

  /// The layers without experts, as `mlp_layer_types` names them.
  /// - Parameter count: of the first ones, where it is not there
  func denseLayers(default count: Int) throws(DecoderError) -> Set<Int> {
    guard let listed = values["mlp_layer_types"], listed != .null else { return Set(0..<count) }
    let kinds = listed.array?.compactMap(\.string) ?? []
    guard kinds.count >= (try layerCount()), kinds.allSatisfy({ $0 == "dense" || $0 == "sparse" }) else {
      throw .unsupportedSetting(
        key: "mlp_layer_types", value: String(listed.compactText.prefix(200)),
        supported: "for every layer dense or sparse")
    }
    return Set(kinds.indices.filter { kinds[$0] == "dense" })
  }

  /// An expert by Mixtral's names.
  fileprivate func blockSparseExpert() throws(DecoderError) -> MLPDescription {
    MLPDescription(
      expansion: .gated(gate: "block_sparse_moe.experts.#.w1", up: "block_sparse_moe.experts.#.w3"),
      down: "block_sparse_moe.experts.#.w2", intermediateSize: try integer("intermediate_size"),
      activation: try activation("hidden_act", default: "silu"), hasBias: false)
  }

  /// Which layers have experts.
  func sparseLayers() throws(DecoderError) -> [Bool] {
    let step = try integer("decoder_sparse_step", default: 1)
    let dense = Set(values["mlp_only_layers"]?.array?.compactMap(\.int) ?? [])
    return (0..<(try layerCount())).map { !dense.contains($0) && ($0 + 1) % step == 0 }
  }

  /// A number that may be 0.
  func count(_ key: String, default fallback: Int) throws(DecoderError) -> Int {
    guard let value = values[key], value != .null else { return fallback }
    guard let count = value.int, (0...1 << 20).contains(count) else {
      throw .unsupportedSetting(key: key, value: "\(value)", supported: "a whole number from 0")
    }
    return count
  }

  /// Refuses a model that has a setting at all.
  fileprivate func refuse(_ key: String) throws(DecoderError) {
    if let value = values[key], value != .null {
      throw .unsupportedSetting(key: key, value: "\(value)", supported: "none")
    }
  }
}
