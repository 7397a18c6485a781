import Tensors

/// Everything that the decoder and the solvers ask of a processor.
///
/// Matrices are row-major fp32. An operation returns when its result stands in memory, owns its threads,
/// and gives the same bits for every number of threads. Shapes that do not fit are programmer errors and trap.
public protocol ComputeBackend: DecoderOperations, LinearAlgebra, GridSweeps, OutlierSweeps {
  /// Threads that an operation may use.
  var threads: Int { get }
}

/// Dense products and factorisations.
public protocol LinearAlgebra: Sendable {
  /// C ← α·A·B + β·C, or α·A·Bᵀ + β·C: the shape of every product with a weight or Gram matrix.
  /// - Parameters:
  ///   - a: `[m, k]`
  ///   - b: `[k, n]`, or `[n, k]` when transposed
  ///   - c: `[m, n]`
  func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float)

  /// Adds a batch of inputs to the upper triangle of the Gram matrix, Σ += XᵀX for X `[tokens, inFeatures]`.
  /// The lower triangle is left as it is: see ``symmetrize(_:)``.
  func accumulateGram(_ inputs: Matrix, into gram: Matrix)

  /// Adds AᵀB, A `[tokens, m]`, B `[tokens, n]`, to `product` `[m, n]`.
  func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, into product: Matrix)

  /// x A xᵀ of every row x.
  /// - Parameters:
  ///   - rows: `[m, n]`
  ///   - matrix: A, `[n, n]`, symmetric
  func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double]

  /// Copies the upper triangle into the lower one.
  func symmetrize(_ matrix: Matrix)

  /// The lower factor L of A = L Lᵀ, in place of A; the upper triangle becomes zero.
  /// - Throws: ``ComputeError/notPositiveDefinite(pivot:)``
  func factorizeCholesky(_ matrix: Matrix) throws(ComputeError)

  /// The upper factor R of P A Pᵀ = Rᵀ R, in place of A, where P brings the smallest remaining pivot forward
  /// at every step; the lower triangle becomes zero.
  /// - Parameter matrix: A, both triangles
  /// - Returns: the row of A that each row of R stands for.
  /// - Throws: ``ComputeError/notPositiveDefinite(pivot:)``
  func factorizePivotedCholesky(_ matrix: Matrix) throws(ComputeError) -> [Int]

  /// X ← X·A⁻¹ for the factor L of A = L Lᵀ: every row of X is solved on its own.
  /// - Parameters:
  ///   - rows: X, `[m, n]`
  ///   - factor: L, `[n, n]`, lower triangle
  func solveCholesky(rows: Matrix, factor: Matrix)
}

/// The operations of a decoder layer's forward pass.
public protocol DecoderOperations: Sendable {
  /// Y = X Wᵀ + b.
  /// - Parameters:
  ///   - inputs: X, `[tokens, inFeatures]`
  ///   - weights: W, `[outFeatures, inFeatures]`
  ///   - bias: b, `outFeatures` values
  ///   - outputs: Y, `[tokens, outFeatures]`
  func linear(_ inputs: Matrix, weights: Matrix, bias: [Float]?, into outputs: Matrix)

  /// Normalises every row; `inputs` and `outputs` may be the same matrix.
  func normalize(_ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix)

  /// Rotary position embedding in place, on `[tokens, heads · headDimension]`.
  /// Row t has position t mod `table.sequenceLength`. Element i of a head pairs with element i + headDimension / 2.
  func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable)

  /// Causal softmax attention, sequence by sequence.
  /// - Parameters:
  ///   - queries: `[tokens, heads · headDimension]`, tokens a multiple of the sequence length
  ///   - keys: `[tokens, keyValueHeads · headDimension]`; query head h reads key head h / (heads / keyValueHeads)
  ///   - values: as `keys`
  ///   - outputs: as `queries`
  func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix)

  /// Applies an activation function in place.
  func activate(_ states: Matrix, _ function: ActivationFunction)

  /// gate ← function(gate) ⊙ up.
  func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction)

  /// y ← y + x.
  func add(_ x: Matrix, into y: Matrix)

  /// −log softmax(logits)[target] of every row, `[tokens, vocabulary]` → one value a row.
  func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float]
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

  public init(kind: Kind, weight: [Float], bias: [Float]? = nil, epsilon: Float) {
    self.kind = kind
    self.weight = weight
    self.bias = bias
    self.epsilon = epsilon
  }
}

/// Cosines and sines of the rotary angles, `[sequenceLength, headDimension / 2]` each.
public struct RotaryTable: Sendable {
  public let cosines: Matrix
  public let sines: Matrix

  public init(cosines: Matrix, sines: Matrix) {
    self.cosines = cosines
    self.sines = sines
  }

  public var sequenceLength: Int { cosines.rows }
}

public struct AttentionParameters: Sendable {
  public let heads: Int
  public let keyValueHeads: Int
  public let headDimension: Int
  public let sequenceLength: Int
  /// The factor of q·k, as a rule 1 / sqrt(headDimension).
  public let scale: Float
  /// Added to the scaled scores, `[heads, sequenceLength]` by key position: alibi.
  public let positionBias: Matrix?

  public init(
    heads: Int, keyValueHeads: Int, headDimension: Int, sequenceLength: Int, scale: Float,
    positionBias: Matrix? = nil
  ) {
    self.heads = heads
    self.keyValueHeads = keyValueHeads
    self.headDimension = headDimension
    self.sequenceLength = sequenceLength
    self.scale = scale
    self.positionBias = positionBias
  }
}

public enum ActivationFunction: String, Sendable, CaseIterable {
  case relu
  case silu
  /// x·Φ(x), by the error function
  case gelu
  /// The tanh approximation of gelu
  case geluTanh = "gelu_tanh"
}

public enum ComputeError: Error, Sendable, Equatable, CustomStringConvertible {
  case notPositiveDefinite(pivot: Int)

  public var description: String {
    switch self {
    case .notPositiveDefinite(let pivot): "the matrix is not positive definite at pivot \(pivot)"
    }
  }
}
