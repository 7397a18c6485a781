import Checkpoint
import Compute
import Tensors

/// What one batch of sequences carries from stage to stage of a layer.
public struct LayerState {
  /// The residual stream, `[tokens, hiddenSize]`; stages change it in place.
  public var residual: Matrix
  /// What the attention gathered, `[tokens, heads · headDimension]`, until its output projection reads it.
  public var context: Matrix?
  /// The activations between the MLP's halves, `[tokens, intermediateSize]`, until the second half reads them.
  public var intermediate: Matrix?

  public init(residual: Matrix, context: Matrix? = nil, intermediate: Matrix? = nil) {
    self.residual = residual
    self.context = context
    self.intermediate = intermediate
  }
}

/// One decoder layer, run stage by stage; resident in fp32 are the weights of the stages that were loaded.
///
/// A linear's weights can be replaced between stages, so that everything downstream sees what was quantized.
/// Matrices in the returned state lie in the layer's workspace and are valid until the next batch runs.
public final class DecoderLayer {
  public let index: Int
  public let stages: [Stage]
  private let model: ModelDescription
  private let source: any WeightSource
  private let backend: any ComputeBackend
  private let workspace: Workspace
  private let tables: PositionTables
  private var weights: [String: Matrix] = [:]
  private let biases: [String: [Float]]
  private let attentionNorm: NormalizationParameters
  private let mlpNorm: NormalizationParameters?
  private let queryNorm: NormalizationParameters?
  private let keyNorm: NormalizationParameters?

  /// Reads the layer's norms and biases.
  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  init(
    index: Int, model: ModelDescription, source: any WeightSource, backend: any ComputeBackend,
    workspace: Workspace, tables: PositionTables
  ) throws {
    self.index = index
    self.model = model
    self.source = source
    self.backend = backend
    self.workspace = workspace
    self.tables = tables
    stages = model.stages
    let prefix = model.layerPrefix(index)
    let attention = model.layer.attention
    attentionNorm = try source.norm(model.layer.attentionNorm, prefix: prefix, size: model.hiddenSize)
    mlpNorm = try model.layer.mlpNorm.map { try source.norm($0, prefix: prefix, size: model.hiddenSize) }
    queryNorm = try attention.queryNorm.map {
      try source.norm($0, prefix: prefix, size: attention.headDimension)
    }
    keyNorm = try attention.keyNorm.map {
      try source.norm($0, prefix: prefix, size: attention.headDimension)
    }
    var biases: [String: [Float]] = [:]
    for linear in model.layerLinears where linear.hasBias {
      biases[linear.name] = try source.vector("\(prefix)\(linear.name).bias", count: linear.outFeatures)
    }
    self.biases = biases
  }

  /// Reads the weights of a stage's linears, those that are not resident.
  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  public func load(_ stage: Stage) throws {
    for linear in stage.linears where weights[linear.name] == nil {
      weights[linear.name] = try source.matrix(
        "\(moduleName(of: linear)).weight", shape: [linear.outFeatures, linear.inFeatures])
    }
  }

  /// Gives the memory of the weights of a stage's linears back, and forgets what they were replaced by.
  public func unload(_ stage: Stage) {
    for linear in stage.linears { weights[linear.name] = nil }
  }

  /// A linear's weights as they now are, `[outFeatures, inFeatures]`; its stage is loaded. They may be overwritten in
  /// place.
  public func weights(of linear: LayerLinear) -> Matrix { matrix(linear.name) }

  /// The full name of a linear's module in the checkpoint.
  public func moduleName(of linear: LayerLinear) -> String {
    model.layerPrefix(index) + linear.name
  }

