// Families with linear attention by the gated delta rule.
extension GGUFFamily {
  static let linearAttention = [
    "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm", "ssm_out": "linear_attn.out_proj",
    "post_attention_norm": "post_attention_layernorm",
  ]

  static let decays = ["ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"]

  /// What all models with the gated delta rule say of it.
  static func linearAttentionSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    let heads = try keys.count("ssm.time_step_rank")
    let types = (0..<(try keys.layers())).map {
      JSONValue.string(keys.hasTensor("blk.\($0).ssm_a") ? "linear_attention" : "full_attention")
    }
    return [
      "layer_types": .array(types),
      "linear_num_key_heads": try keys.required("ssm.group_count"),
      "linear_num_value_heads": .integer(heads), "linear_key_head_dim": try keys.required("ssm.state_size"),
      "linear_value_head_dim": .integer(try keys.count("ssm.inner_size") / heads),
      "linear_conv_kernel_dim": try keys.required("ssm.conv_kernel"),
    ]
  }

  static let qwen35 = GGUFFamily(
    modelType: "qwen3_5_text", inner: inner(linearAttention), bare: decays, tilesValueHeads: true,
    normsHoldOne: true, turnsPartly: true, settings: linearAttentionSettings)

  static let qwen35MoE = GGUFFamily(
    modelType: "qwen3_5_moe_text",
    inner: inner(linearAttention).merging(sharedExpert("mlp.shared_expert")) { $1 }, stacks: expertStacks,
    bare: decays, tilesValueHeads: true, normsHoldOne: true, turnsPartly: true,
    settings: gatedMixtureSettings)

  static let qwen3Next = GGUFFamily(
    modelType: "qwen3_next",
    inner: inner(linearAttention).merging(sharedExpert("mlp.shared_expert")) { $1 }.merging([
      "ssm_ba": "linear_attn.in_proj_ba"
    ]) { $1 }, stacks: expertStacks, bare: decays, normsHoldOne: true, turnsPartly: true
  ) { (keys) throws(GGUFError) in
    try gatedMixtureSettings(keys).merging(["norm_topk_prob": true, "decoder_sparse_step": 1]) { $1 }
  }

  static func gatedMixtureSettings(_ keys: GGUFKeys) throws(GGUFError) -> [String: JSONValue] {
    try mixtureSettings(keys).merging([
      "shared_expert_intermediate_size": try keys.required("expert_shared_feed_forward_length")
    ]) { $1 }.merging(try linearAttentionSettings(keys)) { $1 }
  }
}
