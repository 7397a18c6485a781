/// Two models that cannot be compared.
public enum EvaluationError: Error, Sendable, Equatable, CustomStringConvertible {
  case otherVocabulary(tokens: Int, referenceTokens: Int)

  public var description: String {
    switch self {
    case .otherVocabulary(let tokens, let referenceTokens):
      "the model predicts \(tokens) tokens and the one that it is compared with \(referenceTokens): compare with the model "
        + "that it was made of"
    }
  }
}
