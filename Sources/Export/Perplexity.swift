/// Perplexity of a model over windows of tokens.
public struct Perplexity: Sendable, Codable, Equatable {
  /// exp of the mean loss over each window's length − 1 predictions.
  public let perplexity: Double
  public let tokens: Int
  public let windows: Int
  public let seconds: Double
  /// How far the model's predictions are from another's; nil where there is none to compare with.
  public let against: Divergence?

  public init(perplexity: Double, tokens: Int, windows: Int, seconds: Double, against: Divergence? = nil) {
    self.perplexity = perplexity
    self.tokens = tokens
    self.windows = windows
    self.seconds = seconds
    self.against = against
  }
}

/// How far a model's predictions are from those of a reference, over the same tokens.
///
/// Perplexity asks how likely the text was; a model that is damaged can be lucky with it. The divergence asks how much of the
/// reference's distribution is left, token by token, and needs far less text for the same certainty.
public struct Divergence: Sendable, Codable, Equatable {
  /// The Kullback-Leibler divergence Σ p log(p/q) of a prediction in nats, p being the reference's: over all predictions its
  /// mean, its median, what 99 of a hundred stay below, and the largest.
  public let mean: Double
  public let median: Double
  public let percentile99: Double
  public let maximum: Double
  /// The share of predictions whose likeliest token is the reference's.
  public let sameChoice: Double
  public let referencePerplexity: Double
  /// The model's perplexity over the reference's, and its standard error, as if predictions were independent.
  public let perplexityRatio: Double
  public let perplexityRatioError: Double

  public init(
    mean: Double, median: Double, percentile99: Double, maximum: Double, sameChoice: Double,
    referencePerplexity: Double, perplexityRatio: Double, perplexityRatioError: Double
  ) {
    self.mean = mean
    self.median = median
    self.percentile99 = percentile99
    self.maximum = maximum
    self.sameChoice = sameChoice
    self.referencePerplexity = referencePerplexity
    self.perplexityRatio = perplexityRatio
    self.perplexityRatioError = perplexityRatioError
  }
}
