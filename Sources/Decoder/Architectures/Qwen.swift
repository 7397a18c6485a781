extension Architecture {
  /// Qwen 1.5 to 2.5: llama's layer with biases on queries, keys and values.
  static let qwen2 = Architecture(
    modelTypes: ["qwen2"], wrappers: ["qwen2_5_vl": ["qwen2_5_vl_text", "qwen2_5_vl"]]
  ) { config in
    let windows = try config.qwenWindows()
    return try .llamaLike(config, projectionHasBias: true) { $0.attention.window = windows[$1] }
  }

  /// Qwen 3, dense: a norm over every head of queries and keys.
  static let qwen3 = Architecture(modelTypes: ["qwen3"], wrappers: ["qwen3_vl": ["qwen3_vl_text"]]) {
    config in
    let hasBias = try config.flag("attention_bias", default: false)
    let windows = try config.qwenWindows()
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias, normalizesHeads: true
    ) { $0.attention.window = windows[$1] }
  }
}

extension ConfigurationReader {
  /// The window of every layer: the first layers have none.
  fileprivate func qwenWindows() throws(DecoderError) -> [Int?] {
    let count = try integer("num_hidden_layers")
    guard try flag("use_sliding_window", default: false), let window = try window(default: 4_096) else {
      return Array(repeating: nil, count: count)
    }
    let first = values["max_window_layers"]?.int ?? 28
    return try slidingLayers(count: count) { $0 >= first }.map { $0 ? window : nil }
  }
}
