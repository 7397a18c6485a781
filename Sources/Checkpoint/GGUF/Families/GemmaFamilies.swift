// Google's Gemma.
extension GGUFFamily {
  static let blockNorms = [
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
  ]

  static let gemma2 = GGUFFamily(
    modelType: "gemma2", inner: inner(blockNorms), normsHoldOne: true
  ) { (keys) throws(GGUFError) in
    [
      "query_pre_attn_scalar": .number(keys.gemmaScalar(largestLayers: 46)),
      "attn_logit_softcapping": try keys.number("attn_logit_softcapping") ?? 50,
      "final_logit_softcapping": try keys.number("final_logit_softcapping") ?? 30,
      "sliding_window": try keys.number("attention.sliding_window") ?? 4_096,
    ]
  }

  static let gemma3 = GGUFFamily(
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

  static let gemma4 = GGUFFamily(
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
      slides.count == (try keys.layers()), let full = slides.firstIndex(of: false)
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
      "final_logit_softcapping": try keys.number("final_logit_softcapping") ?? 30,
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
    if keys.hasTensor("blk.0.ffn_gate_inp.weight") {
      settings["enable_moe_block"] = true
      settings["num_experts"] = try keys.required("expert_count")
      settings["top_k_experts"] = try keys.required("expert_used_count")
      settings["moe_intermediate_size"] = try keys.required("expert_feed_forward_length")
    }
    settings["num_key_value_heads"] = heads(slides.firstIndex(of: true), own)
    settings["num_global_key_value_heads"] = heads(full, wide)
    return settings
  }
}
