import Compute
import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

@testable import Decoder

/// What a family has beside the common layer shows in the logits of its fixture: a fixture that agrees without it would
/// let an error through.
struct SwitchTests {
  struct Switch: Sendable, CustomTestStringConvertible {
    let fixture: String
    let what: String
    let turnOff: @Sendable (inout ModelDescription) -> Void

    init(_ fixture: String, _ what: String, _ turnOff: @escaping @Sendable (inout ModelDescription) -> Void) {
      self.fixture = fixture
      self.what = what
      self.turnOff = turnOff
    }

    var testDescription: String { "\(fixture), \(what)" }

    /// A switch of every layer.
    static func layers(
      _ fixture: String, _ what: String, _ turnOff: @escaping @Sendable (inout LayerDescription) -> Void
    ) -> Switch {
      Switch(fixture, what) { model in
        for index in model.layers.indices { turnOff(&model.layers[index]) }
      }
    }

    /// Other positions for layers that have rotary ones.
    static func rotary(_ fixture: String, _ what: String, _ embedding: RotaryEmbedding) -> Switch {
      layers(fixture, what) { layer in
        if case .rotary = layer.attention.positions { layer.attention.positions = .rotary(embedding) }
      }
    }
  }

  private static let windowed = [
    "mistral-window", "qwen2-window", "gemma2", "gemma3", "gemma4", "phi3", "olmo3", "exaone4", "cohere2",
    "starcoder2", "gpt-oss",
  ]

  private static let mixtures: [Switch] = [
    .layers("qwen3-moe", "weights as they are") { $0.mixture?.renormalizes = false },
    .layers("qwen3-moe-raw", "weights renormalized") { $0.mixture?.renormalizes = true },
    .layers("qwen3-moe", "one expert less") { $0.mixture?.perToken -= 1 },
    .layers("qwen2-moe", "no gate of the shared expert") { $0.mixture?.sharedGate = nil },
    .layers("qwen3-5-moe", "no gate of the shared expert") { $0.mixture?.sharedGate = nil },
    .layers("olmoe", "weights renormalized") { $0.mixture?.renormalizes = true },
    .layers("mixtral", "a wider window") { $0.attention.window = $0.attention.window.map { $0 + 1 } },
    .layers("glm4-moe", "no groups") { $0.mixture?.groups = nil },
    .layers("glm4-moe", "no correction") { $0.mixture?.correction = nil },
    .layers("glm4-moe", "no factor of the experts") { $0.mixture?.scale = 1 },
    .layers("glm4-moe", "scores over all experts") { $0.mixture?.scoring = .softmax },
    .layers("deepseek-v3", "no groups") { $0.mixture?.groups = nil },
    .layers("deepseek-v3", "groups by their best expert") { $0.mixture?.groups?.best = 1 },
    .layers("deepseek-v3", "scores as if not stretched") {
      $0.attention.scoreScale = 1 / Float(10).squareRoot()
    },
    .rotary(
      "deepseek-v3", "no scaling", RotaryEmbedding(headDimension: 4, theta: 100, isInterleaved: true)),
    .rotary(
      "deepseek-v3-direct", "pairs of neighbours",
      RotaryEmbedding(headDimension: 4, theta: 100, isInterleaved: true)),
    .layers("deepseek-v2", "no groups") { $0.mixture?.groups = nil },
    .layers("deepseek-v2", "groups by two experts") { $0.mixture?.groups?.best = 2 },
    .layers("deepseek-v2", "no factor of the experts") { $0.mixture?.scale = 1 },
    .layers("ernie-moe", "no correction") { $0.mixture?.correction = nil },
    .layers("hunyuan-moe", "normalized first") { $0.attention.turnsFirst = false },
    .layers("hy-v3", "no correction") { $0.mixture?.correction = nil },
    .layers("hy-v3", "no factor of the experts") { $0.mixture?.scale = 1 },
    .layers("qwen3-next", "no gate of the shared expert") { $0.mixture?.sharedGate = nil },
    .layers("glm4-moe-lite", "no correction") { $0.mixture?.correction = nil },
    .layers("gpt-oss", "no sinks") { $0.attention.sinks = nil },
    .layers("gpt-oss", "no bias of the router") { $0.mixture?.routerHasBias = false },
    .layers("gpt-oss", "no clamp") {
      $0.mixture?.expert.clampedSwiGLU = ClampedSwiGLU(alpha: 1.702, limit: 1e9)
    },
    .layers("gpt-oss", "weights as they are") { $0.mixture?.renormalizes = false },
    .layers("gpt-oss-mxfp4", "another gate") {
      $0.mixture?.expert.clampedSwiGLU = ClampedSwiGLU(alpha: 1, limit: 1)
    },
    .layers("gemma4-moe", "no factors of the experts") { $0.mixture?.expertFactors = nil },
    .layers("gemma4-moe", "weights as they are") { $0.mixture?.renormalizes = false },
    .layers("gemma4-moe", "norms exchanged") { layer in
      guard let norms = layer.mixture?.norms else { return }
      layer.mixture?.norms?.routedOutput = norms.sharedOutput
    },
    .layers("llama4", "outputs scaled") { $0.mixture?.scalesInputs = false },
    .layers("llama4", "scores over all experts") { $0.mixture?.scoring = .softmax },
    .layers("llama4", "heads as they are") { $0.attention.plainNormEpsilon = nil },
    .layers("granite-moe", "weights as they are") { $0.mixture?.renormalizes = false },
    .layers("phimoe", "shares of all") { $0.mixture?.scoring = .sparseMixer(jitter: 1e9) },
    .layers("phimoe", "shares of none") { $0.mixture?.scoring = .sparseMixer(jitter: 0) },
    Switch("phimoe", "no bias of the head") { $0.head.bias = nil },
    .layers("minimax-m2", "no correction") { $0.mixture?.correction = nil },
    .layers("minimax-m2", "scores over all experts") { $0.mixture?.scoring = .softmax },
  ]

