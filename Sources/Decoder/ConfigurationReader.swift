import Checkpoint
import Compute
import Tensors

/// Typed access to config.json for the declarations of the families.
struct ConfigurationReader {
  private(set) var values: JSONValue
  /// Whether the text model is one of several towers.
  private(set) var isWrapped = false
  /// Whether the checkpoint has a tensor of this name: some exports leave out a model's outer prefix.
  let hasTensor: (String) -> Bool

  init(values: JSONValue, hasTensor: @escaping (String) -> Bool) {
    self.values = values
    self.hasTensor = hasTensor
  }

  /// The reader of `text_config`; some checkpoints have its keys among the model's own.
  /// - Parameter types: what `model_type` may say there
  func textModel(_ types: [String]) throws(DecoderError) -> ConfigurationReader {
    var reader = self
    reader.isWrapped = true
    guard var text = values["text_config"]?.object else { return reader }
    if let type = text["model_type"]?.string, !types.contains(type) {
      throw .unsupportedSetting(
        key: "text_config.model_type", value: type, supported: types.joined(separator: ", "))
    }
    for key in ["dtype", "torch_dtype", "tie_word_embeddings"] where text[key] == nil {
      text[key] = values[key]
    }
    reader.values = .object(text)
    return reader
  }

  /// The same with values for keys that are missing.
  func filled(with defaults: [String: JSONValue]) -> ConfigurationReader {
    var reader = self
    reader.values = .object(defaults.merging(values.object ?? [:]) { $1 })
    return reader
  }

  /// The same with rotary positions where config.json says nothing of them.
  func filled(withRotary rope: JSONValue) -> ConfigurationReader {
    let hasScaling = values["rope_scaling"] ?? .null != .null
    return hasScaling ? self : filled(with: ["rope_parameters": rope])
  }

  /// The same without some keys, or with other values for them.
  func replacing(_ changes: [String: JSONValue?]) -> ConfigurationReader {
    var reader = self
    var object = values.object ?? [:]
    for (key, value) in changes { object[key] = value }
    reader.values = .object(object)
    return reader
  }

  var modelType: String {
    get throws(DecoderError) {
      guard let type = values["model_type"]?.string else { throw .missingKey("model_type") }
      return type
    }
  }

  /// Beyond any width or vocabulary, and small enough for two of them to be multiplied.
  private static let largestInteger = 1 << 24
  /// Beyond any model: each layer is described.
  private static let mostLayers = 1 << 12

  /// The number under those of the keys, all of them spellings of one setting, that are present.
  func integer(_ keys: String..., default fallback: Int? = nil) throws(DecoderError) -> Int {
    try integer(keys, upTo: Self.largestInteger, default: fallback)
  }

  /// The same of a model's layers.
  func layerCount(_ keys: String...) throws(DecoderError) -> Int {
    try integer(keys.isEmpty ? ["num_hidden_layers"] : keys, upTo: Self.mostLayers, default: nil)
  }

  private func integer(
    _ keys: [String], upTo largest: Int, default fallback: Int?
  ) throws(DecoderError) -> Int {
    for (index, key) in keys.enumerated() {
      guard let value = values[key], value != .null else { continue }
      for other in keys[(index + 1)...] { try refuseContradiction(key, other) }
      guard let number = value.int, (1...largest).contains(number) else {
        throw .unsupportedSetting(
          key: key, value: value.compactText, supported: "a whole number from 1 to \(largest)")
      }
      return number
    }
    guard let fallback else { throw .missingKey(keys.joined(separator: " or ")) }
    return fallback
  }

  func number(_ key: String, default fallback: Double) throws(DecoderError) -> Double {
    guard let value = values[key], value != .null else { return fallback }
    guard let number = value.double, number.isFinite else {
      throw .unsupportedSetting(key: key, value: value.compactText, supported: "a number")
    }
    return number
  }

  func flag(_ key: String, default fallback: Bool) throws(DecoderError) -> Bool {
    guard let value = values[key], value != .null else { return fallback }
    guard let flag = value.bool else {
      throw .unsupportedSetting(key: key, value: value.compactText, supported: "true or false")
    }
    return flag
  }

  /// Refuses a model that sets `key` to anything but `value`.
  func require(_ key: String, _ value: Bool, default fallback: Bool) throws(DecoderError) {
    guard try flag(key, default: fallback) == value else {
      throw .unsupportedSetting(key: key, value: "\(!value)", supported: "\(value)")
    }
  }

  /// Refuses other names under keys than those that are known.
  func requireNames(_ known: [String: [String]]) throws(DecoderError) {
    for (key, names) in known.sorted(by: { $0.key < $1.key }) {
      guard let value = values[key], value != .null else { continue }
      guard let name = value.string, names.contains(name) else {
        throw .unsupportedSetting(
          key: key, value: value.compactText, supported: names.joined(separator: ", "))
      }
    }
  }

