import SystemIO
import Tensors

/// What a GGUF file says of its model, in the words of config.json: the configuration that the decoder reads, and the names
/// that its tensors have there.
///
/// Rows stay in the file's order. Where a family's converter has reordered those of queries and keys, for the pairs of
/// neighbours that llama.cpp turns, the configuration says that such pairs turn.
struct GGUFModel {
  /// A family of models as llama.cpp has it.
  private struct Family {
    /// `model_type` of the same model in config.json.
    let modelType: String
    var turnsNeighbours = false
  }

  /// By `general.architecture`.
  private static let families: [String: Family] = [
    "llama": Family(modelType: "llama", turnsNeighbours: true),
    "qwen2": Family(modelType: "qwen2"),
    "qwen3": Family(modelType: "qwen3"),
  ]

  /// The names of a layer's tensors, without what tells weights from biases.
  private static let layerNames: [String: String] = [
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
  ]
  private static let outerNames: [String: String] = [
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
  ]
  /// What the angles of rotary positions are divided by.
  static let rotaryDivisors = "rope_freqs.weight"

  let configuration: JSONValue

  /// - Parameter divisors: the values of ``rotaryDivisors``, if there are any
  /// - Throws: ``GGUFError`` for a model that is not read
  init(_ header: GGUFHeader, rotaryDivisors divisors: [Float]?) throws(GGUFError) {
    func error(_ reason: GGUFError.Reason) -> GGUFError { GGUFError(file: header.file, reason: reason) }
    guard case .text(let architecture) = header["general.architecture"] else {
      throw error(.missingKey("general.architecture"))
    }
    guard let family = Self.families[architecture] else {
      throw error(.architecture(architecture, known: Self.families.keys.sorted()))
    }
    if case .integer(let parts) = header["split.count"], parts > 1 { throw error(.split(parts: parts)) }
    func number(_ key: String) throws(GGUFError) -> JSONValue? {
      switch header["\(architecture).\(key)"] {
      case nil: return nil
      case .integer(let value): return .integer(value)
      case .number(let value): return .number(value)
      default: throw error(.badKey("\(architecture).\(key)"))
      }
    }
    func required(_ key: String) throws(GGUFError) -> JSONValue {
      guard let value = try number(key) else { throw error(.missingKey("\(architecture).\(key)")) }
      return value
    }
    guard let embeddings = header.tensors.first(where: { $0.name == "token_embd.weight" }) else {
      throw error(.missingKey("token_embd.weight"))
    }
    var settings: [String: JSONValue] = [
      "model_type": .string(family.modelType),
      "hidden_size": try required("embedding_length"),
      "intermediate_size": try required("feed_forward_length"),
      "num_hidden_layers": try required("block_count"),
      "num_attention_heads": try required("attention.head_count"),
      "rms_norm_eps": try required("attention.layer_norm_rms_epsilon"),
      "max_position_embeddings": try required("context_length"),
      "rope_theta": try number("rope.freq_base") ?? 10_000,
      "vocab_size": .integer(embeddings.shape[0]),
      "tie_word_embeddings": .bool(!header.tensors.contains { $0.name == "output.weight" }),
      "rope_interleaved": .bool(family.turnsNeighbours),
      "attention_bias": .bool(header.tensors.contains { $0.name == "blk.0.attn_q.bias" }),
    ]
    settings["num_key_value_heads"] = try number("attention.head_count_kv")
    for key in ["rope.dimension_count", "attention.key_length"] {
      if let dimension = try number(key) { settings["head_dim"] = dimension }
    }
    if header["\(architecture).expert_count"].map({ $0 != .integer(0) }) ?? false {
      throw error(.architecture("\(architecture) with experts", known: Self.families.keys.sorted()))
    }
    settings["rope_scaling"] = try Self.scaling(header, architecture, divisors, number)
    configuration = .object(settings)
  }

  private static func scaling(
    _ header: GGUFHeader, _ architecture: String, _ divisors: [Float]?,
    _ number: (String) throws(GGUFError) -> JSONValue?
  ) throws(GGUFError) -> JSONValue? {
    if let divisors {
      // Llama 3's, as the converter has worked them out.
      let values = JSONValue.array(divisors.map { .number(Double($0)) })
      return [
        "rope_type": "longrope", "short_factor": values, "long_factor": values, "attention_factor": 1,
        // Both lists are the same.
        "original_max_position_embeddings": 1,
      ]
    }
    guard case .text(let type) = header["\(architecture).rope.scaling.type"], type != "none" else {
      return nil
    }
    guard let factor = try number("rope.scaling.factor") else { return nil }
    var scaling: [String: JSONValue] = ["rope_type": .string(type), "factor": factor]
    scaling["original_max_position_embeddings"] = try number("rope.scaling.original_context_length")
    scaling["attention_factor"] = try number("rope.scaling.attn_factor")
    return .object(scaling)
  }

  /// The name that a tensor has beside config.json; its own, if it is none of the decoder's.
  static func name(of tensor: String) -> String {
    var parts = tensor.split(separator: ".").map(String.init)
    guard let kind = parts.popLast(), kind == "weight" || kind == "bias" else { return tensor }
    if parts.count == 1, let name = outerNames[parts[0]] { return "\(name).\(kind)" }
    guard parts.count == 3, parts[0] == "blk", let name = layerNames[parts[2]] else { return tensor }
    return "model.layers.\(parts[1]).\(name).\(kind)"
  }
}

extension TensorInfo {
  /// A tensor of a GGUF file, by the name that it has beside config.json.
  init(_ tensor: GGUFHeader.Tensor, file: String) {
    let name = GGUFModel.name(of: tensor.name)
    let isReadable = tensor.type.plainType == nil && tensor.type.isReadable
    let dtype = tensor.type.plainType ?? (isReadable ? .float32 : .other(tensor.type.name))
    var part: TensorPart?
    if name != tensor.name {
      let columns = tensor.shape.last ?? 1
      part = TensorPart(
        whole: tensor.name, shape: tensor.shape, first: 0, rowStride: columns, columnStride: 1, start: 0)
    }
    self.init(
      name: name, dtype: dtype, shape: tensor.shape, file: file, byteRange: tensor.bytes,
      coding: isReadable ? .blocks(tensor.type) : nil, part: part)
  }
}
