/// How llama.cpp has a family of models: what its keys and tensors are called beside config.json, and where its converter has
/// moved values.
///
/// Rows stay in the file's order. What that changes for the decoder stands in the configuration under `gguf`.
struct GGUFFamily: Sendable {
  /// `model_type` of the same model in config.json.
  let modelType: String
  /// What the names of a layer's modules begin with, before its number.
  var layers = "model.layers."
  /// The names of modules outside of layers, and of those in a layer.
  var outer = Self.llamaOuter
  var inner = Self.llamaInner
  /// Tensors of all experts of a layer, with `#` for the number; of several names each has as many rows of every expert, one
  /// after the other.
  var stacks: [String: [String]] = [:]
  /// The names of a layer's tensors that are no module's weight or bias.
  var bare: [String: String] = [:]
  /// Whether the value heads of linear attention stand in another order than in the checkpoint.
  var tilesValueHeads = false
  /// Whether a layer's keys and values are made of latents by two stacks of matrices, one a head, in place of one matrix.
  var splitsLatents = false
  /// Whether neighbours of a head turn together, as the converter has put them, or the model has always had them.
  var turnsNeighbours = false
  /// Whether the 1 that is added to the weights of norms is in them.
  var normsHoldOne = false
  /// Whether a fused projection has all queries first, then all keys, then all values.
  var fusesBlocks = false
  /// Whether only a part of every head turns.
  var turnsPartly = false
  /// The key of the norms' epsilon in config.json.
  var epsilon = "rms_norm_eps"
  /// Of config.json, beside those that all families have.
  var settings: @Sendable (GGUFKeys) throws(GGUFError) -> [String: JSONValue] = {
    (_) throws(GGUFError) in [:]
  }

  private static let llamaOuter = [
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
  ]
  private static let llamaInner = [
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
  ]
  private static let expertStacks = [
    "ffn_gate_exps": ["mlp.experts.#.gate_proj"], "ffn_up_exps": ["mlp.experts.#.up_proj"],
    "ffn_down_exps": ["mlp.experts.#.down_proj"],
  ]

  private static func inner(_ changes: [String: String]) -> [String: String] {
    llamaInner.merging(changes) { $1 }
  }

  /// Names of families whose linears have names of their own: attention's output, and the two of an MLP without a gate.
  private static func plainInner(
    fused: String, output: String, up: String, down: String, norms: [String: String] = [:]
  ) -> [String: String] {
    [
      "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_qkv": fused,
      "attn_output": output, "ffn_up": up, "ffn_down": down,
    ].merging(norms) { $1 }
  }

  private static func outer(_ tokens: String, norm: String, head: String = "lm_head") -> [String: String] {
    ["token_embd": tokens, "output_norm": norm, "output": head]
  }

  // MARK: The families

  /// By `general.architecture`, and for models with experts that and `-moe`.
  static let known: [String: GGUFFamily] = [
    "llama": GGUFFamily(modelType: "llama", turnsNeighbours: true),
    "llama-moe": mixtral,
    "qwen2": GGUFFamily(modelType: "qwen2"),
    "qwen3": GGUFFamily(modelType: "qwen3"),
    "qwen3moe": qwen3MoE,
    "qwen35": qwen35,
    "qwen35moe": qwen35MoE,
    "qwen3next": qwen3Next,
    "deepseek2": deepSeek2,
    "granite": granite,
    "olmo2": olmo2,
    "starcoder2": starcoder2,
    "stablelm": GGUFFamily(modelType: "stablelm", turnsPartly: true, epsilon: "layer_norm_eps") {
      (keys) throws(GGUFError) in
      [
        "use_qkv_bias": .bool(keys.hasTensor("blk.0.attn_q.bias")),
        "use_parallel_residual": .bool(!keys.hasTensor("blk.0.ffn_norm.weight")),
        "qk_layernorm": .bool(keys.hasTensor("blk.0.attn_q_norm.weight")),
      ]
    },
    "gemma": GGUFFamily(modelType: "gemma", normsHoldOne: true),
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "phi2": phi2,
    "phi3": phi3,
    "falcon": falcon,
    "bloom": bloom,
    "gptneox": gptNeoX,
    "mpt": mpt,
    "glm4": glm4,
    "smollm3": GGUFFamily(modelType: "smollm3", turnsNeighbours: true),
    "seed_oss": GGUFFamily(
      modelType: "seed_oss",
      inner: inner(["post_attention_norm": "post_attention_layernorm"])),
    "ernie4_5": GGUFFamily(modelType: "ernie4_5", turnsNeighbours: true),
  ]

