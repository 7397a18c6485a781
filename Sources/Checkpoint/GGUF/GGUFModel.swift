import SystemIO
import Tensors

/// What a GGUF file says of its model, in the words of config.json: the configuration that the decoder reads, and the names
/// that its tensors have there.
struct GGUFModel {
  /// What the angles of rotary positions are divided by: one list, or one for sequences of the length that the model was
  /// first trained with, and one for longer ones.
  static let rotaryDivisors = "rope_freqs.weight"
  static let shortDivisors = "rope_factors_short.weight"
  static let longDivisors = "rope_factors_long.weight"

  let configuration: JSONValue
  private let family: GGUFFamily

  /// What the names of a layer's modules begin with, before its number.
  var layers: String { family.layers }
  /// See ``SplitLatents``.
  var splitsLatents: Bool { family.splitsLatents }

  /// - Parameters:
  ///   - values: the values of a tensor
  ///   - bytes: bytes of the file that the keys are in
  /// - Throws: ``GGUFError`` for a model that is not read
  init(
    _ header: GGUFHeader, values: (GGUFHeader.Tensor) throws(GGUFError) -> [Float],
    bytes: (Range<Int>) -> [UInt8]
  ) throws(GGUFError) {
    func error(_ reason: GGUFError.Reason) -> GGUFError { GGUFError(file: header.file, reason: reason) }
    guard case .text(let architecture) = header["general.architecture"] else {
      throw error(.missingKey("general.architecture"))
    }
    var divisors: [Float]?
    if let tensor = header.tensors.first(where: { $0.name == Self.rotaryDivisors }) {
      divisors = try values(tensor)
    }
    let keys = GGUFKeys(
      header: header, architecture: architecture, rotaryDivisors: divisors,
      flags: Dictionary(
        uniqueKeysWithValues: header.keys.compactMap { key in
          guard case .array(GGUFHeader.flagType, _, let range) = key.value else { return nil }
          return (key.name, bytes(range).map { $0 != 0 })
        }))
    let hasExperts = try keys.number("expert_count").map { $0 != 0 } ?? false
    let name =
      hasExperts && GGUFFamily.known[architecture]?.stacks.isEmpty ?? true
      ? architecture + GGUFFamily.withExperts : architecture
    guard let family = GGUFFamily.known[name] else {
      let known = GGUFFamily.known.keys.filter { !$0.contains(" ") }
      throw error(
        .architecture(
          hasExperts ? architecture + GGUFFamily.withExperts : architecture, known: known.sorted()))
    }
    guard let embeddings = header.tensors.first(where: { $0.name == "token_embd.weight" }) else {
      throw error(.missingKey("token_embd.weight"))
    }
    let epsilonKind = header["\(architecture).attention.layer_norm_rms_epsilon"] == nil ? "" : "rms_"
    var settings: [String: JSONValue] = [
      "model_type": .string(family.modelType),
      "hidden_size": try keys.required("embedding_length"),
      "intermediate_size": try keys.required(
        keys.has("feed_forward_length") ? "feed_forward_length" : "expert_feed_forward_length"),
      "num_hidden_layers": .integer(try keys.layers()),
      "num_attention_heads": try keys.required("attention.head_count"),
      family.epsilon: try keys.required("attention.layer_norm_\(epsilonKind)epsilon"),
      "max_position_embeddings": try keys.required("context_length"),
      "rope_theta": try keys.number("rope.freq_base") ?? 10_000,
      "vocab_size": .integer(embeddings.shape[0]),
      "tie_word_embeddings": .bool(!keys.hasTensor("output.weight")),
      "attention_bias": .bool(keys.hasTensor("blk.0.attn_q.bias")),
      "gguf": [
        "rope_interleaved": .bool(family.turnsNeighbours), "norms_hold_one": .bool(family.normsHoldOne),
        "fuses_blocks": .bool(family.fusesBlocks), "tiles_value_heads": .bool(family.tilesValueHeads),
        "has_decays": .bool(family.bare["ssm_a"] != nil),
      ],
    ]
    // Of layers that differ, a family finds it out.
    if !keys.isList("attention.head_count_kv") {
      settings["num_key_value_heads"] = try keys.number("attention.head_count_kv")
    }
    settings["head_dim"] = try keys.number("attention.key_length")
    if family.turnsPartly {
      if let turned = try keys.number("rope.dimension_count")?.double, keys.headDimension > 0 {
        settings["partial_rotary_factor"] = .number(turned / keys.headDimension)
      }
    } else if settings["head_dim"] == nil {
      settings["head_dim"] = try keys.number("rope.dimension_count")
    }
    settings["rope_scaling"] = try Self.scaling(keys, values)
    settings.merge(try family.settings(keys)) { $1 }
    configuration = .object(settings)
    self.family = family
  }