  /// What the linears of `stage` read, `[tokens, inFeatures]`.
  public func input(of stage: Stage, _ state: LayerState) -> Matrix {
    switch stage.input {
    case .residual(normalizedBy: nil): return state.residual
    case .residual(normalizedBy: .some(let norm)):
      let output = workspace.matrix(
        .normalized, rows: state.residual.rows, columns: state.residual.columns)
      backend.normalize(state.residual, parameters(norm), into: output)
      return output
    case .context: return pending(state.context, "context")
    case .intermediate: return pending(state.intermediate, "intermediate activations")
    }
  }

  /// Runs the linears of `stage` on their input and what follows them.
  /// - Parameter input: the result of ``input(of:_:)`` for the same state.
  public func run(_ stage: Stage, input: Matrix, sequenceLength: Int, state: inout LayerState) {
    for part in stage.parts {
      switch part {
      case .attention: state.context = attend(input, sequenceLength: sequenceLength)
      case .expansion: state.intermediate = expand(input)
      case .attentionOutput:
        addToResidual(linear(.attentionOutput, input), norm: .attention, &state)
        state.context = nil
      case .contraction:
        addToResidual(linear(.contraction, input), norm: .mlp, &state)
        state.intermediate = nil
      }
    }
  }

  /// Runs the whole layer, all of which is loaded, on the hidden states `[tokens, hiddenSize]`, in place.
  public func run(_ hiddenStates: Matrix, sequenceLength: Int) {
    var state = LayerState(residual: hiddenStates)
    for stage in stages {
      run(stage, input: input(of: stage, state), sequenceLength: sequenceLength, state: &state)
    }
  }

  private func attend(_ input: Matrix, sequenceLength: Int) -> Matrix {
    let attention = model.layer.attention
    let tokens = input.rows
    let queries = workspace.matrix(.queries, rows: tokens, columns: attention.queryFeatures)
    let keys = workspace.matrix(.keys, rows: tokens, columns: attention.keyFeatures)
    let values = workspace.matrix(.values, rows: tokens, columns: attention.keyFeatures)
    switch attention.projection {
    case .separate(let query, let key, let value):
      for (name, output) in [(query, queries), (key, keys), (value, values)] {
        backend.linear(input, weights: matrix(name), bias: biases[name], into: output)
      }
    case .fused(let name):
      let split = FusedProjection(attention, weights: matrix(name), bias: biases[name])
      backend.linear(input, weights: split.query, bias: split.queryBias, into: queries)
      backend.linear(input, weights: split.key, bias: split.keyBias, into: keys)
      backend.linear(input, weights: split.value, bias: split.valueBias, into: values)
    }
    for (states, norm) in [(queries, queryNorm), (keys, keyNorm)] {
      guard let norm else { continue }
      let heads = states.reshaped(
        rows: states.count / attention.headDimension, columns: attention.headDimension)
      backend.normalize(heads, norm, into: heads)
    }
    if let rotary = tables.rotary {
      backend.rotate(queries, headDimension: attention.headDimension, table: rotary)
      backend.rotate(keys, headDimension: attention.headDimension, table: rotary)
    }
    let context = workspace.matrix(.context, rows: tokens, columns: attention.queryFeatures)
    let parameters = AttentionParameters(
      heads: attention.heads, keyValueHeads: attention.keyValueHeads,
      headDimension: attention.headDimension, sequenceLength: sequenceLength,
      scale: attention.scoreScale, positionBias: tables.alibi)
    backend.attend(queries: queries, keys: keys, values: values, parameters, into: context)
    return context
  }

  private func expand(_ input: Matrix) -> Matrix {
    let mlp = model.layer.mlp
    let up = workspace.matrix(.up, rows: input.rows, columns: mlp.intermediateSize)
    switch mlp.expansion {
    case .plain(let name):
      backend.linear(input, weights: matrix(name), bias: biases[name], into: up)
      backend.activate(up, mlp.activation)
      return up
    case .gated(let gateName, let upName):
      let gate = workspace.matrix(.gate, rows: input.rows, columns: mlp.intermediateSize)
      backend.linear(input, weights: matrix(gateName), bias: biases[gateName], into: gate)
      backend.linear(input, weights: matrix(upName), bias: biases[upName], into: up)
      backend.activateGate(gate, up: up, mlp.activation)
      return gate
    }
  }