  private static let mixtral = GGUFFamily(
    modelType: "mixtral", inner: inner(["ffn_gate_inp": "block_sparse_moe.gate"]),
    stacks: [
      "ffn_gate_exps": ["block_sparse_moe.experts.#.w1"], "ffn_up_exps": ["block_sparse_moe.experts.#.w3"],
      "ffn_down_exps": ["block_sparse_moe.experts.#.w2"],
    ], turnsNeighbours: true
  ) { (keys) throws(GGUFError) in
    [
      "num_local_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
    ]
  }

  private static let qwen3MoE = GGUFFamily(
    modelType: "qwen3_moe", inner: inner(["ffn_gate_inp": "mlp.gate"]), stacks: expertStacks
  ) { (keys) throws(GGUFError) in
    [
      "num_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
      "moe_intermediate_size": try keys.required("expert_feed_forward_length"),
      "norm_topk_prob": true, "decoder_sparse_step": 1,
    ]
  }

  private static let linearAttention = [
    "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm", "ssm_out": "linear_attn.out_proj",
    "post_attention_norm": "post_attention_layernorm",
  ]
  private static let decays = ["ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"]

  /// What all models with the gated delta rule say of it.
  private static func linearAttentionSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    let (layers, heads) = (try keys.count("block_count"), try keys.count("ssm.time_step_rank"))
    let types = (0..<layers - (try keys.number("nextn_predict_layers")?.int ?? 0)).map {
      JSONValue.string(keys.hasTensor("blk.\($0).ssm_a") ? "linear_attention" : "full_attention")
    }
    return [
      "num_hidden_layers": .integer(types.count), "layer_types": .array(types),
      "linear_num_key_heads": try keys.required("ssm.group_count"),
      "linear_num_value_heads": .integer(heads), "linear_key_head_dim": try keys.required("ssm.state_size"),
      "linear_value_head_dim": .integer(try keys.count("ssm.inner_size") / heads),
      "linear_conv_kernel_dim": try keys.required("ssm.conv_kernel"),
    ]
  }

  private static let qwen35 = GGUFFamily(
    modelType: "qwen3_5_text", inner: inner(linearAttention), bare: decays, tilesValueHeads: true,
    normsHoldOne: true, turnsPartly: true, settings: linearAttentionSettings)

  private static func sharedExpert(_ module: String) -> [String: String] {
    [
      "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "\(module)_gate",
      "ffn_gate_shexp": "\(module).gate_proj", "ffn_up_shexp": "\(module).up_proj",
      "ffn_down_shexp": "\(module).down_proj",
    ]
  }

  private static let qwen35MoE = GGUFFamily(
    modelType: "qwen3_5_moe_text",
    inner: inner(linearAttention).merging(sharedExpert("mlp.shared_expert")) { $1 }, stacks: expertStacks,
    bare: decays, tilesValueHeads: true, normsHoldOne: true, turnsPartly: true,
    settings: gatedMixtureSettings)

  private static let qwen3Next = GGUFFamily(
    modelType: "qwen3_next",
    inner: inner(linearAttention).merging(sharedExpert("mlp.shared_expert")) { $1 }.merging([
      "ssm_ba": "linear_attn.in_proj_ba"
    ]) { $1 }, stacks: expertStacks, bare: decays, normsHoldOne: true, turnsPartly: true
  ) { (keys) throws(GGUFError) in
    try gatedMixtureSettings(keys).merging(["norm_topk_prob": true, "decoder_sparse_step": 1]) { $1 }
  }

  private static func gatedMixtureSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    [
      "num_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
      "moe_intermediate_size": try keys.required("expert_feed_forward_length"),
      "shared_expert_intermediate_size": try keys.required("expert_shared_feed_forward_length"),
    ].merging(try linearAttentionSettings(keys)) { $1 }
  }

  /// DeepSeek V2 and V3, which are told apart by how experts are chosen.
  private static let deepSeek2 = GGUFFamily(
    modelType: "deepseek_v3",
    inner: inner(sharedExpert("mlp.shared_experts")).merging([
      "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
      "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
      "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj",
    ]) { $1 }, stacks: expertStacks, bare: ["exp_probs_b.bias": "mlp.gate.e_score_correction_bias"],
    splitsLatents: true, turnsNeighbours: true
  ) { (keys) throws(GGUFError) in
    let turning = try keys.count("rope.dimension_count")
    // Of files whose keys and values are made of latents by one matrix the lengths are those of a head.
    let isSplit = keys.has("attention.key_length_mla")
    let plain = try keys.count(isSplit ? "attention.key_length_mla" : "attention.key_length") - turning
    let groups = try keys.number("expert_group_count")?.int ?? 1
    let isV3 = try keys.number("expert_gating_func") == 2
    var settings: [String: JSONValue] = [
      "model_type": isV3 ? "deepseek_v3" : "deepseek_v2",
      "scoring_func": isV3 ? "sigmoid" : "softmax",
      "topk_method": isV3 ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy",
      "num_key_value_heads": try keys.required("attention.head_count"),
      "head_dim": .integer(plain + turning), "qk_nope_head_dim": .integer(plain),
      "qk_rope_head_dim": .integer(turning),
      "v_head_dim": try keys.required(isSplit ? "attention.value_length_mla" : "attention.value_length"),
      "kv_lora_rank": try keys.required("attention.kv_lora_rank"),
      "q_lora_rank": try keys.number("attention.q_lora_rank").flatMap { $0.int == 0 ? nil : $0 } ?? .null,
      "n_routed_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
      "n_shared_experts": try keys.number("expert_shared_count") ?? 1,
      "moe_intermediate_size": try keys.required("expert_feed_forward_length"),
      "n_group": .integer(groups), "topk_group": try keys.number("expert_group_used_count") ?? 1,
      "routed_scaling_factor": try keys.number("expert_weights_scale") ?? 1,
      "norm_topk_prob": .bool(try keys.flag("expert_weights_norm") ?? false),
      "first_k_dense_replace": try keys.number("leading_dense_block_count") ?? 0,
    ]
    if let factor = try keys.number("rope.scaling.factor"),
      let share = try keys.number("rope.scaling.yarn_log_multiplier")?.double
    {
      var scaling: [String: JSONValue] = [
        "rope_type": "yarn", "factor": factor, "beta_fast": 32, "beta_slow": 1,
        "mscale": .number(share / 0.1), "mscale_all_dim": .number(share / 0.1),
      ]
      scaling["original_max_position_embeddings"] = try keys.number("rope.scaling.original_context_length")
      settings["rope_scaling"] = .object(scaling)
    }
    return settings
  }

  private static let granite = GGUFFamily(modelType: "granite", turnsNeighbours: true) {
    (keys) throws(GGUFError) in
    [
      "embedding_multiplier": try keys.number("embedding_scale") ?? 1,
      "residual_multiplier": try keys.number("residual_scale") ?? 1,
      "attention_multiplier": try keys.number("attention.scale") ?? .number(keys.headScale),
      "logits_scaling": try keys.number("logit_scale") ?? 1,
    ]
  }

  private static let olmo2 = GGUFFamily(
    modelType: "olmo2",
    inner: inner([
      "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    ]))

  private static let starcoder2 = GGUFFamily(
    modelType: "starcoder2", inner: inner(["ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"]),
    epsilon: "norm_epsilon"
  ) { (keys) throws(GGUFError) in
    ["use_bias": .bool(keys.hasTensor("blk.0.attn_q.bias")), "sliding_window": .null]
  }

  private static let blockNorms = [
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
  ]

  private static let gemma2 = GGUFFamily(
    modelType: "gemma2", inner: inner(blockNorms), normsHoldOne: true
  ) { (keys) throws(GGUFError) in
    [
      "query_pre_attn_scalar": .number(keys.gemmaScalar(largestLayers: 46)),
      "attn_logit_softcapping": try keys.number("attn_logit_softcapping") ?? 50,
      "final_logit_softcapping": try keys.number("final_logit_softcapping") ?? 30,
      "sliding_window": try keys.number("attention.sliding_window") ?? 4_096,
    ]
  }

  private static let gemma3 = GGUFFamily(
    modelType: "gemma3_text", inner: inner(blockNorms), normsHoldOne: true
  ) { (keys) throws(GGUFError) in
    [
      "query_pre_attn_scalar": .number(keys.gemmaScalar(largestLayers: 62)),
      "final_logit_softcapping": try keys.number("final_logit_softcapping") ?? .null,
      "sliding_window": try keys.number("attention.sliding_window") ?? .null,
      "rope_local_base_freq": try keys.number("rope.freq_base_swa") ?? 10_000,
      "sliding_window_pattern": 6,
    ]
  }

  private static let gemma4 = GGUFFamily(
    modelType: "gemma4_text",
    inner: inner(blockNorms).merging([
      "ffn_gate_inp": "router.proj", "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
      "post_ffw_norm_1": "post_feedforward_layernorm_1", "post_ffw_norm_2": "post_feedforward_layernorm_2",
    ]) { $1 },
    stacks: [
      "ffn_gate_up_exps": ["experts.#.gate_proj", "experts.#.up_proj"],
      "ffn_gate_exps": ["experts.#.gate_proj"], "ffn_up_exps": ["experts.#.up_proj"],
      "ffn_down_exps": ["experts.#.down_proj"],
    ],
    bare: [
      "layer_output_scale.weight": "layer_scalar", "ffn_gate_inp.scale": "router.scale",
      "ffn_down_exps.scale": "router.per_expert_scale",
    ]
  ) { (keys) throws(GGUFError) in
    let (own, wide) = (try keys.count("attention.key_length_swa"), try keys.count("attention.key_length"))
    guard let slides = keys.flags["gemma4.attention.sliding_window_pattern"],
      slides.count == (try keys.count("block_count")), let full = slides.firstIndex(of: false)
    else { throw keys.error(.badKey("gemma4.attention.sliding_window_pattern")) }
    /// Heads of the keys of a layer.
    func heads(_ layer: Int?, _ dimension: Int) -> JSONValue? {
      layer.flatMap { keys.shape("blk.\($0).attn_k.weight")?.first }.map { .integer($0 / dimension) }
    }
    // Pairs of features that do not turn are divided by what leaves nothing of their angles.
    let turning = keys.rotaryDivisors.map { divisors in
      Double(divisors.count { $0 == 1 }) / Double(max(divisors.count, 1))
    }
    var settings: [String: JSONValue] = [
      "head_dim": .integer(own), "global_head_dim": .integer(wide),
      "layer_types": .array(slides.map { .string($0 ? "sliding_attention" : "full_attention") }),
      "attention_k_eq_v": .bool(!keys.hasTensor("blk.\(full).attn_v.weight")),
      "sliding_window": try keys.required("attention.sliding_window"),
      "final_logit_softcapping": try keys.number("final_logit_softcapping") ?? .null,
      // What the small models have, and the decoder refuses.
      "hidden_size_per_layer_input": try keys.number("embedding_length_per_layer_input") ?? 0,
      "num_kv_shared_layers": try keys.number("attention.shared_kv_layers") ?? 0,
      "rope_scaling": .null,
      "rope_parameters": [
        "sliding_attention": [
          "rope_type": "default", "rope_theta": try keys.number("rope.freq_base_swa") ?? 10_000,
        ],
        "full_attention": [
          "rope_type": "proportional", "rope_theta": try keys.number("rope.freq_base") ?? 10_000,
          "partial_rotary_factor": .number(turning ?? 1),
        ],
      ],
    ]
    if keys.has("expert_count") {
      settings["enable_moe_block"] = true
      settings["num_experts"] = try keys.required("expert_count")
      settings["top_k_experts"] = try keys.required("expert_used_count")
      settings["moe_intermediate_size"] = try keys.required("expert_feed_forward_length")
    }
    settings["num_key_value_heads"] = heads(slides.firstIndex(of: true), own)
    settings["num_global_key_value_heads"] = heads(full, wide)
    return settings
  }

  private static let phi2 = GGUFFamily(
    modelType: "phi", outer: outer("model.embed_tokens", norm: "model.final_layernorm"),
    inner: inner(["attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"]),
    turnsPartly: true, epsilon: "layer_norm_eps")

  private static let phi3 = GGUFFamily(
    modelType: "phi3", inner: inner(["ffn_up": "mlp.gate_up_proj"]), turnsPartly: true
  ) { (keys) throws(GGUFError) in
    let window = try keys.number("attention.sliding_window")
    return ["sliding_window": window == 0 ? .null : window ?? .null]
  }

  private static let falcon = GGUFFamily(
    modelType: "falcon", layers: "transformer.h.",
    outer: outer("transformer.word_embeddings", norm: "transformer.ln_f"),
    inner: plainInner(
      fused: "self_attention.query_key_value", output: "self_attention.dense", up: "mlp.dense_h_to_4h",
      down: "mlp.dense_4h_to_h"),
    fusesBlocks: true, epsilon: "layer_norm_epsilon"
  ) { (keys) throws(GGUFError) in
    // One norm or two: the second in the file is the first in the model.
    let hasTwo = keys.hasTensor("blk.0.attn_norm_2.weight")
    return [
      "new_decoder_architecture": true, "num_ln_in_parallel_attn": hasTwo ? 2 : 1, "alibi": false,
      "num_kv_heads": try keys.number("attention.head_count_kv") ?? 1,
      "bias": .bool(keys.hasTensor("blk.0.attn_qkv.bias")),
      "ffn_hidden_size": try keys.required("feed_forward_length"),
    ]
  }

  private static let bloom = GGUFFamily(
    modelType: "bloom", layers: "transformer.h.",
    outer: outer("transformer.word_embeddings", norm: "transformer.ln_f").merging(
      ["token_embd_norm": "transformer.word_embeddings_layernorm"]) { $1 },
    inner: plainInner(
      fused: "self_attention.query_key_value", output: "self_attention.dense", up: "mlp.dense_h_to_4h",
      down: "mlp.dense_4h_to_h"),
    fusesBlocks: true, epsilon: "layer_norm_epsilon")

  private static let gptNeoX = GGUFFamily(
    modelType: "gpt_neox", layers: "gpt_neox.layers.",
    outer: outer("gpt_neox.embed_in", norm: "gpt_neox.final_layer_norm", head: "embed_out"),
    inner: plainInner(
      fused: "attention.query_key_value", output: "attention.dense", up: "mlp.dense_h_to_4h",
      down: "mlp.dense_4h_to_h"),
    fusesBlocks: true, turnsPartly: true, epsilon: "layer_norm_eps"
  ) { (keys) throws(GGUFError) in
    [
      "use_parallel_residual": .bool(try keys.flag("use_parallel_residual") ?? true),
      "attention_bias": .bool(keys.hasTensor("blk.0.attn_qkv.bias")),
    ]
  }

  private static let mpt = GGUFFamily(
    modelType: "mpt", layers: "transformer.blocks.",
    outer: outer("transformer.wte", norm: "transformer.norm_f"),
    inner: plainInner(
      fused: "attn.Wqkv", output: "attn.out_proj", up: "ffn.up_proj", down: "ffn.down_proj",
      norms: ["attn_norm": "norm_1", "ffn_norm": "norm_2"]),
    epsilon: "layer_norm_epsilon"
  ) { (keys) throws(GGUFError) in
    var attention: [String: JSONValue] = ["alibi": true, "attn_type": "multihead_attention"]
    attention["alibi_bias_max"] = try keys.number("attention.max_alibi_bias")
    attention["clip_qkv"] = try keys.number("attention.clamp_kqv")
    guard case .integer(let inner) = try keys.required("feed_forward_length"),
      case .integer(let hidden) = try keys.required("embedding_length"), hidden > 0
    else { throw keys.error(.badKey("\(keys.architecture).feed_forward_length")) }
    return [
      "attn_config": .object(attention), "expansion_ratio": .integer(inner / hidden), "no_bias": true,
      "max_seq_len": try keys.required("context_length"),
    ]
  }

  private static let glm4 = GGUFFamily(
    modelType: "glm4",
    inner: inner([
      "ffn_up": "mlp.gate_up_proj", "post_attention_norm": "post_self_attn_layernorm",
      "post_ffw_norm": "post_mlp_layernorm",
    ]), turnsPartly: true)
}

/// The keys of a file that begin with its architecture.
struct GGUFKeys {
  let header: GGUFHeader
  let architecture: String
  /// What the angles of rotary positions are divided by, where the file has that.
  let rotaryDivisors: [Float]?
  /// The lists of flags among all keys.
  let flags: [String: [Bool]]

  func error(_ reason: GGUFError.Reason) -> GGUFError { GGUFError(file: header.file, reason: reason) }

  func number(_ key: String) throws(GGUFError) -> JSONValue? {
    switch header["\(architecture).\(key)"] {
    case nil: return nil
    case .integer(let value): return .integer(value)
    case .number(let value): return .number(value)
    default: throw error(.badKey("\(architecture).\(key)"))
    }
  }

  func has(_ key: String) -> Bool { header["\(architecture).\(key)"] != nil }

  func isList(_ key: String) -> Bool {
    if case .array = header["\(architecture).\(key)"] { true } else { false }
  }

  func required(_ key: String) throws(GGUFError) -> JSONValue {
    guard let value = try number(key) else { throw error(.missingKey("\(architecture).\(key)")) }
    return value
  }

  /// A positive whole number.
  func count(_ key: String) throws(GGUFError) -> Int {
    guard let value = try required(key).int, value > 0 else { throw error(.badKey("\(architecture).\(key)")) }
    return value
  }

  func flag(_ key: String) throws(GGUFError) -> Bool? {
    switch header["\(architecture).\(key)"] {
    case nil: return nil
    case .flag(let value): return value
    default: throw error(.badKey("\(architecture).\(key)"))
    }
  }

  func hasTensor(_ name: String) -> Bool { shape(name) != nil }

  func shape(_ name: String) -> [Int]? { header.tensors.first { $0.name == name }?.shape }

  /// Of a head; 0 where it is not said.
  var headDimension: Double {
    func value(_ key: String) -> Double? { (try? number(key))??.double }
    if let own = value("attention.key_length") { return own }
    guard let width = value("embedding_length"), let heads = value("attention.head_count"), heads > 0 else {
      return 0
    }
    return width / heads
  }

  /// The factor of q·k that heads have by themselves.
  var headScale: Double { headDimension > 0 ? 1 / headDimension.squareRoot() : 1 }

  /// The square of what Gemma divides q·k by, which no key says: the width of a head, but for the largest model, whose
  /// heads are wider than their share of the hidden state.
  func gemmaScalar(largestLayers: Int) -> Double {
    let layers = ((try? number("block_count")) ?? nil)?.int
    let width = ((try? number("embedding_length")) ?? nil)?.double ?? 0
    let heads = ((try? number("attention.head_count")) ?? nil)?.double ?? 0
    return layers == largestLayers && heads > 0 ? width / heads : headDimension
  }
}
