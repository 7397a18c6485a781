import Compute
import Tensors

/// A decoder-only language model in terms of the one generic decoder layer: what a family's
/// declaration in `Architectures/` makes of config.json.
public struct ModelDescription: Sendable {
  /// `model_type` of config.json.
  public let modelType: String
  public let hiddenSize: Int
  public let layerCount: Int
  public let vocabularySize: Int
  /// The longest sequence that the position embedding allows; nil where any length works.
  public let maximumSequenceLength: Int?
  public let embedding: EmbeddingDescription
  public let layer: LayerDescription
  public let head: HeadDescription

  /// What the attention of one token gathers: heads · head dimension.
  public var contextFeatures: Int { layer.attention.queryFeatures }
  public var intermediateSize: Int { layer.mlp.intermediateSize }
  /// What a token's keys, or values, take.
  public var keyFeatures: Int { layer.attention.keyFeatures }

  /// The linears that lead into the MLP's middle: two with a gate.
  public var expansionLinears: Int {
    if case .gated = layer.mlp.expansion { 2 } else { 1 }
  }

  /// The common beginning of the names of layer `index`'s tensors.
  public func layerPrefix(_ index: Int) -> String { "\(layer.prefix)\(index)." }
}

/// From token ids to the first hidden states.
public struct EmbeddingDescription: Sendable {
  /// Token embeddings, `[vocabulary, width]`.
  let tokens: String
  let width: Int
  /// Learned positions, `[positions, hiddenSize]`; position p reads row p + offset.
  let positions: LearnedPositions?
  /// A projection from `width` to the hidden size (OPT-350m), `[hiddenSize, width]`.
  let projection: String?
  let norm: NormDescription?

  init(
    tokens: String, width: Int, positions: LearnedPositions? = nil, projection: String? = nil,
    norm: NormDescription? = nil
  ) {
    self.tokens = tokens
    self.width = width
    self.positions = positions
    self.projection = projection
    self.norm = norm
  }
}

struct LearnedPositions: Sendable {
  let name: String
  let count: Int
  let offset: Int
}

/// From the last hidden states to logits.
public struct HeadDescription: Sendable {
  let norm: NormDescription?
  /// A projection from the hidden size to `width` (OPT-350m), `[width, hiddenSize]`.
  let projection: String?
  /// `[vocabulary, width]`; the token embeddings where they are tied.
  let weights: String
  let width: Int

  init(norm: NormDescription?, projection: String? = nil, weights: String, width: Int) {
    self.norm = norm
    self.projection = projection
    self.weights = weights
    self.width = width
  }
}

/// A normalisation's tensors: `<name>.weight` and, for layer norm, `<name>.bias`.
struct NormDescription: Sendable {
  let name: String
  let kind: NormalizationParameters.Kind
  let hasBias: Bool
  let epsilon: Float

  static func rootMeanSquare(_ name: String, epsilon: Float) -> NormDescription {
    NormDescription(name: name, kind: .rootMeanSquare, hasBias: false, epsilon: epsilon)
  }

  static func layer(_ name: String, epsilon: Float) -> NormDescription {
    NormDescription(name: name, kind: .layer, hasBias: true, epsilon: epsilon)
  }
}

/// One decoder layer. Names of norms and linears are relative to the layer's prefix.
public struct LayerDescription: Sendable {
  /// Where a layer's two norms stand.
  enum NormPlacement: Sendable {
    /// x + f(norm(x))
    case before
    /// norm(x + f(x))
    case after
  }

  /// How the attention and the MLP follow one another.
  enum Arrangement: Sendable {
    /// The MLP reads what the attention has added to.
    case sequential
    /// Both read the layer's input, through the attention's norm.
    case parallelSharedNorm
    /// Both read the layer's input, each through a norm of its own.
    case parallelSeparateNorms
  }

  let prefix: String
  let attention: AttentionDescription
  let mlp: MLPDescription
  let attentionNorm: NormDescription
  /// Nil where the attention's norm serves both.
  let mlpNorm: NormDescription?
  let placement: NormPlacement
  let arrangement: Arrangement

  init(
    prefix: String, attention: AttentionDescription, mlp: MLPDescription,
    attentionNorm: NormDescription, mlpNorm: NormDescription?,
    placement: NormPlacement = .before, arrangement: Arrangement = .sequential
  ) {
    self.prefix = prefix
    self.attention = attention
    self.mlp = mlp
    self.attentionNorm = attentionNorm
    self.mlpNorm = mlpNorm
    self.placement = placement
    self.arrangement = arrangement
  }
}

struct AttentionDescription: Sendable {
  /// The linears that make queries, keys and values.
  enum Projection: Sendable {
    case separate(query: String, key: String, value: String)
    /// One matrix of `keyValueHeads` groups of rows, each with its query heads, a key and a value head.
    case fused(String)
  }

  enum Positions: Sendable {
    case none
    case rotary(RotaryEmbedding)
    case alibi(Alibi)
  }

  let heads: Int
  let keyValueHeads: Int
  let headDimension: Int
  let projection: Projection
  let output: String
  let projectionHasBias: Bool
  let outputHasBias: Bool
  let positions: Positions
  /// Norms over each head of queries and keys (qwen3).
  let queryNorm: NormDescription?
  let keyNorm: NormDescription?

  init(
    heads: Int, keyValueHeads: Int, headDimension: Int, projection: Projection, output: String,
    projectionHasBias: Bool, outputHasBias: Bool, positions: Positions,
    queryNorm: NormDescription? = nil, keyNorm: NormDescription? = nil
  ) {
    self.heads = heads
    self.keyValueHeads = keyValueHeads
    self.headDimension = headDimension
    self.projection = projection
    self.output = output
    self.projectionHasBias = projectionHasBias
    self.outputHasBias = outputHasBias
    self.positions = positions
    self.queryNorm = queryNorm
    self.keyNorm = keyNorm
  }

  var queryFeatures: Int { heads * headDimension }
  var keyFeatures: Int { keyValueHeads * headDimension }
}

struct MLPDescription: Sendable {
  enum Expansion: Sendable {
    /// function(gate(x)) ⊙ up(x)
    case gated(gate: String, up: String)
    /// function(up(x))
    case plain(up: String)
  }

  let expansion: Expansion
  let down: String
  let intermediateSize: Int
  let activation: ActivationFunction
  let hasBias: Bool
}

/// One linear of a layer, as a stage of the layer's forward pass sees it.
public struct LayerLinear: Sendable, Hashable {
  /// Relative to the layer's prefix, for example `self_attn.q_proj`.
  public let name: String
  public let outFeatures: Int
  public let inFeatures: Int
  public let hasBias: Bool
}
