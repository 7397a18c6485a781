import Calibration
import Compute
import Decoder
import Tensors

/// The Gram matrices that the experts of a mixture are solved for: of their own tokens, and of tokens from all over as often as
/// they are of use.
struct ExpertGrams {
  let layer: DecoderLayer
  let tokens: MixtureTokens
  /// That of what all experts read.
  let shared: GramMatrix
  let settings: ExpertSettings
  let operands: OperandType
  let backend: any ComputeBackend

  /// Tokens from all over for the second half, as a multiple of its width.
  static let priorTokens = 2

  /// Σ of an expert's first half: of its own tokens, and of the mean token as often as it is of use. An expert that few
  /// tokens reach is solved for all of them.
  /// - Parameter index: the expert's among those of the stage
  func expansion(of expert: Stage.Expert, _ index: Int) -> Matrix {
    let gram = makeGram(expert.expansion)
    let share = tokens.routing.shares[index]
    if layer.hasOwnInput(expert) {
      // The others' mean is none of its tokens; all there are are its own.
      backend.fill(gram.values, with: 0)
    } else {
      backend.copy(shared.values, into: gram.values)
      if settings.isShared { return gram.values }
      let energy = layer.scalesInput(of: expert) ? share.meanEnergy : 1
      let prior = prior(
        expert, expert.expansion, times: ExpertPrior.strengths.expansion, share
      ) { rows, _ in rows }
      backend.scale(gram.values, by: energy * prior / Float(max(shared.tokens, 1)))
    }
    forEachChunk(of: share, expert) { rows, _ in gram.accumulate(rows) }
    return gram.values
  }

  /// Σ of its second half, whose first one is loaded: of its own tokens, each by its weight, and of tokens from all over as
  /// often as they are of use.
  func contraction(of expert: Stage.Expert, _ index: Int) -> Matrix {
    let gram = makeGram(expert.contraction)
    let share = tokens.routing.shares[index]
    let isWeighted = !layer.scalesInput(of: expert)
    func inner(_ rows: Matrix, _ factors: ArraySlice<Float>) -> Matrix {
      let inner = layer.intermediate(of: expert, rows)
      if isWeighted { backend.withHostMatrix(inner, for: .changing) { $0.multiplyRows(by: factors) } }
      return inner
    }
    let prior = prior(
      expert, expert.contraction, times: ExpertPrior.strengths.contraction, share, inner)
    // Every so manyth, of all that there are.
    let all = tokens.inputs.rows
    let count = min(all, Self.priorTokens * expert.contraction.inFeatures)
    let others = share.mean(of: (0..<count).map { $0 * all / max(count, 1) })
    forEachChunk(of: others, expert) { rows, _ in
      gram.accumulate(layer.intermediate(of: expert, rows))
    }
    let energy = isWeighted ? share.meanEnergy : 1
    backend.scale(gram.values, by: energy * prior / Float(max(count, 1)))
    forEachChunk(of: share, expert) { rows, range in
      gram.accumulate(inner(rows, share.factors[range]))
    }
    return gram.values
  }

  /// The tokens that stand for all.
  /// - Parameter made: what a half reads of rows that the expert reads, and of their factors
  private func prior(
    _ expert: Stage.Expert, _ half: Stage, times strength: Double, _ share: Routing.Share,
    _ made: (Matrix, ArraySlice<Float>) -> Matrix
  ) -> Float {
    if let fixed = settings.prior { return Float(fixed * Double(half.inFeatures)) }
    func sample(_ share: Routing.Share) -> Matrix {
      let sample = backend.makeMatrix(rows: share.tokens.count, columns: half.inFeatures)
      forEachChunk(of: share, expert) { rows, range in
        backend.copy(made(rows, share.factors[range]), into: sample.rows(range))
      }
      return sample
    }
    let own = ExpertPrior.sample(of: share.tokens.count)
    return Float(
      ExpertPrior(backend: backend).tokens(
        own: sample(
          Routing.Share(tokens: own.map { share.tokens[$0] }, factors: own.map { share.factors[$0] })),
        others: sample(share.mean(of: ExpertPrior.sample(of: tokens.inputs.rows))),
        times: strength, upTo: Double(half.inFeatures)))
  }

  private func makeGram(_ half: Stage) -> GramMatrix {
    GramMatrix(inFeatures: half.inFeatures, operands: operands, backend: backend)
  }

  private func forEachChunk(
    of share: Routing.Share, _ expert: Stage.Expert, _ body: (_ rows: Matrix, _ range: Range<Int>) -> Void
  ) {
    tokens.forEachChunk(of: share, expert, layer, backend, body)
  }
}