  static let switches: [Switch] =
    windowed.flatMap { fixture in
      [
        Switch.layers(fixture, "no window") { $0.attention.window = nil },
        .layers(fixture, "a wider window") { $0.attention.window = $0.attention.window.map { $0 + 1 } },
        .layers(fixture, "a narrower window") { $0.attention.window = $0.attention.window.map { $0 - 1 } },
      ]
    }
    + ["qwen2-window", "gemma2", "gemma3", "olmo3", "exaone4", "cohere2"].map { fixture in
      Switch(fixture, "the windows of other layers") { $0.layers = $0.layers.shifted }
    } + mixtures + [
      .layers("cohere-qk-norm", "heads as they are") {
        $0.attention.queryNorm = nil
        $0.attention.keyNorm = nil
      },
      .layers("stablelm-qk-norm", "heads as they are") { $0.attention.keyNorm = nil },
      .layers("phi-qk-norm", "heads as they are") { $0.attention.queryNorm = nil },
      Switch("phi", "no bias of the head") { $0.head.bias = nil },
      .rotary("phi", "whole heads", RotaryEmbedding(headDimension: 8, theta: 100)),
      .layers("apertus", "another activation") { $0.mlp.xielu = nil },
      .rotary("apertus", "no scaling", RotaryEmbedding(headDimension: 8, theta: 100)),
      .layers("hunyuan", "normalized first") { $0.attention.turnsFirst = false },
      .rotary("hunyuan", "no alpha", RotaryEmbedding(headDimension: 8, theta: 100)),
      .layers("gpt2-scaled", "equal scales of the scores") { $0.attention.scoreScale = 0.5 },
      Switch("gptj", "no bias of the head") { $0.head.bias = nil },
      .rotary("gptj", "pairs of halves", RotaryEmbedding(headDimension: 4, theta: 10_000)),
      .rotary("gptj", "whole heads", RotaryEmbedding(headDimension: 8, theta: 10_000, isInterleaved: true)),
      .layers("mpt-clip", "nothing clipped") { $0.attention.clip = nil },
      .layers("mpt-clip", "scores by the head's width") {
        $0.attention.scoreScale = 1 / Float(6).squareRoot()
      },
      .layers("mpt", "no positions") { $0.attention.positions = .none },
      .layers("gemma2", "no cap of scores") { $0.attention.softcap = nil },
      Switch("gemma2", "no cap of logits") { $0.head.softcap = nil },
      Switch("gemma2", "embeddings as they are") { $0.embedding.scale = 1 },
      .layers("gemma2", "scores by the head's width") { $0.attention.scoreScale = 1 / Float(8).squareRoot() },
      .layers("gemma2", "no norms of outputs") {
        $0.attentionOutputNorm = nil
        $0.mlpOutputNorm = nil
      },
      .layers("gemma2", "weights as stored") {
        $0.attentionNorm = .rootMeanSquare("input_layernorm", epsilon: 1e-3)
      },
      .layers("gemma", "another activation") { $0.mlp.activation = .silu },
      Switch("gemma3", "the positions of other layers") { model in
        for index in model.layers.indices {
          model.layers[index].attention.positions =
            model.layers[index].attention.window == nil
            ? model.layers[0].attention.positions : model.layers[2].attention.positions
        }
      },
      .layers("gemma3", "heads as they are") { $0.attention.queryNorm = nil },
      .layers("gemma4", "values as they are") { $0.attention.valueNormEpsilon = nil },
      .layers("gemma4", "no factor of the layer") { $0.outputScale = nil },
      .layers("gemma4", "scaled scores") { $0.attention.scoreScale = 0.35 },
      Switch("gemma4", "whole heads turn") { model in
        for index in [1, 3] {
          model.layers[index].attention.positions = .rotary(RotaryEmbedding(headDimension: 16, theta: 50))
        }
      },
      .layers("qwen3-5", "weights as stored") {
        $0.attentionNorm = .rootMeanSquare("input_layernorm", epsilon: 1e-3)
      },
      .rotary("qwen3-5", "whole heads", RotaryEmbedding(headDimension: 8, theta: 100)),
      .rotary("ministral3", "no scaling", RotaryEmbedding(headDimension: 8, theta: 100)),
      .layers("olmo2", "no norm of outputs") { $0.mlpOutputNorm = nil },
      Switch("smollm3", "positions in every layer") { model in
        for index in model.layers.indices {
          model.layers[index].attention.positions = model.layers[0].attention.positions
        }
      },
      Switch("cohere2", "positions in every layer") { model in
        for index in model.layers.indices {
          model.layers[index].attention.positions = model.layers[0].attention.positions
        }
      },
      .layers("granite", "no factor of what is added") { $0.residualScale = 1 },
      .layers("granite", "scores by the head's width") { $0.attention.scoreScale = 0.5 },
      Switch("granite", "logits as they are") { $0.head.scale = 1 },
      Switch("granite", "embeddings as they are") { $0.embedding.scale = 1 },
      Switch("cohere", "logits as they are") { $0.head.scale = 1 },
      .rotary("llama-rope-yarn", "no scaling", RotaryEmbedding(headDimension: 8, theta: 100)),
      .rotary("olmo3", "no scaling", RotaryEmbedding(headDimension: 4, theta: 100)),
      .rotary("glm4", "whole heads", RotaryEmbedding(headDimension: 8, theta: 10_000, isInterleaved: true)),
      .rotary("glm4", "pairs of halves", RotaryEmbedding(headDimension: 4, theta: 10_000)),
      .rotary("ernie", "pairs of halves", RotaryEmbedding(headDimension: 8, theta: 100)),
      .rotary("cohere", "pairs of halves", RotaryEmbedding(headDimension: 4, theta: 10_000)),
      .rotary("nemotron", "whole heads", RotaryEmbedding(headDimension: 8, theta: 100)),
      .rotary("stablelm", "whole heads", RotaryEmbedding(headDimension: 8, theta: 100)),
      .rotary("gpt-neox", "whole heads", RotaryEmbedding(headDimension: 8, theta: 100)),
      .rotary("phi3-longrope", "no scaling", RotaryEmbedding(headDimension: 6, theta: 100)),
      .rotary("phi3-longrope-long", "no scaling", RotaryEmbedding(headDimension: 6, theta: 100)),
    ]

  @Test(arguments: switches)
  func `what a family has shows in its fixture`(_ test: Switch) throws {
    let fixture = try Fixture(test.fixture)
    let backend = OpenBLASBackend(threads: 1)
    var changed = fixture.description
    test.turnOff(&changed)
    let logits = try fixture.logits(by: backend, as: changed)
    let difference = zip(logits, fixture.logits).map { abs($0 - $1) }.max() ?? 0
    let largest = fixture.logits.map(abs).max() ?? 0
    #expect(difference > 10 * 1e-4 * largest, "\(difference) of \(largest)")
  }
}

extension [LayerDescription] {
  /// The kinds, each one layer further.
  fileprivate var shifted: [LayerDescription] { Array(suffix(1) + dropLast()) }
}
