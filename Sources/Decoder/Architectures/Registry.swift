import Checkpoint

/// A family of models: the `model_type`s that it answers for, and its reading of config.json.
struct Architecture: Sendable {
  let modelTypes: [String]
  /// Models with other towers beside a text model of this family, which config.json describes under `text_config`; what
  /// `model_type` says there.
  var wrappers: [String: [String]] = [:]
  let describe: @Sendable (ConfigurationReader) throws -> ModelDescription

  /// Every known family. A new one is a file beside this one and a line here.
  static let all: [Architecture] = [
    .llama, .mistral, .qwen2, .qwen3, .qwen3_5, .opt, .bloom, .falcon, .gemma, .gemma2, .gemma3, .gemma4,
    .phi3, .olmo2,
    .olmo3,
    .exaone4, .smolLM3, .granite, .cohere, .cohere2, .glm4, .seedOSS, .ernie, .arcee, .stableLM, .starcoder2,
    .nemotron, .apertus, .hunyuan, .phi, .mpt, .gptJ, .gpt2, .gptNeoX, .mixtral, .qwen2MoE, .qwen3MoE,
    .qwen3_5MoE, .olmoe, .glm4MoE, .minimaxM2,
    .deepSeekV2, .deepSeekV3, .glm4MoELite, .qwen3Next, .ernieMoE, .hunyuanMoE, .hunyuan3,
    .graniteMoE, .phiMoE, .gptOSS, .llama4,
  ]
}

extension ModelDescription {
  /// The values of `model_type` in config.json that this decoder runs.
  public static var knownModelTypes: [String] {
    Architecture.all.flatMap { $0.modelTypes + $0.wrappers.keys }.sorted()
  }

  /// Reads config.json.
  /// - Parameter hasTensor: whether the checkpoint holds a tensor of this name.
  /// - Throws: ``DecoderError`` for an unknown architecture, or a setting that the decoder does not have.
  public init(configuration: JSONValue, hasTensor: @escaping (String) -> Bool) throws {
    var reader = ConfigurationReader(values: configuration, hasTensor: hasTensor)
    let type = try reader.modelType
    let isKnown = { (architecture: Architecture) in
      architecture.modelTypes.contains(type) || architecture.wrappers[type] != nil
    }
    guard let architecture = Architecture.all.first(where: isKnown) else {
      throw DecoderError.unknownArchitecture(type, known: Self.knownModelTypes)
    }
    if let inner = architecture.wrappers[type] { reader = try reader.textModel(inner) }
    self = try architecture.describe(reader)
    modelType = type
    for attention in layers.map(\.attention) {
      guard attention.headDimension > 0 else {
        throw DecoderError.unsupportedSetting(
          key: "head_dim", value: "\(attention.headDimension)", supported: "a positive whole number")
      }
      guard attention.heads % attention.keyValueHeads == 0 else {
        throw DecoderError.inconsistentHeads(
          heads: attention.heads, keyValueHeads: attention.keyValueHeads)
      }
    }
  }
}
