import Glibc
import Tensors

/// Everything that the decoder and the solvers ask of a processor.
///
/// Matrices are row-major fp32. An operation returns when its result stands in memory, or, on a device, when it is asked for,
/// and whatever hands values to the host waits; it owns its threads, and gives the same bits for every number of them. Shapes that do not fit are programmer errors and trap.
public protocol ComputeBackend: DecoderOperations, LinearAlgebra, GridSweeps, OutlierSweeps {
  /// Threads that an operation may use.
  var threads: Int { get }

  /// Parts of operations that are done so far. Any thread may ask: a number that stands still for long is work that
  /// hangs.
  var progress: Int { get }

  /// Why operations no longer have results, where a device has failed: what they leave is whatever stood there. Whoever
  /// writes a result down asks first.
  var failure: (any DeviceError)? { get }

  /// What computes, for reports: a library, and its kernels.
  /// - Parameter operands: of the model's products
  func kernels(for operands: OperandType) -> String

  /// Whether a row of a linear's outputs has the same bits whatever other rows are computed with it, and however many.
  func computesRowsAlike(for operands: OperandType) -> Bool
}

extension ComputeBackend {
  public var failure: (any DeviceError)? { nil }

  public func computesRowsAlike(for operands: OperandType) -> Bool { false }

  /// - Throws: the backend's ``failure``
  public func checkDevice() throws {
    if let failure { throw failure }
  }
}

/// What a device, its driver or its libraries lack: no fault of the work that was to be done, which may be done later.
public protocol DeviceError: Error, CustomStringConvertible {}

/// What is measured of a device's memory.
public protocol DeviceMemoryGauge: Sendable {
  /// What matrices may take at most, in bytes.
  var limitBytes: Int { get }

  /// The most that they have taken since this was last asked.
  func lap() -> Int

  /// Bytes of the host's memory that are pinned for it now, which the kernel counts as no process's own.
  var pinnedBytes: Int { get }
}

/// Dense products and factorisations.
public protocol LinearAlgebra: MatrixStorage {
  /// C ← α·A·B + β·C, or α·A·Bᵀ + β·C: the shape of every product with a weight or Gram matrix.
  /// - Parameters:
  ///   - a: `[m, k]`
  ///   - b: `[k, n]`, or `[n, k]` when transposed
  ///   - c: `[m, n]`
  func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float)

  /// Adds a batch of inputs to the lower triangle of the Gram matrix, Σ += XᵀX for X `[tokens, inFeatures]`.
  /// What is above the diagonal is left as it is: see ``symmetrize(_:)``.
  func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix)

  /// The tiles in which ``accumulateGram(_:operands:into:)`` adds up a Gram matrix, the largest first. What a tile comes to
  /// does not depend on which others are added up with it.
  func gramTiles(order: Int, operands: OperandType) -> [GramTile]

  /// Adds a batch of inputs to some of the ``gramTiles(order:operands:)``.
  func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix, tiles: [GramTile])

  /// Adds AᵀB, A `[tokens, m]`, B `[tokens, n]`, to `product` `[m, n]`.
  func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix)

  /// Adds some rows of AᵀB. What a range of rows comes to does not depend on which others are added up with it.
  func accumulateCrossProduct(
    _ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix, rows: [Range<Int>])

  /// x A xᵀ of every row x.
  /// - Parameters:
  ///   - rows: `[m, n]`
  ///   - matrix: A, `[n, n]`, symmetric
  func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double]

  // MARK: Two triangles of one square
  //
  // A Gram matrix is kept in the lower triangle, and what is derived from it in the upper one, which can be filled from
  // the lower at any time. The diagonal belongs to both: whoever needs Σ's keeps it.

  /// The elements on the diagonal.
  func diagonal(of matrix: Matrix) -> [Float]

  func setDiagonal(_ values: [Float], of matrix: Matrix)

  /// Copies what is below the diagonal to above it.
  func symmetrize(_ matrix: Matrix)

  /// Fills what is above the diagonal with P A Pᵀ for the symmetric A whose lower triangle the matrix holds.
  /// - Parameter order: the row of A that stands at every place of P A Pᵀ
  func fillUpperTriangle(of matrix: Matrix, inOrder order: [Int])

  /// The upper factor R of A = RᵀR, in place of A's upper triangle; what is below the diagonal stays.
  /// - Throws: ``ComputeError/notPositiveDefinite(pivot:)``
  func factorizeCholesky(_ matrix: Matrix) throws(ComputeError)

  /// The upper factor R of P A Pᵀ = RᵀR above the diagonal and on it, where P brings the smallest remaining pivot forward
  /// at every step, or, on an accelerator, at every so many steps the smallest ones; what is below the diagonal stays.
  /// - Parameters:
  ///   - matrix: A below the diagonal; on the diagonal that of A in the order that is given
  ///   - order: the row of A that stands at every place to begin with
  ///   - leading: so many rows, the first ones, are taken before all others
  /// - Returns: the row of A that each row of R stands for.
  /// - Throws: ``ComputeError/notPositiveDefinite(pivot:)``
  func factorizePivotedCholesky(
    _ matrix: Matrix, inOrder order: [Int], leading: Int
  ) throws(ComputeError) -> [Int]

  /// Divides what is above the diagonal by the diagonal's element of the same row.
  func divideUpperRowsByDiagonal(_ matrix: Matrix)

  /// X ← X·A⁻¹ for the factor R of A = RᵀR: every row of X is solved on its own.
  /// - Parameters:
  ///   - rows: X, `[m, n]`
  ///   - factor: R, `[n, n]`, upper triangle
  func solveCholesky(rows: Matrix, factor: Matrix)

  /// The same for ranges of rows, each of which comes to what it comes to alone.
  func solveCholesky(rows: Matrix, _ ranges: [Range<Int>], factor: Matrix)
}

