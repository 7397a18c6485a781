// Families whose linears have names of their own.
extension GGUFFamily {
  static let gpt2 = GGUFFamily(
    modelType: "gpt2", layers: "transformer.h.",
    outer: outer("transformer.wte", norm: "transformer.ln_f").merging(["position_embd": "transformer.wpe"]) {
      $1
    },
    inner: plainInner(
      fused: "attn.c_attn", output: "attn.c_proj", up: "mlp.c_fc", down: "mlp.c_proj",
      norms: ["attn_norm": "ln_1", "ffn_norm": "ln_2"]),
    fusesBlocks: true, epsilon: "layer_norm_epsilon"
  ) { (keys) throws(GGUFError) in
    ["n_inner": try keys.required("feed_forward_length")]
  }

  static let falcon = GGUFFamily(
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

  static let bloom = GGUFFamily(
    modelType: "bloom", layers: "transformer.h.",
    outer: outer("transformer.word_embeddings", norm: "transformer.ln_f").merging(
      ["token_embd_norm": "transformer.word_embeddings_layernorm"]) { $1 },
    inner: plainInner(
      fused: "self_attention.query_key_value", output: "self_attention.dense", up: "mlp.dense_h_to_4h",
      down: "mlp.dense_4h_to_h"),
    fusesBlocks: true, epsilon: "layer_norm_epsilon")

  static let gptNeoX = GGUFFamily(
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

  static let mpt = GGUFFamily(
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
}
