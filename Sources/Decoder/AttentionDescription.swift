/// What makes a layer's queries, keys and values, and what they come to. Names are relative to the layer's prefix.
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
  /// The same of every head of queries and of keys.
  var plainNormEpsilon: Float?
  /// A tensor of scores, one of every head, that count for the sum that probabilities are divided by, and nothing else.
  var sinks: String?

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
