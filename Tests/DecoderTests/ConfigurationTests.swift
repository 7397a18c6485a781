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
      ("llama", "rope_scaling", ["rope_type": "xpos", "factor": 4], "xpos"),
      ("llama", "rope_scaling", ["rope_type": "linear", "factor": -1], "factor"),
      (
        "phi3", "rope_scaling", ["type": "longrope", "short_factor": [1], "long_factor": [1]], "short_factor"
      ),
      ("llama", "rope_theta", 0, "rope_theta"),
      ("gemma2", "layer_types", ["full_attention"], "layer_types"),
      (
        "gemma2", "layer_types", ["full_attention", "chunked_attention", "full_attention", "full_attention"],
        "chunked"
      ),
      ("gemma2", "sliding_window", 0, "sliding_window"),
      ("gemma2", "attn_logit_softcapping", -1, "attn_logit_softcapping"),
      ("gemma2", "query_pre_attn_scalar", 0, "query_pre_attn_scalar"),
      ("gemma3", "use_bidirectional_attention", true, "use_bidirectional_attention"),
      ("gemma3", "sliding_window_pattern", 4.5, "sliding_window_pattern"),
      ("granite", "residual_multiplier", 0, "residual_multiplier"),
      ("mpt", "attn_config", ["alibi": false], "alibi"),
      ("mpt", "attn_config", ["qk_ln": true], "qk_ln"),
      ("mpt", "attn_config", ["clip_qkv": -1], "clip_qkv"),
      ("mpt", "no_bias", false, "no_bias"),
      ("gemma4", "per_layer_config", ["1": ["sliding_window": 4]], "per_layer_config.1.sliding_window"),
      ("gptj", "rotary_dim", 10, "rotary_dim"),
      ("gpt2", "add_cross_attention", true, "add_cross_attention"),
      ("glm4", "partial_rotary_factor", 2, "partial_rotary_factor"),
      ("llama", "rope_parameters", ["rope_type": "axial", "factor": 4], "axial"),
      ("llama", "partial_rotary_factor", 0.5, "partial_rotary_factor"),
      ("falcon-7b", "rope_parameters", ["partial_rotary_factor": 0.25], "partial_rotary_factor"),
      ("llama", "hidden_act", "xielu", "xielu"),
      ("bloom", "apply_residual_connection_post_layernorm", true, "apply_residual_connection_post_layernorm"),
      ("opt-pre", "layer_norm_elementwise_affine", false, "layer_norm_elementwise_affine"),
      ("llama", "num_hidden_layers", 0, "num_hidden_layers"),
      ("llama", "num_hidden_layers", 1e12, "num_hidden_layers"),
      ("llama", "num_hidden_layers", 4_097, "num_hidden_layers"),
      ("gemma3", "head_dim", 16_777_216, "head_dim"),
      ("gemma3", "num_hidden_layers", 16_000_000, "num_hidden_layers"),
      ("qwen3-5", "linear_num_value_heads", 1e12, "linear_num_value_heads"),
      ("qwen3-5", "layer_types", ["sliding_attention"], "layer_types"),
      ("qwen3-5", "attn_output_gate", false, "attn_output_gate"),
      ("gemma4", "hidden_size_per_layer_input", 256, "hidden_size_per_layer_input"),
      ("gemma4", "enable_moe_block", "yes", "enable_moe_block"),
      ("phimoe", "num_experts_per_tok", 3, "num_experts_per_tok"),
      ("gemma3-vision", "text_config", ["model_type": "llama"], "text_config.model_type"),
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

  @Test func `a sliding window is that of the layers that config.json gives it to`() throws {
    func windows(_ fixture: String, _ changes: [String: JSONValue?]) throws -> [Int?] {
      try describe(fixture, changes).layers.map(\.attention.window)
    }
    #expect(try windows("mistral", ["sliding_window": 16]) == [16, 16])
    #expect(try windows("mistral", [:]) == [nil, nil])
    #expect(try windows("qwen2", ["sliding_window": 16]) == [nil, nil])
    var windowed: [String: JSONValue] = ["sliding_window": 16, "use_sliding_window": true]
    #expect(try windows("qwen2", windowed) == [nil, nil])
    windowed["max_window_layers"] = 1
    #expect(try windows("qwen2", windowed) == [nil, 16])
    windowed["layer_types"] = ["sliding_attention", "full_attention"]
    #expect(try windows("qwen2", windowed) == [16, nil])
    #expect(try windows("gemma2", [:]) == [6, nil, 6, nil])
    #expect(try windows("gemma3", [:]) == [6, 6, nil, 6])
  }

  @Test func `the embeddings of gemma are scaled as the model was trained`() throws {
    let wide: [String: JSONValue?] = ["hidden_size": 2_304]
    #expect(try describe("gemma2", wide).embedding.scale == 48)
    let odd: [String: JSONValue?] = ["hidden_size": 3_584, "torch_dtype": "bfloat16"]
    #expect(try describe("gemma2", odd).embedding.scale == 59.75)
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
