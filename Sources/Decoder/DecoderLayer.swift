import Checkpoint
import Compute
import Tensors

/// What one batch of sequences carries from stage to stage of a layer.
public struct LayerState {
  /// The residual stream, `[tokens, hiddenSize]`; stages change it in place.
  public var residual: Matrix
  /// What the attention gathered, `[tokens, heads · headDimension]`, until its output projection reads it.
  public var context: Matrix?
  /// The latents that queries are made of, or the queries; those that keys and values are made of; and the part of keys
  /// that turns, turned: until the attention reads them.
  public var queryLatents: Matrix?
  public var latents: Matrix?
  public var rotaryKeys: Matrix?
  /// The activations between the MLP's halves, `[tokens, intermediateSize]`, until the second half reads them.
  public var intermediate: Matrix?

  public init(residual: Matrix) { self.residual = residual }
}

/// One decoder layer, run stage by stage; resident, as the backend multiplies by them, are the weights of the stages that
/// were loaded.
///
/// A linear's weights can be replaced between stages, so that everything downstream sees what was quantized.
/// Matrices in the returned state lie in the layer's workspace and are valid until the next batch runs.
public final class DecoderLayer {
  public let index: Int
  public let stages: [Stage]
  let model: ModelDescription
  let description: LayerDescription
  let source: any WeightSource
  let backend: any DecoderOperations
  let workspace: Workspace
  private let tables: PositionTables
  let operands: OperandType
  var resident: [String: ResidentLinear] = [:]
  let biases: [String: [Float]]
  private let attentionNorm: NormalizationParameters?
  let mlpNorm: NormalizationParameters?
  private let attentionOutputNorm: NormalizationParameters?
  let mlpOutputNorm: NormalizationParameters?
  private let queryNorm: NormalizationParameters?
  private let keyNorm: NormalizationParameters?
  private let xielu: XIELU?
  private let valueNorm: NormalizationParameters?
  private let sinks: [Float]?
  private let linearAttention: GatedDeltaNet?
  let latentNorms: LatentNorms?
  /// A factor of the residual stream after the layer.
  let outputScale: Float
  let router: MixtureRouter?
  let mixtureNorms: MixtureNorms?

