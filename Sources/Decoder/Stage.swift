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
    /// The first half of the MLP: leaves the intermediate activations.
    case expansion
    /// The attention's output projection, added to the residual stream.
    case attentionOutput
    /// The second half of the MLP, added to the residual stream.
    case contraction
  }

  public let input: Input
  public let parts: [Part]
  /// The linears of every part. Those of one part read the same input into one operation, and runtimes fuse them.
  public let linearsByPart: [[LayerLinear]]

  /// The linears of all parts, in the order in which they run.
  public var linears: [LayerLinear] { linearsByPart.flatMap { $0 } }
}

extension ModelDescription {
  /// The stages of every layer, in true-sequential order.
  public var stages: [Stage] {
    let normFirst = layer.placement == .before
    let attentionInput = Stage.Input.residual(normalizedBy: normFirst ? .attention : nil)
    let mlpInput = Stage.Input.residual(normalizedBy: normFirst ? .mlp : nil)
    let outline: [(Stage.Input, [Stage.Part])] =
      switch layer.arrangement {
      case .sequential:
        [
          (attentionInput, [.attention]), (.context, [.attentionOutput]),
          (mlpInput, [.expansion]), (.intermediate, [.contraction]),
        ]
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
      Stage(
        input: input, parts: parts,
        linearsByPart: parts.map { layer.linears(of: $0, hiddenSize: hiddenSize) })
    }
  }

  /// Every linear of one layer.
  public var layerLinears: [LayerLinear] { stages.flatMap(\.linears) }
}

extension LayerDescription {
  func linears(of part: Stage.Part, hiddenSize: Int) -> [LayerLinear] {
    switch part {
    case .attention:
      let (query, key) = (attention.queryFeatures, attention.keyFeatures)
      let outputs: [(String, Int)] =
        switch attention.projection {
        case .separate(let queryName, let keyName, let valueName):
          [(queryName, query), (keyName, key), (valueName, key)]
        case .fused(let name): [(name, query + 2 * key)]
        }
      return outputs.map { name, outFeatures in
        LayerLinear(
          name: name, outFeatures: outFeatures, inFeatures: hiddenSize,
          hasBias: attention.projectionHasBias)
      }
    case .attentionOutput:
      return [
        LayerLinear(
          name: attention.output, outFeatures: hiddenSize, inFeatures: attention.queryFeatures,
          hasBias: attention.outputHasBias)
      ]
    case .expansion:
      let names: [String] =
        switch mlp.expansion {
        case .gated(let gate, let up): [gate, up]
        case .plain(let up): [up]
        }
      return names.map {
        LayerLinear(
          name: $0, outFeatures: mlp.intermediateSize, inFeatures: hiddenSize, hasBias: mlp.hasBias)
      }
    case .contraction:
      return [
        LayerLinear(
          name: mlp.down, outFeatures: hiddenSize, inFeatures: mlp.intermediateSize,
          hasBias: mlp.hasBias)
      ]
    }
  }
}