  private func linear(_ part: Stage.Part, _ input: Matrix) -> Matrix {
    let description = model.layer.linears(of: part, hiddenSize: model.hiddenSize)[0]
    let output = workspace.matrix(
      .residualUpdate, rows: input.rows, columns: description.outFeatures)
    backend.linear(
      input, weights: matrix(description.name), bias: biases[description.name], into: output)
    return output
  }

  private func addToResidual(_ update: Matrix, norm: Stage.StageNorm, _ state: inout LayerState) {
    backend.add(update, into: state.residual)
    if model.layer.placement == .after {
      backend.normalize(state.residual, parameters(norm), into: state.residual)
    }
  }

  private func parameters(_ norm: Stage.StageNorm) -> NormalizationParameters {
    switch norm {
    case .attention: attentionNorm
    case .mlp: mlpNorm ?? attentionNorm
    }
  }

  private func matrix(_ name: String) -> Matrix {
    guard let matrix = weights[name] else { preconditionFailure("\(name) is not loaded") }
    return matrix
  }

  private func pending(_ matrix: Matrix?, _ name: String) -> Matrix {
    guard let matrix else { preconditionFailure("the stage before left no \(name)") }
    return matrix
  }
}

extension AttentionDescription {
  var scoreScale: Float { 1 / Float(headDimension).squareRoot() }
}

/// The tables that position embeddings need, for one sequence length.
struct PositionTables: Sendable {
  let rotary: RotaryTable?
  let alibi: Matrix?

  init(_ attention: AttentionDescription, sequenceLength: Int) {
    switch attention.positions {
    case .none: (rotary, alibi) = (nil, nil)
    case .rotary(let embedding):
      (rotary, alibi) = (embedding.table(sequenceLength: sequenceLength), nil)
    case .alibi(let slopes):
      rotary = nil
      alibi = slopes.bias(sequenceLength: sequenceLength, scoreScale: attention.scoreScale)
    }
  }
}

/// The rows of a fused query-key-value matrix, sorted into three.
///
/// The fused matrix has one group of rows for every key-value head: its query heads, then its key, then its value.
struct FusedProjection {
  let query: Matrix
  let key: Matrix
  let value: Matrix
  let queryBias: [Float]?
  let keyBias: [Float]?
  let valueBias: [Float]?

  init(_ attention: AttentionDescription, weights: Matrix, bias: [Float]?) {
    let size = attention.headDimension
    let queriesPerGroup = attention.heads / attention.keyValueHeads
    func gather(_ offset: Int, _ heads: Int) -> (Matrix, [Float]?) {
      let rows = Matrix(
        rows: attention.keyValueHeads * heads * size, columns: weights.columns)
      var gatheredBias: [Float] = []
      for group in 0..<attention.keyValueHeads {
        let source = (group * (queriesPerGroup + 2) + offset) * size
        rows.rows(group * heads * size..<(group + 1) * heads * size)
          .copy(from: weights.rows(source..<source + heads * size))
        if let bias { gatheredBias += bias[source..<source + heads * size] }
      }
      return (rows, bias == nil ? nil : gatheredBias)
    }
    (query, queryBias) = gather(0, queriesPerGroup)
    (key, keyBias) = gather(queriesPerGroup, 1)
    (value, valueBias) = gather(queriesPerGroup + 1, 1)
  }
}

extension WeightSource {
  func norm(_ norm: NormDescription, prefix: String = "", size: Int) throws -> NormalizationParameters {
    NormalizationParameters(
      kind: norm.kind,
      weight: try vector("\(prefix)\(norm.name).weight", count: size),
      bias: norm.hasBias ? try vector("\(prefix)\(norm.name).bias", count: size) : nil,
      epsilon: norm.epsilon)
  }
}
