/// A stage of a decoder layer: linears that share one input, and what follows once they have run.
///
/// Cut into stages, a layer needs every linear to run only once, with weights that are already quantized:
/// a stage's input is all that its linears' Gram matrix is made of, and a stage's results are all that
/// the next stage reads.
public struct Stage: Sendable {
  /// What the stage's linears read.
  public enum Input: Sendable {
    /// The residual stream, normalised where a norm comes first.
    case residual(normalizedBy: StageNorm?)
    /// The latents that queries are made of.
    case queryLatents
    /// The latents that keys and values are made of.
    case latents
    /// What the attention has gathered.
    case context
    /// The activations between the MLP's two halves.
    case intermediate
  }

  public enum StageNorm: Sendable {
    case attention
    case mlp
  }

  /// What the linears of a stage do.
  public enum Part: Sendable, Hashable {
    /// Queries, keys and values, then attention: leaves the context.
    case attention
    /// Latents, of which the attention's queries, keys and values will be made.
    case latents
    /// Queries of latents: leaves nothing, as ``latentAttention`` makes them again, which costs less than to keep them.
    case queryExpansion
    /// Keys and values of latents, then attention: leaves the context.
    case latentAttention
    /// The first half of the MLP: leaves the intermediate activations.
    case expansion
    /// The attention's output projection, added to the residual stream.
    case attentionOutput
    /// The second half of the MLP, added to the residual stream.
    case contraction
    /// A mixture of experts, the sum of which is added to the residual stream.
    case mixture
  }

  /// What a token takes as latents.
  public struct Latents: Sendable {
    /// Of queries, or the queries themselves.
    public let queries: Int
    /// Of keys and values.
    public let shared: Int
    /// The part of keys that turns.
    public let rotary: Int

    public var features: Int { queries + shared + rotary }
  }

  /// One expert of a mixture, whose linears are quantized before those of the next one.
  public struct Expert: Sendable {
    /// Nil of the shared one, which every token goes through.
    public let number: Int?
    let mlp: MLPDescription
    /// Its two halves, as stages of their own.
    public let expansion: Stage
    public let contraction: Stage

    /// Both, in the order in which they run.
    public var halves: [Stage] { [expansion, contraction] }
    public var linears: [LayerLinear] { halves.flatMap(\.linears) }
  }

  public let input: Input
  public let parts: [Part]
  /// The factor with which the output of the stage's linear is added to the residual stream; nil where it is changed
  /// otherwise before it gets there, or does not.
  public let residualScale: Float?
  /// What a token takes in the residual stream, as context, and between the MLP's halves, in this layer.
  public let hiddenSize: Int
  public let contextFeatures: Int
  public let intermediateSize: Int
  public let latents: Latents?
  /// Linears of the stage before, which run once more in this one.
  public let companions: [LayerLinear]
  /// The linears of every part. Those of one part read the same input into one operation, and runtimes fuse them.
  public let linearsByPart: [[LayerLinear]]
  /// Of a mixture, in the order in which they are worked on.
  public let experts: [Expert]

  /// The linears of all parts, in the order in which they run.
  public var linears: [LayerLinear] { linearsByPart.flatMap { $0 } }

  /// What has inputs of its own: the stage, or the halves of its experts.
  public var halves: [Stage] {
    experts.isEmpty ? [self] : experts.flatMap(\.halves)
  }

  /// Whether keys and values are made of what the stage reads.
  public var makesKeys: Bool { parts.contains { [.attention, .latents, .latentAttention].contains($0) } }

  /// Whether the next stage needs the linears once more.
  public var isRunAgain: Bool { parts == [.queryExpansion] }
}

extension ModelDescription {
  /// The stages of a layer, in true-sequential order.
  public func stages(ofLayer index: Int) -> [Stage] {
    let layer = layers[index]
    let normFirst = layer.placement == .before
    let mlpNorm = layer.mlpNorm ?? layer.attentionNorm
    let attentionInput = Stage.Input.residual(
      normalizedBy: normFirst && layer.attentionNorm != nil ? .attention : nil)
    let mlpInput = Stage.Input.residual(normalizedBy: normFirst && mlpNorm != nil ? .mlp : nil)
    let outline: [(Stage.Input, [Stage.Part])] =
      switch layer.arrangement {
      case .sequential:
        layer.mixerOutline(attentionInput) + [(.context, [.attentionOutput])]
          + (layer.mixture == nil
            ? [(mlpInput, [.expansion]), (.intermediate, [.contraction])] : [(mlpInput, [.mixture])])
      case .parallelSharedNorm:
        [
          (attentionInput, [.attention, .expansion]), (.context, [.attentionOutput]),
          (.intermediate, [.contraction]),
        ]
      case .parallelSeparateNorms:
        // Both halves read the residual stream before either adds to it.
        [
          (attentionInput, [.attention]), (mlpInput, [.expansion]),
          (.context, [.attentionOutput]), (.intermediate, [.contraction]),
        ]
      }
    return outline.map { input, parts in
      let experts = parts == [.mixture] ? layer.experts(reading: input, hiddenSize: hiddenSize) : []
      return Stage(
        input: input, parts: parts, residualScale: layer.residualScale(of: parts), hiddenSize: hiddenSize,
        contextFeatures: layer.contextFeatures, intermediateSize: layer.mlp.intermediateSize,
        latents: layer.latentAttention?.latents,
        companions: parts == [.latentAttention]
          ? layer.linears(of: .queryExpansion, hiddenSize: hiddenSize) : [],
        linearsByPart: experts.isEmpty
          ? parts.map { layer.linears(of: $0, hiddenSize: hiddenSize) }
          : experts.flatMap(\.halves).flatMap(\.linearsByPart),
        experts: experts)
    }
  }