extension LinearAlgebra {
  public func accumulateGram(_ inputs: Matrix, into gram: Matrix) {
    accumulateGram(inputs, operands: .float32, into: gram)
  }

  public func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, into product: Matrix) {
    accumulateCrossProduct(a, b, operands: .float32, into: product)
  }
}

extension LinearAlgebra where Self: HostMemoryBackend {
  public func diagonal(of matrix: Matrix) -> [Float] {
    precondition(matrix.rows == matrix.columns, "only a square matrix has a diagonal")
    return (0..<matrix.rows).map { matrix[$0, $0] }
  }

  public func setDiagonal(_ values: [Float], of matrix: Matrix) {
    precondition(
      matrix.rows == matrix.columns && values.count == matrix.rows, "the diagonal has another length")
    for (index, value) in values.enumerated() { matrix[index, index] = value }
  }
}

/// The operations of a decoder layer's forward pass.
public protocol DecoderOperations: MatrixStorage {
  /// What the operands of a model's products are rounded to: its own type, if the processor multiplies that faster.
  /// - Parameter stored: the type of the model's weights, which hidden states are stored in, too
  func operandType(for stored: DType) -> OperandType

  /// Weights of zeros.
  func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights

  /// Sets some rows of weights of this backend's, once.
  /// - Parameter rows: `[count, inFeatures]`, in the host's memory
  func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights)

  /// The same with rows in the backend's memory, which then need not come from the host.
  func set(_ weights: LinearWeights, firstRow: Int, to rows: Matrix)

  /// Y = X Wᵀ + b of linears that read the same inputs.
  /// - Parameter inputs: X, `[tokens, inFeatures]`
  func linear(_ inputs: Matrix, _ products: [LinearProduct])

  /// Normalises every row; `inputs` and `outputs` may be the same matrix.
  ///
  /// Weights, and biases, for several rows are used in turn: heads that have some of their own.
  func normalize(_ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix)

  /// Rotary position embedding in place, on `[tokens, heads · headDimension]`.
  /// Row t has position t mod `table.sequenceLength`. What the table does not reach of a head stays as it is.
  func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable)

  /// Causal softmax attention, sequence by sequence.
  /// - Parameters:
  ///   - queries: `[tokens, heads · headDimension]`, tokens a multiple of the sequence length
  ///   - keys: `[tokens, keyValueHeads · headDimension]`; query head h reads key head h / (heads / keyValueHeads)
  ///   - values: `[tokens, keyValueHeads · valueDimension]`
  ///   - outputs: `[tokens, heads · valueDimension]`
  func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix)

  /// Sets a part of every head of every row.
  /// - Parameters:
  ///   - states: `[tokens, heads · headDimension]`
  ///   - part: of a head
  ///   - source: `[tokens, heads · part.count]`, or, `isShared`, `[tokens, part.count]` for all heads
  func setHeads(of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool)

  /// Linear attention by the gated delta rule, sequence by sequence: a causal convolution over every channel with silu, and
  /// then for every value head S ← e^g S, S += k ⊗ β (v − kᵀS), out = qᵀS, with normalized q and k.
  /// - Parameters:
  ///   - mixed: `[tokens, 2 · keyFeatures + valueFeatures]`, queries, keys and values; overwritten
  ///   - decays: a, `[tokens, valueHeads]`; g = −e^A softplus(a + bias)
  ///   - gates: b, `[tokens, valueHeads]`; β = σ(b)
  ///   - outputs: `[tokens, valueFeatures]`
  func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix)

  /// Applies an activation function in place.
  func activate(_ states: Matrix, _ function: ActivationFunction)

  /// gate ← function(gate) ⊙ up.
  func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction)

  /// gate ← function(gate, up).
  func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU)

  /// Applies an activation function with parameters that were learned, in place.
  func activate(_ states: Matrix, _ function: XIELU)

  /// y ← y + x.
  func add(_ x: Matrix, into y: Matrix)

  /// x ← factor · x.
  func scale(_ x: Matrix, by factor: Float)

  /// x ← cap · tanh(x / cap).
  func softcap(_ x: Matrix, at cap: Float)

  /// x ← x moved to between −limit and limit.
  func clamp(_ x: Matrix, to limit: Float)

  /// −log softmax(logits)[target] of every row, `[tokens, vocabulary]` → one value a row.
  func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float]

  /// How far the predictions of one model are from those of another, row by row.
  /// - Parameters:
  ///   - logits: `[tokens, vocabulary]`
  ///   - reference: the other model's, of the same shape
  func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence]
}

