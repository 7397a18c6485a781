// Families with llama's layer, or one that is near it.
extension GGUFFamily {
  static let llama4 = GGUFFamily(
    modelType: "llama4_text",
    inner: inner([
      "ffn_gate": "feed_forward.gate_proj", "ffn_up": "feed_forward.up_proj",
      "ffn_down": "feed_forward.down_proj", "ffn_gate_inp": "feed_forward.router",
      "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
      "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
      "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
    ]),
    stacks: [
      "ffn_gate_exps": ["feed_forward.experts.#.gate_proj"],
      "ffn_up_exps": ["feed_forward.experts.#.up_proj"],
      "ffn_down_exps": ["feed_forward.experts.#.down_proj"],
    ], turnsNeighbours: true
  ) { (keys) throws(GGUFError) in
    // Without chunks every layer has positions, and none grows.
    if try keys.number("attention.sliding_window") == 0 {
      throw keys.error(.badKey("llama4.attention.sliding_window"))
    }
    return try blockSparseSettings(keys).merging([
      "intermediate_size": try keys.required("expert_feed_forward_length"),
      "intermediate_size_mlp": try keys.required("feed_forward_length"),
      "interleave_moe_layer_step": try keys.number("interleave_moe_layer_step") ?? 1,
      // Maverick alone normalizes no heads.
      "use_qk_norm": .bool(try keys.count("expert_count") != 128),
    ]) { $1 }
  }

  /// Mistral Small 3, and Ministral 3, whose queries grow with their positions.
  static let mistral3 = GGUFFamily(modelType: "mistral", turnsNeighbours: true) {
    (keys) throws(GGUFError) in
    guard let growth = try keys.number("attention.temperature_scale") else { return [:] }
    let share = try keys.number("rope.scaling.yarn_log_multiplier") ?? 1
    var scaling: [String: JSONValue] = [
      "rope_type": "yarn", "rope_theta": try keys.number("rope.freq_base") ?? 10_000,
      "factor": try keys.required("rope.scaling.factor"), "mscale": share, "mscale_all_dim": share,
      "llama_4_scaling_beta": growth,
    ]
    scaling["beta_fast"] = try keys.number("rope.scaling.yarn_beta_fast")
    scaling["beta_slow"] = try keys.number("rope.scaling.yarn_beta_slow")
    scaling["original_max_position_embeddings"] = try keys.number("rope.scaling.original_context_length")
    return ["model_type": "ministral3", "rope_parameters": .object(scaling), "rope_scaling": .null]
  }

  static let granite = GGUFFamily(
    modelType: "granite", turnsNeighbours: true, settings: graniteSettings)

  static func graniteSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    [
      "embedding_multiplier": try keys.number("embedding_scale") ?? 1,
      "residual_multiplier": try keys.number("residual_scale") ?? 1,
      "attention_multiplier": try keys.number("attention.scale") ?? .number(keys.headScale),
      "logits_scaling": try keys.number("logit_scale") ?? 1,
    ]
  }

  /// The kinds of layers, as a list of flags tells those that see a window.
  static func windowSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    let key = "attention.sliding_window_pattern"
    let name = "\(keys.architecture).\(key)"
    if !keys.isList(key) {
      let pattern = try keys.number(key)?.int ?? 4
      return [
        "sliding_window": try keys.required("attention.sliding_window"),
        "sliding_window_pattern": .integer(pattern),
      ]
    }
    guard let slides = keys.flags[name], slides.count == (try keys.layers()) else {
      throw keys.error(.badKey(name))
    }
    return [
      "layer_types": .array(slides.map { .string($0 ? "sliding_attention" : "full_attention") }),
      "sliding_window": try keys.required("attention.sliding_window"),
    ]
  }

  /// OLMo 2 and 3, which are told apart by their windows.
  static let olmo2 = GGUFFamily(
    modelType: "olmo2",
    inner: inner([
      "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    ])
  ) { (keys) throws(GGUFError) in
    try keys.number("attention.sliding_window")?.int ?? 0 > 0 ? try olmo3Settings(keys) : [:]
  }

  /// Positions are scaled where a layer sees all.
  private static func olmo3Settings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    let theta = try keys.number("rope.freq_base") ?? 500_000
    var full: [String: JSONValue] = ["rope_type": "default", "rope_theta": theta]
    if keys.header["olmo2.rope.scaling.type"] == .text("yarn") {
      full["rope_type"] = "yarn"
      full["factor"] = try keys.required("rope.scaling.factor")
      full["original_max_position_embeddings"] = try keys.number("rope.scaling.original_context_length")
      full["attention_factor"] = try keys.number("rope.scaling.yarn_attn_factor")
      full["beta_fast"] = try keys.number("rope.scaling.yarn_beta_fast")
      full["beta_slow"] = try keys.number("rope.scaling.yarn_beta_slow")
    }
    return try windowSettings(keys).merging([
      "model_type": "olmo3", "rope_scaling": .null,
      "rope_parameters": [
        "full_attention": .object(full),
        "sliding_attention": [
          "rope_type": "default", "rope_theta": try keys.number("rope.freq_base_swa") ?? theta,
        ],
      ],
    ]) { $1 }
  }

  static let exaone4 = GGUFFamily(modelType: "exaone4", inner: olmo2.inner) {
    (keys) throws(GGUFError) in
    keys.has("attention.sliding_window") ? try windowSettings(keys) : ["sliding_window": .null]
  }

  static let commandR = GGUFFamily(modelType: "cohere", epsilon: "layer_norm_eps") {
    (keys) throws(GGUFError) in
    [
      "logit_scale": try keys.required("logit_scale"),
      "use_qk_norm": .bool(keys.hasTensor("blk.0.attn_q_norm.weight")),
    ]
  }

  static let cohere2 = GGUFFamily(modelType: "cohere2", epsilon: "layer_norm_eps") {
    (keys) throws(GGUFError) in
    [
      "logit_scale": try keys.required("logit_scale")
    ].merging(try windowSettings(keys)) { $1 }
  }

  static let starcoder2 = GGUFFamily(
    modelType: "starcoder2", inner: inner(["ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"]),
    epsilon: "norm_epsilon"
  ) { (keys) throws(GGUFError) in
    ["use_bias": .bool(keys.hasTensor("blk.0.attn_q.bias")), "sliding_window": .null]
  }

  static let phi2 = GGUFFamily(
    modelType: "phi", outer: outer("model.embed_tokens", norm: "model.final_layernorm"),
    inner: inner(["attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"]),
    turnsPartly: true, epsilon: "layer_norm_eps")

  static let phi3 = GGUFFamily(
    modelType: "phi3", inner: inner(["ffn_up": "mlp.gate_up_proj"]), turnsPartly: true
  ) { (keys) throws(GGUFError) in
    let window = try keys.number("attention.sliding_window")
    return ["sliding_window": window == 0 ? .null : window ?? .null]
  }

  static let glm4 = GGUFFamily(
    modelType: "glm4",
    inner: inner([
      "ffn_up": "mlp.gate_up_proj", "post_attention_norm": "post_self_attn_layernorm",
      "post_ffw_norm": "post_mlp_layernorm",
    ]), turnsPartly: true)
}
