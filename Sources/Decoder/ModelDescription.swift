import Compute
import Tensors

/// A decoder-only language model in terms of the one generic decoder layer: what a family's
/// declaration in `Architectures/` makes of config.json.
public struct ModelDescription: Sendable {
  /// `model_type` of config.json.
  public var modelType: String
  public var hiddenSize: Int
  public var vocabularySize: Int
  /// The longest sequence that the position embedding allows; nil where any length works.
  public var maximumSequenceLength: Int?
  public var embedding: EmbeddingDescription
  /// Every layer; those of a kind are equal.
  public var layers: [LayerDescription]
  public var head: HeadDescription

  public var layerCount: Int { layers.count }

  /// What the attention of one token gathers, heads · head dimension, where that is most.
  public var contextFeatures: Int { largest(\.contextFeatures) }
  public var intermediateSize: Int { largest { $0.mlp.intermediateSize } }
  /// What a token takes as latents, where keys and values are made of some.
  public var latentFeatures: Int { largest { $0.latentAttention?.latents.features ?? 0 } }
  /// What a token's keys, or values, take.
  public var keyFeatures: Int { largest { $0.attention.keyFeatures } }

  /// The values that the first half of a layer makes of a token before its output projection reads them.
  public var mixerFeatures: Int { largest(\.mixerFeatures) }

  /// The values that the first half of the MLP makes of a token: with a gate, twice those that it leaves.
  public var expansionFeatures: Int {
    largest { layer in layer.mlp.intermediateSize * (layer.mlp.expansion.isGated ? 2 : 1) }
  }

  /// Whether what a block makes is changed before it is added to the residual stream.
  public var hasBlockOutputs: Bool {
    layers.contains {
      $0.attentionOutputNorm != nil || $0.mlpOutputNorm != nil || $0.residualScale != 1 || $0.mixture != nil
    }
  }

  /// Whether the head's weights are those of the embeddings.
  public var hasTiedHead: Bool { head.weights == embedding.tokens }

  /// Whether some layer sends its tokens to experts.
  public var hasMixtures: Bool { layers.contains { $0.mixture != nil } }

  /// Whether all that its layers compute has a gradient that is known here.
  public var hasGradients: Bool {
    layers.allSatisfy { layer in
      layer.mixture == nil && layer.latentAttention == nil && layer.linearAttention == nil
        && layer.mlp.xielu == nil && layer.mlp.clampedSwiGLU == nil
    }
  }

  /// The experts that a token of a layer goes through, but for a shared one; none without a mixture.
  public func expertsPerToken(ofLayer index: Int) -> Int { layers[index].mixture?.perToken ?? 0 }

  /// What loads the model's experts one by one, as quantized ones are written.
  public var expertLoaders: ExpertLoaders { layers.lazy.compactMap { $0.mixture?.loaders }.first ?? .all }

  /// A model of one layer, with as many experts as a token goes through: what a token costs, without all that it does not
  /// go through.
  public func singleLayer(_ index: Int) -> ModelDescription {
    var model = self
    var layer = layers[index]
    if let mixture = layer.mixture {
      layer.mixture?.count = mixture.perToken
      layer.mixture?.groups = nil
    }
    model.layers = [layer]
    return model
  }

  private func largest(_ size: (LayerDescription) -> Int) -> Int { layers.map(size).max() ?? 0 }

  /// What decides how long a layer's attention takes, beside its linears: equal for layers that take the same time.
  public func attentionKind(ofLayer index: Int) -> String {
    let attention = layers[index].attention
    let kind = layers[index].linearAttention == nil ? "scores" : "linear"
    return "\(kind) \(attention.heads) \(attention.keyValueHeads) \(attention.window ?? 0)"
  }

  /// The common beginning of the names of layer `index`'s tensors.
  public func layerPrefix(_ index: Int) -> String { "\(layers[index].prefix)\(index)." }
}

extension ModelDescription {
  /// A model whose layers are all of one kind.
  init(
    modelType: String, hiddenSize: Int, layerCount: Int, vocabularySize: Int, maximumSequenceLength: Int?,
    embedding: EmbeddingDescription, layer: LayerDescription, head: HeadDescription
  ) {
    self.init(
      modelType: modelType, hiddenSize: hiddenSize, vocabularySize: vocabularySize,
      maximumSequenceLength: maximumSequenceLength, embedding: embedding,
      layers: Array(repeating: layer, count: layerCount), head: head)
  }
}

/// Runtimes that load the experts of a model one by one. Others know them in stacks alone, and start with random weights in
/// the place of what they do not find.
public enum ExpertLoaders: Sendable {
  case all
  case vLLM
  case none
}

/// From token ids to the first hidden states.
public struct EmbeddingDescription: Sendable {
  /// Token embeddings, `[vocabulary, width]`.
  public let tokens: String
  let width: Int
  /// Learned positions, `[positions, hiddenSize]`; position p reads row p + offset.
  let positions: LearnedPositions?
  /// A projection from `width` to the hidden size (OPT-350m), `[hiddenSize, width]`.
  let projection: String?
  let norm: NormDescription?
  /// A factor of the token embeddings.
  var scale: Float

  init(
    tokens: String, width: Int, positions: LearnedPositions? = nil, projection: String? = nil,
    norm: NormDescription? = nil, scale: Float = 1
  ) {
    self.tokens = tokens
    self.width = width
    self.positions = positions
    self.projection = projection
    self.norm = norm
    self.scale = scale
  }
}

struct LearnedPositions: Sendable {
  let name: String
  let count: Int
  let offset: Int
}

/// From the last hidden states to logits.
public struct HeadDescription: Sendable {
  var norm: NormDescription?
  /// A projection from the hidden size to `width` (OPT-350m), `[width, hiddenSize]`.
  let projection: String?
  /// `[vocabulary, width]`; the token embeddings where they are tied.
  public let weights: String
  public let width: Int
  /// What is added to the logits, `[vocabulary]`.
  var bias: String?
  /// A factor of the logits.
  var scale: Float = 1
  /// Logits l, scaled, become cap · tanh(l / cap).
  var softcap: Float?

  init(norm: NormDescription?, projection: String? = nil, weights: String, width: Int) {
    self.norm = norm
    self.projection = projection
    self.weights = weights
    self.width = width
  }
}

/// A normalisation's tensors: `<name>.weight` and, for most layer norms, `<name>.bias`.
struct NormDescription: Sendable {
  let name: String
  let kind: NormalizationParameters.Kind
  let hasBias: Bool
  let epsilon: Float
  /// Whether the checkpoint has the weight less 1.
  let addsOne: Bool

  static func rootMeanSquare(_ name: String, epsilon: Float) -> NormDescription {
    NormStyle.rootMeanSquare(epsilon: epsilon)(name)
  }

  static func layer(_ name: String, epsilon: Float) -> NormDescription {
    NormStyle.layer(epsilon: epsilon)(name)
  }
}
