import Checkpoint
import Compute
import Tensors

/// Attention whose keys and values are made of a few latents of every token (multi-head latent attention, arXiv
/// 2405.04434); names are relative to the layer's prefix.
///
/// A head's queries and keys are a part that is as it is made and a part that turns, which is the same for the keys of all
/// heads. In this engine the part that turns comes first.
struct LatentAttentionDescription: Sendable {
  let heads: Int
  /// Latents that queries are made of; nil where they are made of the hidden states.
  let queryRank: Int?
  /// Latents that keys and values are made of.
  let rank: Int
  let plainDimension: Int
  let rotaryDimension: Int
  let valueDimension: Int
  /// Of the linears that read hidden states.
  let hasBias: Bool
  let epsilon: Float

  let query = "self_attn.q_proj"
  let queryDown = "self_attn.q_a_proj"
  let queryNorm = "self_attn.q_a_layernorm"
  let queryUp = "self_attn.q_b_proj"
  let down = "self_attn.kv_a_proj_with_mqa"
  let norm = "self_attn.kv_a_layernorm"
  let up = "self_attn.kv_b_proj"

  var headDimension: Int { plainDimension + rotaryDimension }
  var queryFeatures: Int { heads * headDimension }
  var valueFeatures: Int { heads * valueDimension }
  var plainFeatures: Int { heads * plainDimension }

  /// What a token takes between the first linears and the attention.
  var latents: Stage.Latents {
    Stage.Latents(queries: queryRank ?? queryFeatures, shared: rank, rotary: rotaryDimension)
  }

  /// What the attention makes of a token beside its latents.
  var mixerFeatures: Int { 2 * queryFeatures + plainFeatures + valueFeatures }

  /// The linears of the stage that makes latents.
  func downLinears(hiddenSize: Int) -> [LayerLinear] {
    let query =
      queryRank.map {
        LayerLinear(name: queryDown, outFeatures: $0, inFeatures: hiddenSize, hasBias: hasBias)
      } ?? LayerLinear(name: query, outFeatures: queryFeatures, inFeatures: hiddenSize, hasBias: false)
    let down = LayerLinear(
      name: down, outFeatures: rank + rotaryDimension, inFeatures: hiddenSize, hasBias: hasBias)
    return [query, down]
  }

  /// The linear that makes queries of latents.
  var queryLinear: LayerLinear? {
    queryRank.map {
      LayerLinear(name: queryUp, outFeatures: queryFeatures, inFeatures: $0, hasBias: false)
    }
  }

  /// The linear that makes keys and values of latents.
  var upLinear: LayerLinear {
    LayerLinear(
      name: up, outFeatures: plainFeatures + valueFeatures, inFeatures: rank, hasBias: false)
  }

  /// The rows of a linear's matrix that each of its outputs is made of; nil for linears that are taken as they are.
  func rows(of name: String) -> [[Range<Int>]]? {
    switch name {
    case query, queryUp:
      // As stored, the part that turns is a head's last.
      return [
        (0..<heads).flatMap { head in
          let start = head * headDimension
          return [
            start + plainDimension..<start + headDimension, start..<start + plainDimension,
          ]
        }
      ]
    case down: return [[0..<rank], [rank..<rank + rotaryDimension]]
    case up:
      let size = plainDimension + valueDimension
      return [
        (0..<heads).map { $0 * size..<$0 * size + plainDimension },
        (0..<heads).map { $0 * size + plainDimension..<($0 + 1) * size },
      ]
    default: return nil
    }
  }

  /// Norms of latents, by their sizes.
  var norms: [(norm: NormDescription, size: Int)] {
    (queryRank.map { [(.rootMeanSquare(queryNorm, epsilon: epsilon), $0)] } ?? [])
      + [(.rootMeanSquare(norm, epsilon: epsilon), rank)]
  }
}

/// The norms of a layer's latents.
struct LatentNorms {
  let queries: NormalizationParameters?
  let shared: NormalizationParameters

  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  init(_ description: LatentAttentionDescription, prefix: String, source: any WeightSource) throws {
    var norms = try description.norms.map { try source.norm($0.norm, prefix: prefix, size: $0.size) }
    shared = norms.removeLast()
    queries = norms.first
  }
}

extension DecoderLayer {
  /// Makes the latents of a batch.
  func makeLatents(_ input: Matrix, _ latent: LatentAttentionDescription, _ state: inout LayerState) {
    guard let norms = latentNorms else { preconditionFailure("the layer has no latents") }
    let sizes = latent.latents
    let queries = workspace.matrix(.queryLatents, rows: input.rows, columns: sizes.queries)
    let shared = workspace.matrix(.latents, rows: input.rows, columns: sizes.shared)
    let rotary = workspace.matrix(.rotaryKeys, rows: input.rows, columns: sizes.rotary)
    run(
      latent.downLinears(hiddenSize: model.hiddenSize).map(\.name), on: input,
      into: [queries, shared, rotary])
    if let norm = norms.queries { backend.normalize(queries, norm, into: queries) }
    backend.normalize(shared, norms.shared, into: shared)
    if let table = rotaryTable { backend.rotate(rotary, headDimension: sizes.rotary, table: table) }
    state.queryLatents = queries
    state.latents = shared
    state.rotaryKeys = rotary
  }

  /// Makes queries, keys and values of a batch's latents, and gathers.
  func attendToLatents(
    _ latents: Matrix, _ latent: LatentAttentionDescription, sequenceLength: Int, _ state: LayerState
  ) -> Matrix {
    let tokens = latents.rows
    func matrix(_ role: Workspace.Role, _ columns: Int) -> Matrix {
      workspace.matrix(role, rows: tokens, columns: columns)
    }
    let stored = pending(state.queryLatents, "latents of queries")
    let rotaryKeys = pending(state.rotaryKeys, "keys that turn")
    let queries = matrix(.queries, latent.queryFeatures)
    if let linear = latent.queryLinear {
      run([linear.name], on: stored, into: [queries])
    } else {
      backend.copy(stored, into: queries)
    }
    if let table = rotaryTable { backend.rotate(queries, headDimension: latent.headDimension, table: table) }

    let plainKeys = matrix(.gate, latent.plainFeatures)
    let values = matrix(.values, latent.valueFeatures)
    run([latent.up], on: latents, into: [plainKeys, values])
    let keys = matrix(.keys, latent.queryFeatures)
    let (turning, whole) = (latent.rotaryDimension, latent.headDimension)
    backend.setHeads(of: keys, headDimension: whole, part: 0..<turning, to: rotaryKeys, isShared: true)
    backend.setHeads(of: keys, headDimension: whole, part: turning..<whole, to: plainKeys, isShared: false)

    let context = matrix(.context, latent.valueFeatures)
    let parameters = AttentionParameters(
      heads: latent.heads, keyValueHeads: latent.heads, headDimension: whole,
      valueDimension: latent.valueDimension, sequenceLength: sequenceLength,
      scale: description.attention.scoreScale, operands: operands)
    backend.attend(queries: queries, keys: keys, values: values, parameters, into: context)
    return context
  }
}
