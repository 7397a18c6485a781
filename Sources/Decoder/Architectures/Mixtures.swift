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
