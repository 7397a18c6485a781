extension Architecture {
  /// Qwen 1.5 to 2.5: llama's layer with biases on queries, keys and values.
  static let qwen2 = Architecture(modelTypes: ["qwen2"]) { config in
    try .llamaLike(
      config, projectionHasBias: true,
      isWindowed: config.flag("use_sliding_window", default: false))
  }

  /// Qwen 3, dense: a norm over every head of queries and keys.
  static let qwen3 = Architecture(modelTypes: ["qwen3"]) { config in
    let hasBias = try config.flag("attention_bias", default: false)
    return try .llamaLike(
      config, projectionHasBias: hasBias, outputHasBias: hasBias, normalizesHeads: true,
      isWindowed: config.flag("use_sliding_window", default: false))
  }
}