  /// Whether some linear's output reaches the residual stream as it is, so that the linear can make up for what the stream
  /// lacks. None does where norms stand between.
  public var hasPlainOutputs: Bool {
    layers.indices.contains { index in stages(ofLayer: index).contains { $0.residualScale != nil } }
  }

  /// Linears of a layer that are always left as they are.
  public func keptLinears(ofLayer index: Int) -> [LayerLinear] {
    let layer = layers[index]
    return (layer.linearAttention?.keptLinears(hiddenSize: hiddenSize) ?? [])
      + (layer.mixture?.routers(hiddenSize: hiddenSize) ?? [])
  }

  /// Every linear of a layer, in the order of its stages.
  public func linears(ofLayer index: Int) -> [LayerLinear] { stages(ofLayer: index).flatMap(\.linears) }
}

extension LayerDescription {
  /// The stages up to the context.
  fileprivate func mixerOutline(_ input: Stage.Input) -> [(Stage.Input, [Stage.Part])] {
    guard let latentAttention else { return [(input, [.attention])] }
    let queries: [(Stage.Input, [Stage.Part])] =
      latentAttention.queryRank == nil ? [] : [(.queryLatents, [.queryExpansion])]
    return [(input, [.latents])] + queries + [(.latents, [.latentAttention])]
  }

  fileprivate func experts(reading input: Stage.Input, hiddenSize: Int) -> [Stage.Expert] {
    guard let mixture else { return [] }
    return mixture.experts.enumerated().map { number, mlp in
      func stage(_ input: Stage.Input, _ part: Stage.Part, _ linears: [LayerLinear]) -> Stage {
        Stage(
          input: input, parts: [part], residualScale: nil, hiddenSize: hiddenSize,
          contextFeatures: contextFeatures,
          intermediateSize: mlp.intermediateSize, latents: nil, companions: [], linearsByPart: [linears],
          experts: [])
      }
      return Stage.Expert(
        number: number < mixture.count ? number : nil, mlp: mlp,
        expansion: stage(input, .expansion, mlp.expansionLinears(hiddenSize: hiddenSize)),
        contraction: stage(.intermediate, .contraction, [mlp.contractionLinear(hiddenSize: hiddenSize)]))
    }
  }

  fileprivate func residualScale(of parts: [Stage.Part]) -> Float? {
    switch parts {
    case [.attentionOutput] where attentionOutputNorm == nil: residualScale
    case [.contraction] where mlpOutputNorm == nil: residualScale
    default: nil
    }
  }

  /// The rows of a linear's matrix in the checkpoint that each of its outputs is made of, in order.
  func rows(of linear: LayerLinear) -> [[Range<Int>]] {
    if let rows = latentAttention?.rows(of: linear.name) { return rows }
    if let linearAttention, linear.name == linearAttention.fused { return linearAttention.fusedRows }
    if case .separate(linear.name, _, _) = attention.projection, attention.hasOutputGate {
      let size = attention.headDimension
      return [0, 1].map { part in
        (0..<attention.heads).map { (2 * $0 + part) * size..<(2 * $0 + part + 1) * size }
      }
    }
    if case .fused(linear.name, let order) = attention.projection { return attention.rows(order) }
    if case .fused(linear.name) = mlp.expansion {
      let half = mlp.intermediateSize
      return [[0..<half], [half..<2 * half]]
    }
    return [[0..<linear.outFeatures]]
  }

  func linears(of part: Stage.Part, hiddenSize: Int) -> [LayerLinear] {
    switch part {
    case .attention:
      if let linearAttention { return linearAttention.linears(hiddenSize: hiddenSize) }
      let (query, key) = (attention.queryFeatures, attention.keyFeatures)
      let outputs: [(String, Int)] =
        switch attention.projection {
        case .separate(let queryName, let keyName, let valueName):
          [(queryName, query * (attention.hasOutputGate ? 2 : 1)), (keyName, key), (valueName, key)]
        case .sharedKeyValue(let queryName, let keyName): [(queryName, query), (keyName, key)]
        case .fused(let name, _): [(name, query + 2 * key)]
        }
      return outputs.map { name, outFeatures in
        LayerLinear(
          name: name, outFeatures: outFeatures, inFeatures: hiddenSize,
          hasBias: attention.projectionHasBias)
      }
    case .latents: return latentAttention?.downLinears(hiddenSize: hiddenSize) ?? []
    case .queryExpansion: return [latentAttention?.queryLinear].compactMap(\.self)
    case .latentAttention: return [latentAttention?.upLinear].compactMap(\.self)
    case .attentionOutput:
      return [
        LayerLinear(
          name: linearAttention?.output ?? attention.output, outFeatures: hiddenSize,
          inFeatures: contextFeatures, hasBias: linearAttention == nil && attention.outputHasBias)
      ]
    case .expansion: return mlp.expansionLinears(hiddenSize: hiddenSize)
    case .contraction: return [mlp.contractionLinear(hiddenSize: hiddenSize)]
    case .mixture: preconditionFailure("a mixture's linears are those of its experts")
    }
  }
}

extension MLPDescription {
  func expansionLinears(hiddenSize: Int) -> [LayerLinear] {
    let outputs: [(String, Int)] =
      switch expansion {
      case .gated(let gate, let up): [(gate, intermediateSize), (up, intermediateSize)]
      case .fused(let name): [(name, 2 * intermediateSize)]
      case .plain(let up): [(up, intermediateSize)]
      }
    return outputs.map { LayerLinear(name: $0, outFeatures: $1, inFeatures: hiddenSize, hasBias: hasBias) }
  }

  func contractionLinear(hiddenSize: Int) -> LayerLinear {
    LayerLinear(name: down, outFeatures: hiddenSize, inFeatures: intermediateSize, hasBias: hasBias)
  }
}
