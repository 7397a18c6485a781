import Compute

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
  /// What gates instead.
  var clampedSwiGLU: ClampedSwiGLU?
  var hasBias: Bool
}

/// One linear of a layer, as a stage of the layer's forward pass sees it.
public struct LayerLinear: Sendable, Hashable {
  /// Relative to the layer's prefix, for example `self_attn.q_proj`.
  public let name: String
  public let outFeatures: Int
  public let inFeatures: Int
  public let hasBias: Bool

  public var weightCount: Int { outFeatures * inFeatures }
}

extension Sequence<LayerLinear> {
  public var weightCount: Int { reduce(0) { $0 + $1.weightCount } }
}
