/// How a model answers questions: by the likelihood of the answers that there are to choose of, or, of texts whose last word is asked
/// for, by what it would say itself.
public struct TaskFigures: Sendable, Codable, Equatable {
  public let questions: Int
  /// Whether a word is asked for, and there is nothing to choose of.
  public let asksForWord: Bool
  public let model: Score
  /// Another model's; nil where there is none to compare with.
  public let reference: Score?
  /// Questions that the reference has right and the model has not, and the other way round.
  public let lost: Int?
  public let gained: Int?
  public let seconds: Double

  public init(
    questions: Int, asksForWord: Bool, model: Score, reference: Score? = nil, lost: Int? = nil,
    gained: Int? = nil, seconds: Double
  ) {
    (self.questions, self.asksForWord, self.model, self.reference) = (
      questions, asksForWord, model, reference
    )
    (self.lost, self.gained, self.seconds) = (lost, gained, seconds)
  }

  public struct Score: Sendable, Codable, Equatable {
    /// The share of the questions whose right answer is the likeliest; of words, for which greedy decoding says it.
    public let accuracy: Double
    /// The standard error of that.
    public let accuracyError: Double
    /// Of answers: the same with the log-likelihood divided by the answer's characters.
    public let normalizedAccuracy: Double?
    /// Of words: exp of the mean negative log-likelihood of a word.
    public let perplexity: Double?

    public init(
      accuracy: Double, questions: Int, normalizedAccuracy: Double? = nil, perplexity: Double? = nil
    ) {
      self.accuracy = accuracy
      accuracyError = (accuracy * (1 - accuracy) / Double(max(questions - 1, 1))).squareRoot()
      (self.normalizedAccuracy, self.perplexity) = (normalizedAccuracy, perplexity)
    }
  }
}
