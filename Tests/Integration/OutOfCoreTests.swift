import Checkpoint
import Foundation
import SystemIO
import Tensors
import TestSupport
import Testing

/// The memory of a run, mapped files aside, follows from the size of a layer and of a batch, not from the
/// number of layers or of calibration sequences.
@Suite(.serialized) struct OutOfCoreTests {
  @Test func `peak memory does not grow with the layers or the calibration set`() throws {
    let directory = try TemporaryDirectory()
    let tokens = try directory.write(randomTokens: 64, of: 256, vocabulary: 512, seed: 4)
    for layers in [4, 8] { try Self.makeModel(layers: layers, at: directory.file("model-\(layers)")) }

    func peak(layers: Int, samples: Int) throws -> Double {
      let output = directory.file("output-\(layers)-\(samples)")
      let run = try Quantease([
        "quantize", directory.file("model-\(layers)"), "--output", output, "--calibration", tokens,
        "--samples",
        "\(samples)", "--sequence-length", "256", "--threads", "2", "--target-share", "1", "--states",
        "cache", "--rotate", "off",
      ])
      try #require(run.status == 0, "\(run.errors)")
      let report = try JSONValue(contentsOf: output + "/quantease_report.json")
      return try #require(report["totals"]?["peak_memory_bytes"]?.double)
    }
    // 32 samples are two batches of 4,096 tokens, so that reading ahead has begun, and all run through both models:
    // a share of them would be less than a batch and would grow with them.
    let plain = try peak(layers: 4, samples: 32)
    let (ofLayers, ofSamples) = try (peak(layers: 8, samples: 32), peak(layers: 4, samples: 64))
    #expect(ofLayers <= 1.1 * plain, "\(ofLayers) bytes with twice the layers, \(plain) before")
    #expect(ofSamples <= 1.1 * plain, "\(ofSamples) bytes with twice the samples, \(plain) before")
  }

  /// Writes a llama of random bfloat16 weights with hidden size 256.
  static func makeModel(layers: Int, at path: String) throws {
    let (hidden, keys, mlp, vocabulary) = (256, 128, 1_024, 512)
    var shapes: [(String, [Int])] = [("model.embed_tokens.weight", [vocabulary, hidden])]
    for layer in 0..<layers {
      shapes += [
        ("input_layernorm.weight", [hidden]), ("self_attn.q_proj.weight", [hidden, hidden]),
        ("self_attn.k_proj.weight", [keys, hidden]), ("self_attn.v_proj.weight", [keys, hidden]),
        ("self_attn.o_proj.weight", [hidden, hidden]), ("post_attention_layernorm.weight", [hidden]),
        ("mlp.gate_proj.weight", [mlp, hidden]), ("mlp.up_proj.weight", [mlp, hidden]),
        ("mlp.down_proj.weight", [hidden, mlp]),
      ].map { ("model.layers.\(layer).\($0.0)", $0.1) }
    }
    shapes.append(("model.norm.weight", [hidden]))

    try FileSystem.createDirectories(path)
    let plan = shapes.map { TensorPlan(name: $0.0, dtype: .bfloat16, shape: $0.1) }
    let writer = try CheckpointWriter(directory: path, plan: plan)
    var generator = SeededGenerator(seed: 5)
    for (name, shape) in shapes {
      let center: Float = shape.count == 1 ? 1 : 0
      let bits = (0..<shape.reduce(1, *)).map { _ in
        (center + Float.random(in: -0.1...0.1, using: &generator)).bfloat16Bits
      }
      try writer.write(name, littleEndian(bits))
    }
    try writer.finish()
    let configuration: JSONValue = [
      "model_type": "llama", "hidden_size": .integer(hidden), "intermediate_size": .integer(mlp),
      "num_hidden_layers": .integer(layers), "num_attention_heads": 4, "num_key_value_heads": 2,
      "vocab_size": .integer(vocabulary), "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
      "tie_word_embeddings": true,
    ]
    try AtomicFile.write(configuration.prettyText, to: path + "/config.json")
  }
}