  /// Reads the layer's norms and biases.
  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  init(
    index: Int, model: ModelDescription, source: any WeightSource, backend: any DecoderOperations,
    workspace: Workspace, tables: PositionTables, operands: OperandType
  ) throws {
    self.index = index
    self.model = model
    self.source = source
    self.backend = backend
    self.workspace = workspace
    self.tables = tables
    self.operands = operands
    stages = model.stages(ofLayer: index)
    let description = model.layers[index]
    self.description = description
    let prefix = model.layerPrefix(index)
    let attention = description.attention
    func norm(_ norm: NormDescription?, size: Int) throws -> NormalizationParameters? {
      try norm.map { try source.norm($0, prefix: prefix, size: size) }
    }
    attentionNorm = try norm(description.attentionNorm, size: model.hiddenSize)
    mlpNorm = try norm(description.mlpNorm, size: model.hiddenSize)
    attentionOutputNorm = try norm(description.attentionOutputNorm, size: model.hiddenSize)
    mlpOutputNorm = try norm(description.mlpOutputNorm, size: model.hiddenSize)
    linearAttention = try description.linearAttention.map {
      try GatedDeltaNet(
        $0, prefix: prefix, hiddenSize: model.hiddenSize, source: source, backend: backend)
    }
    latentNorms = try description.latentAttention.map {
      try LatentNorms($0, prefix: prefix, source: source)
    }
    router = try description.mixture.map {
      try MixtureRouter($0, prefix: prefix, hiddenSize: model.hiddenSize, source: source, backend: backend)
    }
    mixtureNorms = try description.mixture?.norms.map {
      try MixtureNorms($0, prefix: prefix, hiddenSize: model.hiddenSize, source: source)
    }
    func headNorm(_ norm: NormDescription?, heads: Int) throws -> NormalizationParameters? {
      guard let norm, description.linearAttention == nil else { return nil }
      return try source.headNorm(norm, of: attention, heads: heads, prefix: prefix)
    }
    func plainNorm(epsilon: Float) -> NormalizationParameters {
      NormalizationParameters(
        kind: .rootMeanSquare, weight: [Float](repeating: 1, count: attention.headDimension), epsilon: epsilon
      )
    }
    let plainHeadNorm = attention.plainNormEpsilon.map(plainNorm)
    queryNorm = try headNorm(attention.queryNorm, heads: attention.heads) ?? plainHeadNorm
    keyNorm = try headNorm(attention.keyNorm, heads: attention.keyValueHeads) ?? plainHeadNorm
    sinks = try attention.sinks.map { try source.vector("\(prefix)\($0)", count: attention.heads) }
    xielu = try description.mlp.xielu.map { try source.xielu(prefix + $0) }
    valueNorm = attention.valueNormEpsilon.map(plainNorm)
    outputScale = try description.outputScale.map { try source.vector("\(prefix)\($0)", count: 1)[0] } ?? 1
    var biases: [String: [Float]] = [:]
    for linear in stages.flatMap(\.linears) where linear.hasBias {
      biases[linear.name] = try source.vector("\(prefix)\(linear.name).bias", count: linear.outFeatures)
    }
    self.biases = biases
  }

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
    case .queryLatents: return pending(state.queryLatents, "latents of queries")
    case .latents: return pending(state.latents, "latents")
    case .context: return pending(state.context, "context")
    case .intermediate: return pending(state.intermediate, "intermediate activations")
    }
  }

  /// Runs the linears of `stage` on their input and what follows them.
  /// - Parameter input: the result of ``input(of:_:)`` for the same state.
  public func run(_ stage: Stage, input: Matrix, sequenceLength: Int, state: inout LayerState) {
    for part in stage.parts {
      switch part {
      case .attention:
        state.context =
          linearAttention == nil
          ? attend(input, sequenceLength: sequenceLength)
          : attendLinearly(input, sequenceLength: sequenceLength)
      case .latents, .queryExpansion, .latentAttention:
        runLatents(part, input, sequenceLength: sequenceLength, &state)
      case .expansion: state.intermediate = expand(input, description.mlp)
      case .mixture: runMixture(stage, input, state)
      case .attentionOutput:
        addToResidual(.attentionOutput, input, norm: .attention, outputNorm: attentionOutputNorm, &state)
        state.context = nil
      case .contraction:
        addToResidual(.contraction, input, norm: .mlp, outputNorm: mlpOutputNorm, &state)
        if outputScale != 1 { backend.scale(state.residual, by: outputScale) }
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
    let attention = description.attention
    let tokens = input.rows
    let queries = workspace.matrix(.queries, rows: tokens, columns: attention.queryFeatures)
    let keys = workspace.matrix(.keys, rows: tokens, columns: attention.keyFeatures)
    let values = workspace.matrix(.values, rows: tokens, columns: attention.keyFeatures)
    let projections =
      switch attention.projection {
      case .separate(let query, let key, let value): [query, key, value]
      case .sharedKeyValue(let query, let key): [query, key]
      case .fused(let name, _): [name]
      }
    let gate =
      attention.hasOutputGate
      ? workspace.matrix(.attentionGate, rows: tokens, columns: attention.queryFeatures) : nil
    if case .sharedKeyValue = attention.projection {
      run(projections, on: input, into: [queries, keys])
      backend.copy(keys, into: values)
    } else {
      run(projections, on: input, into: [queries] + (gate.map { [$0] } ?? []) + [keys, values])
    }
    if let clip = attention.clip {
      for states in [queries, keys, values] { backend.clamp(states, to: clip) }
    }
    let positions = tables[attention.positions]
    if attention.turnsFirst { turn(queries, keys, positions.rotary) }
    for (states, norm) in [(queries, queryNorm), (keys, keyNorm), (values, valueNorm)] {
      guard let norm else { continue }
      let size = attention.normSize(states.columns)
      let heads = states.reshaped(rows: states.count / size, columns: size)
      backend.normalize(heads, norm, into: heads)
    }
    if !attention.turnsFirst { turn(queries, keys, positions.rotary) }
    let context = workspace.matrix(.context, rows: tokens, columns: attention.queryFeatures)
    let parameters = AttentionParameters(
      heads: attention.heads, keyValueHeads: attention.keyValueHeads,
      headDimension: attention.headDimension, sequenceLength: sequenceLength,
      scale: attention.scoreScale, positionBias: positions.alibi, window: attention.window,
      softcap: attention.softcap, sinks: sinks, operands: operands)
    backend.attend(queries: queries, keys: keys, values: values, parameters, into: context)
    guard let gate else { return context }
    backend.activateGate(gate, up: context, .sigmoid)
    return gate
  }

  private func runLatents(
    _ part: Stage.Part, _ input: Matrix, sequenceLength: Int, _ state: inout LayerState
  ) {
    guard let latent = description.latentAttention else { preconditionFailure("the layer has no latents") }
    if part == .latents { makeLatents(input, latent, &state) }
    if part == .latentAttention {
      state.context = attendToLatents(input, latent, sequenceLength: sequenceLength, state)
      (state.queryLatents, state.latents, state.rotaryKeys) = (nil, nil, nil)
    }
  }

  /// Of the layer's positions.
  var rotaryTable: RotaryTable? { tables[description.attention.positions].rotary }

  private func turn(_ queries: Matrix, _ keys: Matrix, _ table: RotaryTable?) {
    guard let table else { return }
    for states in [queries, keys] {
      backend.rotate(states, headDimension: description.attention.headDimension, table: table)
    }
  }

  private func attendLinearly(_ input: Matrix, sequenceLength: Int) -> Matrix {
    guard let linearAttention else { preconditionFailure("the layer has no linear attention") }
    let mixer = linearAttention.description
    func matrix(_ role: Workspace.Role, _ columns: Int) -> Matrix {
      workspace.matrix(role, rows: input.rows, columns: columns)
    }
    let mixed = matrix(.queries, mixer.channels)
    let gate = matrix(.attentionGate, mixer.valueFeatures)
    let context = matrix(.context, mixer.valueFeatures)
    run(mixer.linears(hiddenSize: model.hiddenSize).map(\.name), on: input, into: [mixed, gate])
    linearAttention.run(
      input, mixed: mixed, decays: matrix(.keys, mixer.valueHeads), gates: matrix(.values, mixer.valueHeads),
      sequenceLength: sequenceLength, into: context)
    backend.activateGate(gate, up: context, .silu)
    return gate
  }

  func expand(_ input: Matrix, _ mlp: MLPDescription) -> Matrix {
    let up = workspace.matrix(.up, rows: input.rows, columns: mlp.intermediateSize)
    switch mlp.expansion {
    case .plain(let name):
      run([name], on: input, into: [up])
      if let xielu { backend.activate(up, xielu) } else { backend.activate(up, mlp.activation) }
      return up
    case .gated, .fused:
      let gate = workspace.matrix(.gate, rows: input.rows, columns: mlp.intermediateSize)
      run(mlp.expansionLinears(hiddenSize: model.hiddenSize).map(\.name), on: input, into: [gate, up])
      if let clamped = mlp.clampedSwiGLU {
        backend.activateGate(gate, up: up, clamped)
      } else {
        backend.activateGate(gate, up: up, mlp.activation)
      }
      return gate
    }
  }

  /// Runs linears that read the same input, one of outputs each.
  func run(
    _ linears: [String], on input: Matrix, into outputs: [Matrix], adding isAdded: Bool = false
  ) {
    let products = linears.flatMap { weights($0).products }
    precondition(products.count == outputs.count, "a fused linear has several outputs")
    backend.linear(
      input,
      zip(products, outputs).map { LinearProduct($0.weights, bias: $0.bias, into: $1, adding: isAdded) })
  }

  private func addToResidual(
    _ part: Stage.Part, _ input: Matrix, norm: Stage.StageNorm, outputNorm: NormalizationParameters?,
    _ state: inout LayerState
  ) {
    let linear = description.linears(of: part, hiddenSize: model.hiddenSize)[0]
    if outputNorm == nil && description.residualScale == 1 {
      run([linear.name], on: input, into: [state.residual], adding: true)
    } else {
      let output = workspace.matrix(.blockOutput, rows: input.rows, columns: model.hiddenSize)
      run([linear.name], on: input, into: [output])
      add(output, outputNorm, to: state.residual)
    }
    normalizeAfter(norm, state.residual)
  }

  /// Adds what a block has made to the residual stream.
  /// - Parameter output: overwritten
  func add(_ output: Matrix, _ outputNorm: NormalizationParameters?, to residual: Matrix) {
    if let outputNorm { backend.normalize(output, outputNorm, into: output) }
    if description.residualScale != 1 { backend.scale(output, by: description.residualScale) }
    backend.add(output, into: residual)
  }

  /// Normalizes the residual stream where norms stand behind the blocks.
  func normalizeAfter(_ norm: Stage.StageNorm, _ residual: Matrix) {
    if description.placement == .after { backend.normalize(residual, parameters(norm), into: residual) }
  }

  private func parameters(_ norm: Stage.StageNorm) -> NormalizationParameters {
    let parameters: NormalizationParameters? =
      switch norm {
      case .attention: attentionNorm
      case .mlp: mlpNorm ?? attentionNorm
      }
    guard let parameters else { preconditionFailure("the block has no norm") }
    return parameters
  }

  func weights(_ name: String) -> ResidentLinear {
    guard let weights = resident[name] else { preconditionFailure("\(name) is not loaded") }
    return weights
  }

  func pending(_ matrix: Matrix?, _ name: String) -> Matrix {
    guard let matrix else { preconditionFailure("the stage before left no \(name)") }
    return matrix
  }
}
