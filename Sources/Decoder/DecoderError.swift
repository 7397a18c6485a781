/// A model that this decoder cannot run.
public enum DecoderError: Error, Sendable, Equatable, CustomStringConvertible {
  case unknownArchitecture(String, known: [String])
  case missingKey(String)
  case unsupportedSetting(key: String, value: String, supported: String)
  /// Two spellings of one setting that say different things.
  case contradiction(String, String)
  case noHead
  case inconsistentHeads(heads: Int, keyValueHeads: Int)
  /// Why a model's residual stream cannot be rotated.
  case notRotatable(String)
  case sequenceTooLong(Int, maximum: Int)
  case tokenOutsideVocabulary(token: Int32, vocabulary: Int)

  public var description: String {
    switch self {
    case .unknownArchitecture(let name, let known):
      "config.json: model_type \"\(name)\" is not a known architecture; "
        + "known are \(known.joined(separator: ", "))"
    case .missingKey(let key):
      "config.json: the key \(key) is missing; take config.json from the model's original repository"
    case .unsupportedSetting(let key, let value, let supported):
      "config.json: \(key) = \(value) is not supported; supported: \(supported)"
    case .contradiction(let one, let other):
      "config.json: \(one) and \(other) are two spellings of one setting and say different things, of which clients take "
        + "one or the other; remove the one that is not meant"
    case .noHead:
      "config.json: tie_word_embeddings is false and the checkpoint holds no lm_head.weight, for which clients take random "
        + "numbers; set it to true if the head is that of the embeddings, or download the missing shard"
    case .inconsistentHeads(let heads, let keyValueHeads):
      "config.json: \(heads) attention heads cannot share \(keyValueHeads) key-value heads evenly"
    case .notRotatable(let reason):
      "the residual stream cannot be rotated: \(reason); take --rotate off"
    case .sequenceTooLong(let length, let maximum):
      "a sequence length of \(length) is beyond the \(maximum) positions of this model; "
        + "ask for --sequence-length \(maximum) or less"
    case .tokenOutsideVocabulary(let token, let vocabulary):
      "token id \(token) is outside the model's vocabulary of \(vocabulary); "
        + "the token file was made with another model's tokenizer"
    }
  }
}
