// Families with experts.
extension GGUFFamily {
  static func sharedExpert(_ module: String) -> [String: String] {
    [
      "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "\(module)_gate",
      "ffn_gate_shexp": "\(module).gate_proj", "ffn_up_shexp": "\(module).up_proj",
      "ffn_down_shexp": "\(module).down_proj",
    ]
  }

  /// What models with experts below `mlp.experts` say of them.
  static func mixtureSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    [
      "num_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
      "moe_intermediate_size": try keys.required(
        keys.has("expert_feed_forward_length") ? "expert_feed_forward_length" : "feed_forward_length"),
    ]
  }

  static let blockSparseStacks = [
    "ffn_gate_exps": ["block_sparse_moe.experts.#.w1"], "ffn_up_exps": ["block_sparse_moe.experts.#.w3"],
    "ffn_down_exps": ["block_sparse_moe.experts.#.w2"],
  ]

  /// What models with Mixtral's names of experts say of them.
  static func blockSparseSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    [
      "num_local_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
    ]
  }

  static let mixtral = GGUFFamily(
    modelType: "mixtral", inner: inner(["ffn_gate_inp": "block_sparse_moe.gate"]),
    stacks: blockSparseStacks, turnsNeighbours: true, settings: blockSparseSettings)

  static let miniMaxM2 = GGUFFamily(
    modelType: "minimax_m2", inner: inner(["ffn_gate_inp": "block_sparse_moe.gate"]),
    stacks: blockSparseStacks, bare: ["exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias"]
  ) { (keys) throws(GGUFError) in
    try blockSparseSettings(keys).merging([
      "intermediate_size": try keys.required("expert_feed_forward_length"),
      "rotary_dim": try keys.required("rope.dimension_count"),
    ]) { $1 }
  }

  static let qwen2MoE = GGUFFamily(
    modelType: "qwen2_moe", inner: inner(sharedExpert("mlp.shared_expert")), stacks: expertStacks
  ) { (keys) throws(GGUFError) in
    try mixtureSettings(keys).merging([
      "shared_expert_intermediate_size": try keys.required("expert_shared_feed_forward_length"),
      "norm_topk_prob": false, "decoder_sparse_step": 1,
      "qkv_bias": .bool(keys.hasTensor("blk.0.attn_q.bias")),
    ]) { $1 }
  }

  static let qwen3MoE = GGUFFamily(
    modelType: "qwen3_moe", inner: inner(["ffn_gate_inp": "mlp.gate"]), stacks: expertStacks
  ) { (keys) throws(GGUFError) in
    try mixtureSettings(keys).merging(["norm_topk_prob": true, "decoder_sparse_step": 1]) { $1 }
  }

  static let olmoe = GGUFFamily(
    modelType: "olmoe", inner: inner(["ffn_gate_inp": "mlp.gate"]), stacks: expertStacks
  ) { (keys) throws(GGUFError) in
    try mixtureSettings(keys).merging(["norm_topk_prob": false]) { $1 }
  }

  static let ernieMoE = GGUFFamily(
    modelType: "ernie4_5_moe", inner: inner(sharedExpert("mlp.shared_experts")), stacks: expertStacks,
    bare: ["exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"], turnsNeighbours: true
  ) { (keys) throws(GGUFError) in
    try mixtureSettings(keys).merging([
      "moe_num_experts": try keys.required("expert_count"), "moe_k": try keys.required("expert_used_count"),
      "moe_num_shared_experts": try keys.number("expert_shared_count") ?? 0,
      "moe_layer_start_index": try keys.number("leading_dense_block_count") ?? 0,
      "moe_layer_interval": try keys.number("interleave_moe_layer_step") ?? 1,
    ]) { $1 }
  }

  /// Of models that normalize heads once they have turned.
  static let turnedNorms = [
    "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm",
  ]

  static let hunyuanMoE = GGUFFamily(
    modelType: "hunyuan_v1_moe",
    inner: inner(sharedExpert("mlp.shared_mlp")).merging(turnedNorms) { $1 }
      .merging(["ffn_gate_inp": "mlp.gate.wg"]) { $1 }, stacks: expertStacks
  ) { (keys) throws(GGUFError) in
    try mixtureSettings(keys).merging([
      "moe_topk": try keys.required("expert_used_count"),
      "intermediate_size": try keys.required("expert_feed_forward_length"),
    ]) { $1 }
  }

  static let hunyuan3 = GGUFFamily(
    modelType: "hy_v3",
    inner: inner(sharedExpert("mlp.shared_mlp")).merging(["ffn_gate_inp": "mlp.router.gate"]) { $1 },
    stacks: expertStacks, bare: ["exp_probs_b": "mlp.expert_bias"]
  ) { (keys) throws(GGUFError) in
    let width = try keys.count("expert_feed_forward_length")
    let kinds = (0..<(try keys.layers())).map {
      JSONValue.string(keys.hasTensor("blk.\($0).ffn_gate_inp.weight") ? "sparse" : "dense")
    }
    return try mixtureSettings(keys).merging([
      "num_shared_experts": .integer(try keys.count("expert_shared_feed_forward_length") / width),
      "router_scaling_factor": try keys.number("expert_weights_scale") ?? 1,
      "norm_topk_prob": .bool(try keys.flag("expert_weights_norm") ?? false),
      "mlp_layer_types": .array(kinds),
    ]) { $1 }
  }

  static let graniteMoE = GGUFFamily(
    modelType: "granitemoe", inner: inner(["ffn_gate_inp": "block_sparse_moe.router.layer"]),
    stacks: blockSparseStacks, turnsNeighbours: true
  ) { (keys) throws(GGUFError) in
    try graniteSettings(keys).merging(try blockSparseSettings(keys)) { $1 }
  }

  static let correction = ["exp_probs_b.bias": "mlp.gate.e_score_correction_bias"]

  /// What models have whose experts are chosen by group and with a correction.
  static func groupedMixtureSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    [
      "n_routed_experts": try keys.required("expert_count"),
      "num_experts_per_tok": try keys.required("expert_used_count"),
      "n_shared_experts": try keys.number("expert_shared_count") ?? 1,
      "moe_intermediate_size": try keys.required("expert_feed_forward_length"),
      "n_group": try keys.number("expert_group_count") ?? 1,
      "topk_group": try keys.number("expert_group_used_count") ?? 1,
      "routed_scaling_factor": try keys.number("expert_weights_scale") ?? 1,
      "norm_topk_prob": .bool(try keys.flag("expert_weights_norm") ?? false),
      "first_k_dense_replace": try keys.number("leading_dense_block_count") ?? 0,
    ]
  }

  static let glm4MoE = GGUFFamily(
    modelType: "glm4_moe",
    inner: inner(sharedExpert("mlp.shared_experts")).merging([
      "post_attention_norm": "post_attention_layernorm"
    ]) { $1 }, stacks: expertStacks, bare: correction, turnsPartly: true
  ) { (keys) throws(GGUFError) in
    return try groupedMixtureSettings(keys).merging([
      "use_qk_norm": .bool(keys.hasTensor("blk.0.attn_q_norm.weight"))
    ]) { $1 }
  }

  /// DeepSeek V2 and V3, which are told apart by how experts are chosen.
  static let deepSeek2 = GGUFFamily(
    modelType: "deepseek_v3",
    inner: inner(sharedExpert("mlp.shared_experts")).merging([
      "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
      "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
      "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj",
    ]) { $1 }, stacks: expertStacks, bare: correction,
    splitsLatents: true, turnsNeighbours: true
  ) { (keys) throws(GGUFError) in
    let turning = try keys.count("rope.dimension_count")
    // Of files whose keys and values are made of latents by one matrix the lengths are those of a head.
    let isSplit = keys.has("attention.key_length_mla")
    let plain = try keys.count(isSplit ? "attention.key_length_mla" : "attention.key_length") - turning
    let groups = try keys.number("expert_group_count")?.int ?? 1
    // GLM 4.7 Flash does not say how experts are chosen, and has their corrections all the same.
    let isV3 =
      try keys.number("expert_gating_func").map { $0 == 2 }
      ?? keys.header.tensors.contains { $0.name.hasSuffix(".exp_probs_b.bias") }
    var settings = try groupedMixtureSettings(keys)
    let own: [String: JSONValue] = [
      "model_type": isV3 ? "deepseek_v3" : "deepseek_v2",
      "scoring_func": isV3 ? "sigmoid" : "softmax",
      "topk_method": isV3 ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy",
      "num_key_value_heads": try keys.required("attention.head_count"),
      "head_dim": .integer(plain + turning), "qk_nope_head_dim": .integer(plain),
      "qk_rope_head_dim": .integer(turning),
      "v_head_dim": try keys.required(isSplit ? "attention.value_length_mla" : "attention.value_length"),
      "kv_lora_rank": try keys.required("attention.kv_lora_rank"),
      "q_lora_rank": try keys.number("attention.q_lora_rank").flatMap { $0.int == 0 ? nil : $0 } ?? .null,
    ]
    settings.merge(own) { $1 }
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
}