/// How far one prediction of the next token is from another.
public struct PredictionDivergence: Sendable, Equatable {
  /// Σ p log(p/q) in nats, p being the reference's probabilities.
  public let divergence: Float
  /// Whether both have the same token for the likeliest.
  public let hasSameChoice: Bool

  public init(divergence: Float, hasSameChoice: Bool) {
    self.divergence = divergence
    self.hasSameChoice = hasSameChoice
  }
}

extension DecoderOperations where Self: HostMemoryBackend {
  public func set(_ weights: LinearWeights, firstRow: Int, to rows: Matrix) {
    store(rows, firstRow: firstRow, in: weights)
  }
}

public struct NormalizationParameters: Sendable {
  public enum Kind: Sendable {
    /// y = w ⊙ x / sqrt(mean(x²) + ε)
    case rootMeanSquare
    /// y = w ⊙ (x − mean(x)) / sqrt(var(x) + ε) + b
    case layer
  }
  public let kind: Kind
  public let weight: [Float]
  public let bias: [Float]?
  public let epsilon: Float
  /// Where the weight is stored; nil where it is no tensor's alone.
  public let origin: Origin?

  /// The tensor that a weight is of.
  public struct Origin: Sendable, Hashable {
    public let tensor: String
    /// What the weight is more than what is stored.
    public let offset: Float

    public init(tensor: String, offset: Float) {
      self.tensor = tensor
      self.offset = offset
    }
  }

  public init(
    kind: Kind, weight: [Float], bias: [Float]? = nil, epsilon: Float, origin: Origin? = nil
  ) {
    self.kind = kind
    self.weight = weight
    self.bias = bias
    self.epsilon = epsilon
    self.origin = origin
  }

  /// So many rows, one after the other, have weights of their own.
  public func groups(of inputs: Matrix) -> Int {
    let groups = weight.count / max(inputs.columns, 1)
    precondition(groups > 0 && groups * inputs.columns == weight.count, "the weight has another length")
    precondition(bias == nil || bias?.count == weight.count, "the bias has another length")
    return groups
  }
}

/// Cosines and sines of the rotary angles, `[sequenceLength, pairs]` each, in the backend's memory.
public struct RotaryTable: Sendable {
  public let cosines: Matrix
  public let sines: Matrix
  /// Whether elements 2i and 2i + 1 of a head are a pair, and not i and i + pairs.
  public let isInterleaved: Bool

  public init(cosines: Matrix, sines: Matrix, isInterleaved: Bool = false) {
    self.cosines = cosines
    self.sines = sines
    self.isInterleaved = isInterleaved
  }

  /// Pairs of elements that turn in every head, the first ones.
  public var pairs: Int { cosines.columns }

  public var sequenceLength: Int { cosines.rows }
}

public struct AttentionParameters: Sendable {
  public let heads: Int
  public let keyValueHeads: Int
  /// Of queries and keys.
  public let headDimension: Int
  public let valueDimension: Int
  public let sequenceLength: Int
  /// The factor of q·k, as a rule 1 / sqrt(headDimension).
  public let scale: Float
  /// Added to the scaled scores, `[heads, sequenceLength]` by key position: alibi. In the backend's memory.
  public let positionBias: Matrix?
  /// So many keys a query sees, its own and those before it; nil for all of those.
  public let window: Int?
  /// Scaled scores s become cap · tanh(s / cap).
  public let softcap: Float?
  /// A score of every head that counts for the sum that probabilities are divided by, and for nothing else.
  public let sinks: [Float]?
  /// What queries, keys, values and probabilities are rounded to.
  public let operands: OperandType

  public init(
    heads: Int, keyValueHeads: Int, headDimension: Int, valueDimension: Int? = nil, sequenceLength: Int,
    scale: Float, positionBias: Matrix? = nil, window: Int? = nil, softcap: Float? = nil,
    sinks: [Float]? = nil, operands: OperandType = .float32
  ) {
    self.heads = heads
    self.keyValueHeads = keyValueHeads
    self.headDimension = headDimension
    self.valueDimension = valueDimension ?? headDimension
    self.sequenceLength = sequenceLength
    self.scale = scale
    self.positionBias = positionBias
    self.window = window
    self.softcap = softcap
    self.sinks = sinks
    self.operands = operands
  }
}

