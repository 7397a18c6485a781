import Foundation

/// An answer to a question, as tokens that a model tells the likelihood of.
public struct TaskAnswer: Sendable, Equatable, Decodable {
  /// Counted from 0; the answers to a question stand together.
  public let question: Int
  /// Those of the question, and then those of the answer.
  public let ids: [Int32]
  /// How many of them are given: one at least, and not all.
  public let context: Int
  /// The answer's length.
  public let characters: Int
  public let right: Bool

  public init(question: Int, ids: [Int32], context: Int, characters: Int, right: Bool) {
    (self.question, self.ids, self.context) = (question, ids, context)
    (self.characters, self.right) = (characters, right)
  }
}

extension Tokenizer {
  /// Reads questions with answers to choose of, or texts whose last word is to be told.
  /// - Parameters:
  ///   - task: a .jsonl file in the fields of the usual harnesses, also .zst
  ///   - model: the directory with tokenizer.json, or a GGUF file
  /// - Throws: ``CalibrationError``
  public func answers(to task: String, model: String) throws -> [TaskAnswer] {
    let lines = try output(of: ["--task", model, task])
    let decoder = JSONDecoder()
    return try lines.split(separator: UInt8(ascii: "\n")).map {
      try decoder.decode(TaskAnswer.self, from: Data($0))
    }
  }
}