  /// The activation function under `key`, by the names that transformers gives them.
  func activation(_ key: String, default fallback: String) throws(DecoderError) -> ActivationFunction {
    let name = values[key]?.string ?? fallback
    switch name {
    case "relu": return .relu
    case "silu", "swish": return .silu
    case "gelu": return .gelu
    case "gelu_new", "gelu_fast", "gelu_pytorch_tanh": return .geluTanh
    case "relu2": return .reluSquared
    default:
      throw .unsupportedSetting(
        key: key, value: name, supported: "relu, relu2, silu, gelu, gelu_new, gelu_pytorch_tanh")
    }
  }

  /// The first prefix under which the checkpoint holds `tensor`.
  func prefix(_ candidates: String..., holding tensor: String) -> String {
    candidates.first { hasTensor($0 + tensor) } ?? candidates[0]
  }

  /// Refuses a model that has a setting under both of two names, with different values.
  func refuseContradiction(_ one: String, _ other: String) throws(DecoderError) {
    guard let first = values[one], let second = values[other], first != .null, second != .null,
      first != second
    else { return }
    throw .contradiction(one, other)
  }

  /// The head's weights: `lm_head.weight` where it is stored, the embeddings where it is tied to them. That is what
  /// transformers does from version 5 on, for a stored head beside a tie as well.
  /// - Parameter name: of the head's tensor, if the family has another one
  func headWeights(
    _ name: String? = nil, embeddings: String, tiedByDefault: Bool
  ) throws(DecoderError) -> String {
    let isTied = try flag("tie_word_embeddings", default: tiedByDefault)
    let names = [name, "lm_head.weight", "language_model.lm_head.weight"].compactMap { $0 }
    if let name = names.first(where: hasTensor) { return name }
    guard isTied else { throw .noHead }
    return embeddings
  }

  /// The keys that a query of a layer with a sliding window sees; nil if config.json has no window.
  func window(default fallback: Int? = nil) throws(DecoderError) -> Int? {
    if values["sliding_window"] == .null { return nil }
    if values["sliding_window"] == nil && fallback == nil { return nil }
    return try integer("sliding_window", default: fallback)
  }

  /// The window of every layer, nil for those that see all.
  func windows(
    default fallback: Int? = nil, otherwise isSliding: (_ layer: Int) -> Bool
  ) throws(DecoderError) -> [Int?] {
    let window = try window(default: fallback)
    return try slidingLayers(count: layerCount(), otherwise: isSliding).map { $0 ? window : nil }
  }

  /// Which layers see a sliding window, by `layer_types`, or by a rule where config.json has none.
  func slidingLayers(count: Int, otherwise isSliding: (_ layer: Int) -> Bool) throws(DecoderError) -> [Bool] {
    try layers(of: "sliding_attention", count: count, otherwise: isSliding)
  }

  /// Which layers are of a type, those of the others being `full_attention`.
  func layers(
    of type: String, count: Int, otherwise isOfType: (_ layer: Int) -> Bool
  ) throws(DecoderError) -> [Bool] {
    guard let types = values["layer_types"], types != .null else { return (0..<count).map(isOfType) }
    let names = types.array?.compactMap(\.string) ?? []
    guard names.count >= count, names.allSatisfy({ $0 == type || $0 == "full_attention" }) else {
      throw .unsupportedSetting(
        key: "layer_types", value: String(types.compactText.prefix(200)),
        supported: "for every layer \(type) or full_attention")
    }
    return names.prefix(count).map { $0 == type }
  }

  /// The type that the weights were published in.
  var weightType: DType {
    switch values["dtype"]?.string ?? values["torch_dtype"]?.string {
    case "bfloat16": .bfloat16
    case "float16": .float16
    default: .float32
    }
  }

  /// Whether a GGUF file, whose keys the configuration is made of, has values elsewhere than the model was published with:
  /// `rope_interleaved`, neighbours of a head turn together; `norms_hold_one`, the 1 that is added to norms' weights is in
  /// them; `fuses_blocks`, a fused projection has all queries first; of linear attention `tiles_value_heads`, neighbouring
  /// value heads read different key heads, and `has_decays`, decays are −e^A in place of A, and output gates stand apart.
  func ggufLayout(_ key: String) -> Bool { values["gguf"]?[key]?.bool ?? false }

  /// The order of rows in a projection that families fuse head by head.
  var fusedRows: AttentionDescription.FusedRows { ggufLayout("fuses_blocks") ? .blocks : .groups }
}