  private static func scaling(
    _ keys: GGUFKeys, _ values: (GGUFHeader.Tensor) throws(GGUFError) -> [Float]
  ) throws(GGUFError) -> JSONValue? {
    func list(_ values: [Float]) -> JSONValue { .array(values.map { .number(Double($0)) }) }
    func divisors(_ name: String) throws(GGUFError) -> JSONValue? {
      guard let tensor = keys.header.tensors.first(where: { $0.name == name }) else { return nil }
      return list(try values(tensor))
    }
    let original = try keys.number("rope.scaling.original_context_length")
    let attention = try keys.number("rope.scaling.attn_factor")
    if let all = keys.rotaryDivisors.map(list) {
      // Llama 3's, as the converter has worked them out. Both lists are the same.
      return [
        "rope_type": "longrope", "short_factor": all, "long_factor": all, "attention_factor": 1,
        "original_max_position_embeddings": 1,
      ]
    }
    if let short = try divisors(shortDivisors), let long = try divisors(longDivisors) {
      var scaling: [String: JSONValue] = [
        "rope_type": "longrope", "short_factor": short, "long_factor": long,
      ]
      scaling["original_max_position_embeddings"] = original
      scaling["attention_factor"] = attention
      return .object(scaling)
    }
    guard case .text(let type) = keys.header["\(keys.architecture).rope.scaling.type"], type != "none" else {
      return nil
    }
    guard let factor = try keys.number("rope.scaling.factor") else { return nil }
    var scaling: [String: JSONValue] = ["rope_type": .string(type), "factor": factor]
    scaling["original_max_position_embeddings"] = original
    scaling["attention_factor"] = attention
    return .object(scaling)
  }

  /// The file's tensors by the names that they have beside config.json, every expert of a stack apart.
  func tensors(of header: GGUFHeader) -> [TensorInfo] {
    header.tensors.flatMap { tensor -> [TensorInfo] in
      var parts = tensor.name.split(separator: ".").map(String.init)
      if parts.count > 2, parts[0] == "blk", let name = family.bare[parts[2...].joined(separator: ".")] {
        return [TensorInfo(tensor, named: "\(family.layers)\(parts[1]).\(name)")]
      }
      guard let kind = parts.popLast(), kind == "weight" || kind == "bias" else {
        return [TensorInfo(tensor, named: tensor.name)]
      }
      if parts.count == 1, let name = family.outer[parts[0]] {
        return [TensorInfo(tensor, named: "\(name).\(kind)")]
      }
      guard 3...4 ~= parts.count, parts[0] == "blk" else {
        return [TensorInfo(tensor, named: tensor.name)]
      }
      let layer = "\(family.layers)\(parts[1])"
      func name(_ pattern: String, ofExpert number: Int) -> String {
        "\(layer).\(pattern.replacing("#", with: "\(number)")).\(kind)"
      }
      if parts.count == 4 {
        // Of files that were made before there were stacks: `blk.0.ffn_down.3`.
        guard let expert = Int(parts[3]), let pattern = family.stacks["\(parts[2])_exps"]?.first else {
          return [TensorInfo(tensor, named: tensor.name)]
        }
        return [TensorInfo(tensor, named: name(pattern, ofExpert: expert))]
      }
      if let patterns = family.stacks[parts[2]], tensor.shape.count == 3, tensor.shape[0] <= Self.mostExperts,
        tensor.shape[1].isMultiple(of: patterns.count)
      {
        let rows = tensor.shape[1] / patterns.count
        return (0..<tensor.shape[0]).flatMap { expert in
          patterns.enumerated().map { number, pattern in
            let start = expert * tensor.shape[1] + number * rows
            return TensorInfo(tensor, named: name(pattern, ofExpert: expert), rows: start..<start + rows)
          }
        }
      }
      // Of two norms the first one is the MLP's.
      let hasTwoNorms = header.tensors.contains { $0.name == "blk.\(parts[1]).attn_norm_2.weight" }
      let name =
        switch (hasTwoNorms, parts[2]) {
        case (true, "attn_norm"): "ln_mlp"
        case (true, "attn_norm_2"): "ln_attn"
        default: family.inner[parts[2]]
        }
      return [TensorInfo(tensor, named: name.map { "\(layer).\($0).\(kind)" } ?? tensor.name)]
    }
  }

  /// Beyond any model.
  private static let mostExperts = 4_096
}

extension TensorInfo {
  /// A tensor of a GGUF file, or some rows of a stack of matrices.
  fileprivate init(_ tensor: GGUFHeader.Tensor, named name: String, rows: Range<Int>? = nil) {
    let isReadable = tensor.type.plainType == nil && tensor.type.isReadable
    let dtype = tensor.type.plainType ?? (isReadable ? .float32 : .other(tensor.type.name))
    let shape = rows.map { [$0.count, tensor.shape.last ?? 0] } ?? tensor.shape
    var bytes = tensor.bytes
    var part: TensorPart?
    if name != tensor.name {
      let start = (rows?.lowerBound ?? 0) * (shape.last ?? 1)
      part = TensorPart(
        whole: tensor.name, shape: tensor.shape, first: start, rowStride: shape.last ?? 1, columnStride: 1,
        start: start)
      if let rows {
        let width = bytes.count / max(tensor.shape.dropLast().reduce(1, *), 1)
        bytes = bytes.lowerBound + rows.lowerBound * width..<bytes.lowerBound + rows.upperBound * width
      }
    }
    self.init(
      name: name, dtype: dtype, shape: shape, file: tensor.file, byteRange: bytes,
      coding: isReadable ? .blocks(tensor.type) : nil, part: part)
  }
}
