import Compute
import Export
import Glibc
import Tensors

/// What one model, and perhaps a reference, say to every token.
struct TokenLosses {
  private var losses: [Float] = []
  private var referenceLosses: [Float] = []
  private var divergences: [Float] = []
  private var sameChoices = 0

  /// - Parameter logits: the model's, and the reference's if there is one
  mutating func add(_ logits: [Matrix], targets: [Int32], backend: any ComputeBackend) {
    losses += backend.negativeLogLikelihoods(logits: logits[0], targets: targets)
    guard logits.count > 1 else { return }
    referenceLosses += backend.negativeLogLikelihoods(logits: logits[1], targets: targets)
    for prediction in backend.divergences(of: logits[0], from: logits[1]) {
      divergences.append(prediction.divergence)
      sameChoices += prediction.hasSameChoice ? 1 : 0
    }
  }

  var perplexity: Double { exp(losses.mean) }

  /// Nil without a reference.
  var divergence: Divergence? {
    if divergences.isEmpty { return nil }
    let sorted = divergences.sorted()
    func quantile(_ share: Double) -> Double {
      Double(sorted[min(Int(share * Double(sorted.count)), sorted.count - 1)])
    }
    let differences = zip(losses, referenceLosses).map { Double($0) - Double($1) }
    let count = Double(differences.count)
    let difference = differences.reduce(0, +) / count
    let variance =
      differences.reduce(0) { $0 + ($1 - difference) * ($1 - difference) } / max(count - 1, 1)
    return Divergence(
      mean: sorted.mean, median: quantile(0.5), percentile99: quantile(0.99), maximum: quantile(1),
      sameChoice: Double(sameChoices) / count, referencePerplexity: exp(referenceLosses.mean),
      perplexityRatio: exp(difference),
      perplexityRatioError: exp(difference) * (variance / count).squareRoot())
  }
}

extension [Float] {
  fileprivate var mean: Double { reduce(0) { $0 + Double($1) } / Double(count) }
}