/// The gated delta rule (arXiv 2412.06464).
public struct GatedDeltaParameters: Sendable {
  public let keyHeads: Int
  public let valueHeads: Int
  /// Whether neighbouring value heads read different key heads, as llama.cpp has them: see ``keyHead(ofValueHead:)``.
  public let areValueHeadsTiled: Bool
  public let keyDimension: Int
  public let valueDimension: Int
  public let sequenceLength: Int
  /// Weights of the convolution, `[taps, channels]`, the last row for the token itself.
  public let convolution: [Float]
  public let taps: Int
  /// A, a value for every value head.
  public let decayLogarithms: [Float]
  /// What is added to a.
  public let decayBiases: [Float]

  public init(
    keyHeads: Int, valueHeads: Int, keyDimension: Int, valueDimension: Int, sequenceLength: Int,
    convolution: [Float], taps: Int, decayLogarithms: [Float], decayBiases: [Float],
    areValueHeadsTiled: Bool = false
  ) {
    self.areValueHeadsTiled = areValueHeadsTiled
    self.keyHeads = keyHeads
    self.valueHeads = valueHeads
    self.keyDimension = keyDimension
    self.valueDimension = valueDimension
    self.sequenceLength = sequenceLength
    self.convolution = convolution
    self.taps = taps
    self.decayLogarithms = decayLogarithms
    self.decayBiases = decayBiases
  }

  public var keyFeatures: Int { keyHeads * keyDimension }
  public var valueFeatures: Int { valueHeads * valueDimension }
  public var channels: Int { 2 * keyFeatures + valueFeatures }

  /// The key head that a value head reads.
  public func keyHead(ofValueHead head: Int) -> Int {
    areValueHeadsTiled ? head % keyHeads : head / (valueHeads / keyHeads)
  }

  /// e^g for a of a value head.
  public func decay(_ a: Float, head: Int) -> Float {
    let x = Double(a) + Double(decayBiases[head])
    let softplus = x > 30 ? x : log1p(exp(x))
    return Float(exp(-exp(Double(decayLogarithms[head])) * softplus))
  }

  /// β for b.
  public func gate(_ b: Float) -> Float { Float(1 / (1 + exp(-Double(b)))) }

  /// Traps unless the shapes fit together.
  public func checkShapes(_ mixed: Matrix, _ decays: Matrix, _ gates: Matrix, _ outputs: Matrix) {
    precondition(mixed.rows.isMultiple(of: sequenceLength), "the tokens are no whole number of sequences")
    precondition(mixed.columns == channels, "there are other channels")
    precondition(outputs.rows == mixed.rows && outputs.columns == valueFeatures, "outputs have another shape")
    for matrix in [decays, gates] {
      precondition(
        matrix.rows == mixed.rows && matrix.columns == valueHeads, "there is a gate for every head")
    }
    precondition(convolution.count == taps * channels, "the convolution has other weights")
    precondition(
      decayLogarithms.count == valueHeads && decayBiases.count == valueHeads,
      "there is a decay for every head")
    precondition(valueHeads.isMultiple(of: keyHeads), "heads do not share keys evenly")
  }
}

public enum ActivationFunction: String, Sendable, CaseIterable {
  case relu
  case silu
  /// x·Φ(x), by the error function
  case gelu
  /// The tanh approximation of gelu
  case geluTanh = "gelu_tanh"
  /// max(x, 0)²
  case reluSquared = "relu_squared"
  case sigmoid
}

/// xIELU (arXiv 2411.13010): αₚx² + βx above 0, and αₙ(eˣ − 1 − x) + βx below.
public struct XIELU: Sendable {
  public let positive: Float
  public let negative: Float
  public let linear: Float

  /// - Parameters:
  ///   - positive: αₚ
  ///   - negative: αₙ
  ///   - linear: β
  public init(positive: Float, negative: Float, linear: Float) {
    self.positive = positive
    self.negative = negative
    self.linear = linear
  }
}

/// GPT-OSS's gate: (y + 1) · x · σ(αx) for the gate x, no larger than a limit, and what it gates, y, moved to between minus
/// that and that.
public struct ClampedSwiGLU: Sendable, Hashable {
  public let alpha: Float
  public let limit: Float

  public init(alpha: Float, limit: Float) {
    self.alpha = alpha
    self.limit = limit
  }
}

public enum ComputeError: Error, Sendable, Equatable, CustomStringConvertible {
  case notPositiveDefinite(pivot: Int)

  public var description: String {
    switch self {
    case .notPositiveDefinite(let pivot): "the matrix is not positive definite at pivot \(pivot)"
    }
  }
}
