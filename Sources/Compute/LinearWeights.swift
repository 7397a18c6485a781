import Tensors

/// What the operands of a product are rounded to. Sums are fp32.
public enum OperandType: Sendable {
  case float32
  case bfloat16
}

/// The weights of a linear as a backend multiplies by them.
public struct LinearWeights: Sendable {
  public let outFeatures: Int
  public let inFeatures: Int
  public let operands: OperandType
  /// The backend's own: in fp32 `[outFeatures, inFeatures]`, in other types as it likes.
  public let values: Matrix

  public init(outFeatures: Int, inFeatures: Int, operands: OperandType, values: Matrix) {
    self.outFeatures = outFeatures
    self.inFeatures = inFeatures
    self.operands = operands
    self.values = values
  }

  /// W `[outFeatures, inFeatures]` as it stands.
  public init(_ weights: Matrix) {
    self.init(outFeatures: weights.rows, inFeatures: weights.columns, operands: .float32, values: weights)
  }
}

/// One of several products with the same inputs.
public struct LinearProduct: Sendable {
  /// W
  public let weights: LinearWeights
  /// b, `outFeatures` values
  public let bias: [Float]?
  /// Y, `[tokens, outFeatures]`
  public let outputs: Matrix
  /// Whether Y is added to what `outputs` holds.
  public let isAdded: Bool

  public init(
    _ weights: LinearWeights, bias: [Float]? = nil, into outputs: Matrix, adding isAdded: Bool = false
  ) {
    self.weights = weights
    self.bias = bias
    self.outputs = outputs
    self.isAdded = isAdded
  }

  /// Traps unless the shapes fit together.
  public func checkShapes(inputs: Matrix) {
    precondition(inputs.rows == outputs.rows, "inputs and outputs differ in their tokens")
    precondition(inputs.columns == weights.inFeatures, "inputs and weights differ in their features")
    precondition(weights.outFeatures == outputs.columns, "weights and outputs differ in their features")
    precondition(bias == nil || bias?.count == weights.outFeatures, "the bias has another length")
  }
}

extension DecoderOperations {
  /// Y = X Wᵀ + b.
  /// - Parameters:
  ///   - inputs: X, `[tokens, inFeatures]`
  ///   - weights: W, `[outFeatures, inFeatures]`
  ///   - bias: b, `outFeatures` values
  ///   - outputs: Y, `[tokens, outFeatures]`
  public func linear(_ inputs: Matrix, weights: Matrix, bias: [Float]? = nil, into outputs: Matrix) {
    linear(inputs, [LinearProduct(LinearWeights(weights), bias: bias, into: outputs)])
  }
}
