import Checkpoint
import ComputeOpenBLAS
import TestSupport
import Testing

@testable import Decoder

/// What the decoder makes of config.json, and what it refuses.
struct ConfigurationTests {
  @Test func `an unknown architecture is refused with the list of those that are known`() throws {
    let error = try #require(throws: DecoderError.self) { try describe("llama", ["model_type": "mamba"]) }
    guard case .unknownArchitecture("mamba", let known) = error else {
      Issue.record("\(error)")
      return
    }
    #expect(Set(known).isSuperset(of: ["llama", "mistral", "qwen2", "qwen3", "opt", "bloom", "falcon"]))
    for name in known { #expect("\(error)".contains(name)) }
  }

  @Test(
    arguments: [
      ("llama", "rope_scaling", ["rope_type": "yarn", "factor": 4], "yarn"),
      ("llama", "rope_parameters", ["rope_type": "dynamic", "factor": 4], "dynamic"),
      ("llama", "partial_rotary_factor", 0.5, "partial_rotary_factor"),
      ("falcon-7b", "rope_parameters", ["partial_rotary_factor": 0.25], "partial_rotary_factor"),
      ("llama", "hidden_act", "xielu", "xielu"),
      ("bloom", "apply_residual_connection_post_layernorm", true, "apply_residual_connection_post_layernorm"),
      ("opt-pre", "layer_norm_elementwise_affine", false, "layer_norm_elementwise_affine"),
      ("llama", "num_hidden_layers", 0, "num_hidden_layers"),
      ("llama", "num_hidden_layers", 1e12, "num_hidden_layers"),
      ("llama", "hidden_size", 4_611_686_018_427_387_904, "hidden_size"),
      ("llama", "intermediate_size", 16_777_217, "intermediate_size"),
      ("llama", "head_dim", 5, "head_dim"),
      ("llama", "rms_norm_eps", .number(.nan), "rms_norm_eps"),
      ("llama", "hidden_size", "wide", "hidden_size"),
      ("llama", "attention_bias", "yes", "attention_bias"),
    ] as [(String, String, JSONValue, String)])
  func `a setting that the decoder does not have is refused by its name`(
    _ fixture: String, _ key: String, _ value: JSONValue, _ mention: String
  ) throws {
    let error = try #require(throws: DecoderError.self) { try describe(fixture, [key: value]) }
    guard case .unsupportedSetting = error else {
      Issue.record("\(error)")
      return
    }
    #expect("\(error)".contains(mention))
    #expect("\(error)".contains("supported:"))
  }

  @Test(arguments: ["hidden_size", "num_attention_heads", "vocab_size", "intermediate_size", "model_type"])
  func `a key that is missing is named`(_ key: String) throws {
    #expect(throws: DecoderError.missingKey(key)) { try describe("llama", [key: nil]) }
  }

  @Test func `a scaling without its factor is refused`() throws {
    #expect(throws: DecoderError.missingKey("rope_scaling.factor")) {
      try describe("llama", ["rope_scaling": ["type": "linear"]])
    }
  }

  @Test func `two spellings of one setting are read where they agree and refused where they do not`() throws {
    let scaling: JSONValue = ["rope_type": "linear", "factor": 2]
    _ = try describe("llama", ["rope_parameters": scaling, "rope_scaling": scaling])
    #expect(throws: DecoderError.contradiction("rope_parameters", "rope_scaling")) {
      try describe("llama", ["rope_parameters": ["rope_type": "default"], "rope_scaling": scaling])
    }
  }

  @Test func `heads that leave no dimension to each are refused`() throws {
    let error = try #require(throws: DecoderError.self) {
      try describe("llama", ["head_dim": nil, "num_attention_heads": 64])
    }
    #expect("\(error)".contains("head_dim"))
  }

  @Test func `a whole number under two names that differ is refused`() throws {
    _ = try describe("bloom", ["num_hidden_layers": 2, "n_layer": 2])
    #expect(throws: DecoderError.contradiction("n_layer", "num_hidden_layers")) {
      try describe("bloom", ["num_hidden_layers": 3, "n_layer": 2])
    }
  }

  @Test func `heads that cannot share keys evenly are refused`() throws {
    #expect(throws: DecoderError.inconsistentHeads(heads: 4, keyValueHeads: 3)) {
      try describe("llama", ["num_key_value_heads": 3])
    }
  }

  @Test func `a sequence longer than the model's positions is refused`() throws {
    let fixture = try Fixture("opt-pre")
    #expect(throws: DecoderError.sequenceTooLong(129, maximum: 128)) {
      try DecoderModel(
        fixture.description, source: fixture.checkpoint, backend: OpenBLASBackend(threads: 1),
        sequenceLength: 129)
    }
  }

  @Test func `alibi sets no limit to the length of a sequence`() throws {
    #expect(try Fixture("bloom").description.maximumSequenceLength == nil)
    #expect(try Fixture("falcon-rw").description.maximumSequenceLength == nil)
  }

  @Test func `a sliding window bounds the length where it is in use`() throws {
    #expect(try describe("mistral", ["sliding_window": 16]).maximumSequenceLength == 16)
    #expect(try describe("mistral", [:]).maximumSequenceLength == 128)
    #expect(try describe("qwen2", ["sliding_window": 16]).maximumSequenceLength == 128)
    let windowed: [String: JSONValue] = ["sliding_window": 16, "use_sliding_window": true]
    #expect(try describe("qwen2", windowed).maximumSequenceLength == 16)
  }

  @Test(arguments: [-1, 64])
  func `a token outside the vocabulary is refused`(_ token: Int32) throws {
    let fixture = try Fixture("llama")
    var tokens = fixture.tokens
    tokens[5] = token
    #expect(throws: DecoderError.tokenOutsideVocabulary(token: token, vocabulary: 64)) {
      try fixture.model(OpenBLASBackend(threads: 1)).embed(tokens)
    }
  }

  /// The description of a fixture whose config.json is changed; a value of nil removes a key.
  @discardableResult
  private func describe(_ fixture: String, _ changes: [String: JSONValue?]) throws -> ModelDescription {
    let checkpoint = try CheckpointReader(directory: TestFiles.model(fixture))
    var configuration = try #require(checkpoint.configuration.object)
    for (key, value) in changes { configuration[key] = value }
    return try ModelDescription(configuration: .object(configuration)) { checkpoint.shape(of: $0) != nil }
  }
}
