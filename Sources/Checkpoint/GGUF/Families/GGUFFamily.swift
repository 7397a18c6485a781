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

  static let llamaOuter = [
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
  ]
  static let llamaInner = [
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
  ]
  static let expertStacks = [
    "ffn_gate_exps": ["mlp.experts.#.gate_proj"], "ffn_up_exps": ["mlp.experts.#.up_proj"],
    "ffn_down_exps": ["mlp.experts.#.down_proj"],
  ]

  static func inner(_ changes: [String: String]) -> [String: String] {
    llamaInner.merging(changes) { $1 }
  }

  /// Names of families whose linears have names of their own: attention's output, and the two of an MLP without a gate.
  static func plainInner(
    fused: String, output: String, up: String, down: String, norms: [String: String] = [:]
  ) -> [String: String] {
    [
      "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_qkv": fused,
      "attn_output": output, "ffn_up": up, "ffn_down": down,
    ].merging(norms) { $1 }
  }

  static func outer(_ tokens: String, norm: String, head: String = "lm_head") -> [String: String] {
    ["token_embd": tokens, "output_norm": norm, "output": head]
  }

  // MARK: The families

  /// What is added to the name of an architecture whose models with experts are another family.
  static let withExperts = " with experts"

  /// By `general.architecture`.
  static let known: [String: GGUFFamily] = [
    "llama": GGUFFamily(modelType: "llama", turnsNeighbours: true),
    "llama\(withExperts)": mixtral,
    "qwen2": GGUFFamily(modelType: "qwen2"),
    "qwen3": GGUFFamily(modelType: "qwen3"),
    "qwen3moe": qwen3MoE,
    "qwen35": qwen35,
    "qwen35moe": qwen35MoE,
    "qwen3next": qwen3Next,
    "deepseek2": deepSeek2,
    "glm4moe": glm4MoE,
    "minimax-m2": miniMaxM2,
    "llama4": llama4,
    "mistral3": mistral3,
    "qwen2vl": GGUFFamily(modelType: "qwen2"),
    "qwen3vl": GGUFFamily(modelType: "qwen3"),
    "qwen2moe": qwen2MoE,
    "olmoe": olmoe,
    "granitemoe": graniteMoE,
    "ernie4_5-moe": ernieMoE,
    "hunyuan-dense": GGUFFamily(modelType: "hunyuan_v1_dense", inner: inner(turnedNorms)),
    "hunyuan-moe": hunyuanMoE,
    "hy_v3": hunyuan3,
    "exaone4": exaone4,
    "command-r": commandR,
    "cohere2": cohere2,
    "nemotron": GGUFFamily(
      modelType: "nemotron", normsHoldOne: true, turnsPartly: true, epsilon: "norm_eps"),
    "arcee": GGUFFamily(modelType: "arcee", turnsNeighbours: true),
    "gpt2": gpt2,
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
}
