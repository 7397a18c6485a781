import Calibration
import Compute
import Export
import Glibc
import Tensors

/// What a model says to an answer.
struct AnswerScore {
  var logLikelihood = 0.0
  /// Whether greedy decoding would say it.
  var isGreedy = true

  /// - Parameters:
  ///   - logits: `[tokens, vocabulary]`
  ///   - targets: the tokens that come
  mutating func add(_ logits: Matrix, targets: [Int32], backend: any ComputeBackend) {
    for loss in backend.negativeLogLikelihoods(logits: logits, targets: targets) {
      logLikelihood -= Double(loss)
    }
    let isLikeliest = backend.withHostMatrix(logits, for: .reading) { host in
      host.withSpan { values in
        targets.indices.allSatisfy { row in
          let first = row * host.columns
          let wanted = values[first + Int(targets[row])]
          return (first..<first + host.columns).allSatisfy { values[$0] <= wanted }
        }
      }
    }
    isGreedy = isGreedy && isLikeliest
  }
}

extension TaskFigures {
  /// - Parameters:
  ///   - answers: those to a question stand together
  ///   - scores: the model's, and the reference's if there is one: one an answer each
  init(_ answers: [TaskAnswer], _ scores: [[AnswerScore]], seconds: Double) {
    var questions: [Range<Int>] = []
    for index in answers.indices {
      if let last = questions.last, answers[last.lowerBound].question == answers[index].question {
        questions[questions.count - 1] = last.lowerBound..<index + 1
      } else {
        questions.append(index..<index + 1)
      }
    }
    let asksForWord = questions.allSatisfy { $0.count == 1 }
    /// Of every question, whether the likeliest answer is right.
    func right(_ scores: [AnswerScore], by value: (Int) -> Double) -> [Bool] {
      questions.map { range in
        if range.count == 1 { return scores[range.lowerBound].isGreedy }
        // The first of those that are alike, as elsewhere.
        let best = range.max { (value($0), $1) < (value($1), $0) }
        return best.map { answers[$0].right } ?? false
      }
    }
    func share(_ isRight: [Bool]) -> Double {
      Double(isRight.count(where: \.self)) / Double(max(isRight.count, 1))
    }
    func score(_ scores: [AnswerScore], _ isRight: [Bool]) -> Score {
      let normalized = right(scores) { scores[$0].logLikelihood / Double(max(answers[$0].characters, 1)) }
      let mean = scores.reduce(0) { $0 + $1.logLikelihood } / Double(max(scores.count, 1))
      return Score(
        accuracy: share(isRight), questions: questions.count,
        normalizedAccuracy: asksForWord ? nil : share(normalized), perplexity: asksForWord ? exp(-mean) : nil)
    }
    let isRight = scores.map { scores in right(scores) { scores[$0].logLikelihood } }
    let pairs = isRight.count > 1 ? Array(zip(isRight[0], isRight[1])) : nil
    self.init(
      questions: questions.count, asksForWord: asksForWord, model: score(scores[0], isRight[0]),
      reference: scores.count > 1 ? score(scores[1], isRight[1]) : nil,
      lost: pairs?.count { !$0 && $1 }, gained: pairs?.count { $0 && !$1 }, seconds: seconds)
  }
}
