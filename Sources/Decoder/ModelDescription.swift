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

  /// Whether some layer sends its tokens to experts.
  public var hasMixtures: Bool { layers.contains { $0.mixture != nil } }

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
  let weights: String
  let width: Int
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

  func renamed(_ name: String) -> NormDescription {
    NormDescription(name: name, kind: kind, hasBias: hasBias, epsilon: epsilon, addsOne: addsOne)
  }

  static func rootMeanSquare(_ name: String, epsilon: Float) -> NormDescription {
    NormStyle.rootMeanSquare(epsilon: epsilon)(name)
  }

  static func layer(_ name: String, epsilon: Float) -> NormDescription {
    NormStyle.layer(epsilon: epsilon)(name)
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

  var prefix: String
  var attention: AttentionDescription
  /// In place of the attention.
  var linearAttention: GatedDeltaNetDescription?
  /// What makes the attention's queries, keys and values, in place of its projection.
  var latentAttention: LatentAttentionDescription?
  /// With a mixture, its largest expert.
  var mlp: MLPDescription
  /// In place of the MLP.
  var mixture: MixtureDescription?
  /// Nil where the block reads the residual stream as it is.
  var attentionNorm: NormDescription?
  /// Nil where the attention's norm, if there is one, serves both.
  var mlpNorm: NormDescription?
  /// Norms of what a block makes, before it is added to the residual stream.
  var attentionOutputNorm: NormDescription?
  var mlpOutputNorm: NormDescription?
  /// A factor of what a block adds to the residual stream.
  var residualScale: Float = 1
  /// A tensor of one value, by which the residual stream is multiplied after the layer.
  var outputScale: String?
  var placement: NormPlacement
  var arrangement: Arrangement

  init(
    prefix: String, attention: AttentionDescription, mlp: MLPDescription,
    attentionNorm: NormDescription?, mlpNorm: NormDescription?,
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

extension LayerDescription {
  /// What the first half of the layer gathers of a token.
  var contextFeatures: Int {
    linearAttention?.valueFeatures ?? latentAttention?.valueFeatures ?? attention.queryFeatures
  }

  var mixerFeatures: Int {
    if let latentAttention { return latentAttention.mixerFeatures }
    if let linearAttention { return linearAttention.channels + 2 * linearAttention.valueFeatures }
    return attention.queryFeatures * (attention.hasOutputGate ? 3 : 2) + 2 * attention.keyFeatures
  }
}

/// Linear attention by the gated delta rule; names are relative to the layer's prefix.
struct GatedDeltaNetDescription: Sendable {
  let keyHeads: Int
  let valueHeads: Int
  let keyDimension: Int
  let valueDimension: Int
  /// Tokens that the convolution is over.
  let taps: Int
  let epsilon: Float

  /// Whether one matrix has queries, keys, values and output gates, key head by key head, and another one gates and decays.
  var isFused = false

  let mixed = "linear_attn.in_proj_qkv"
  let outputGate = "linear_attn.in_proj_z"
  let fused = "linear_attn.in_proj_qkvz"
  let output = "linear_attn.out_proj"
  /// Linears of one output for every value head, which stay as they are.
  let decay = "linear_attn.in_proj_a"
  let gate = "linear_attn.in_proj_b"
  let fusedGates = "linear_attn.in_proj_ba"
  let convolution = "linear_attn.conv1d.weight"
  let decayLogarithms = "linear_attn.A_log"
  let decayBiases = "linear_attn.dt_bias"
  let norm = "linear_attn.norm"

  var keyFeatures: Int { keyHeads * keyDimension }
  var valueFeatures: Int { valueHeads * valueDimension }
  var channels: Int { 2 * keyFeatures + valueFeatures }

  /// The linears that are quantized, before the output.
  func linears(hiddenSize: Int) -> [LayerLinear] {
    let outputs =
      isFused ? [(fused, channels + valueFeatures)] : [(mixed, channels), (outputGate, valueFeatures)]
    return outputs.map { LayerLinear(name: $0, outFeatures: $1, inFeatures: hiddenSize, hasBias: false) }
  }

  /// The others.
  func keptLinears(hiddenSize: Int) -> [LayerLinear] {
    let outputs = isFused ? [(fusedGates, 2 * valueHeads)] : [(decay, valueHeads), (gate, valueHeads)]
    return outputs.map { LayerLinear(name: $0, outFeatures: $1, inFeatures: hiddenSize, hasBias: false) }
  }

  /// The rows of the fused matrix that are queries, keys and values, and those that are output gates.
  var fusedRows: [[Range<Int>]] {
    let values = valueFeatures / keyHeads
    let size = 2 * keyDimension + 2 * values
    func part(_ start: Int, _ count: Int) -> [Range<Int>] {
      (0..<keyHeads).map { $0 * size + start..<$0 * size + start + count }
    }
    let mixed =
      part(0, keyDimension) + part(keyDimension, keyDimension) + part(2 * keyDimension, values)
    return [mixed, part(2 * keyDimension + values, values)]
  }
}

struct AttentionDescription: Sendable {
  /// The linears that make queries, keys and values.
  enum Projection: Sendable {
    case separate(query: String, key: String, value: String)
    /// Values are keys before their norm.
    case sharedKeyValue(query: String, key: String)
    /// One matrix.
    case fused(String, FusedRows)
  }

  enum FusedRows: Sendable {
    /// `keyValueHeads` groups of rows, each with its query heads, a key and a value head.
    case groups
    /// All queries, all keys, all values.
    case blocks
  }

  /// What the norms of queries and keys are over.
  enum HeadNorm: Sendable {
    /// Each head, all with the same weights.
    case ofEachHead
    /// Each head with weights of its own: `<name>.weight`, `[heads, headDimension]`.
    case ofEachHeadByItsOwn
    /// The same in tensors of their own: `<name>.norms.<head>.weight`.
    case ofEachHeadByItsOwnTensor
    /// All heads together.
    case ofWhole
  }

  enum Positions: Sendable, Hashable {
    case none
    case rotary(RotaryEmbedding)
    case alibi(Alibi)
  }

  var heads: Int
  var keyValueHeads: Int
  var headDimension: Int
  var projection: Projection
  var output: String
  var projectionHasBias: Bool
  var outputHasBias: Bool
  var positions: Positions
  /// The factor of q·k.
  var scoreScale: Float
  /// So many keys a query sees, its own and those before it; nil for all of those.
  var window: Int?
  /// Scaled scores s become cap · tanh(s / cap).
  var softcap: Float?
  /// Norms of queries and keys.
  var queryNorm: NormDescription?
  var keyNorm: NormDescription?
  var headNorm = HeadNorm.ofEachHead
  /// Whether heads turn before they are normalized.
  var turnsFirst = false
  /// Queries, keys and values are moved to between this, negative, and this.
  var clip: Float?
  /// Whether the query linear has for every head the rows of its queries and then those of a gate, whose sigmoid what the
  /// head gathers is multiplied by.
  var hasOutputGate = false
  /// The epsilon of an RMS norm of every head of values, without weights.
  var valueNormEpsilon: Float?

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
    scoreScale = 1 / Float(headDimension).squareRoot()
    self.queryNorm = queryNorm
    self.keyNorm = keyNorm
  }

  /// Gives it a window, or all keys and then no positions.
  mutating func see(windowOrAllWithoutPositions window: Int?) {
    self.window = window
    if window == nil { positions = .none }
  }

  var queryFeatures: Int { heads * headDimension }
  var keyFeatures: Int { keyValueHeads * headDimension }

  /// Values that a norm of queries or keys is over.
  /// - Parameter features: of all heads
  func normSize(_ features: Int) -> Int { headNorm == .ofWhole ? features : headDimension }

  /// The tensors of the norms of queries and keys.
  func normTensors(prefix: String) -> [(name: String, shape: [Int])] {
    [(queryNorm, heads), (keyNorm, keyValueHeads)].flatMap { norm, heads in
      norm.map { self.normTensors($0, heads: heads, prefix: prefix) } ?? []
    }
  }

  /// The weights, in the order of the heads, and then the bias, if there is one.
  func normTensors(
    _ norm: NormDescription, heads: Int, prefix: String
  ) -> [(name: String, shape: [Int])] {
    let name = "\(prefix)\(norm.name)"
    switch headNorm {
    case .ofEachHead: return norm.tensors(prefix: prefix, size: headDimension)
    case .ofWhole: return norm.tensors(prefix: prefix, size: heads * headDimension)
    case .ofEachHeadByItsOwn: return [("\(name).weight", [heads, headDimension])]
    case .ofEachHeadByItsOwnTensor:
      return (0..<heads).map { ("\(name).norms.\($0).weight", [headDimension]) }
    }
  }
}

struct MLPDescription: Sendable {
  enum Expansion: Sendable {
    /// function(gate(x)) ⊙ up(x)
    case gated(gate: String, up: String)
    /// The same by one matrix, whose first half of rows is the gate.
    case fused(String)
    /// function(up(x))
    case plain(up: String)

    var isGated: Bool { if case .plain = self { false } else { true } }
  }

  var expansion: Expansion
  var down: String
  var intermediateSize: Int
  var activation: ActivationFunction
  /// The module of an xIELU that is applied instead.
  var xielu: String?
  var hasBias: Bool

  init(
    expansion: Expansion, down: String, intermediateSize: Int, activation: ActivationFunction, hasBias: Bool
  ) {
    self.expansion = expansion
    self.down = down
    self.intermediateSize = intermediateSize
    self.activation = activation
    self.hasBias = hasBias
  }
}

/// One linear of a layer, as a stage of the layer's forward pass sees it.
public struct LayerLinear: Sendable, Hashable {
  /// Relative to the layer's prefix, for example `self_attn.q_proj`.
  public let name: String
  public let outFeatures: Int
  public let inFeatures: Int
  public let hasBias: Bool
}
