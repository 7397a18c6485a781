import ActivationCache
import Calibration
import Checkpoint
import Compute
import Decoder
import Export
import Tensors

/// Evaluates a model out of core: one layer is resident, the hidden states of all windows are in the cache.
public struct OutOfCoreEvaluation {
  private let model: DecoderModel
  private let reference: DecoderModel?
  private let backend: any ComputeBackend
  private let store: HiddenStatesStore
  private let holdsStates: Bool

  /// Tokens that are computed at a time, as far as whole windows allow.
  private static let batchTokens = 4_096
  /// Tokens whose logits are in memory at a time.
  private static let logitTokens = 256

  /// - Parameters:
  ///   - reference: a model with the same vocabulary whose predictions are compared with
  ///   - holdsStates: whether hidden states stay in memory, where there is room for those of all windows
  public init(
    model: DecoderModel, reference: DecoderModel? = nil, backend: any ComputeBackend,
    store: HiddenStatesStore, holdsStates: Bool = false
  ) throws(EvaluationError) {
    if let reference, reference.description.vocabularySize != model.description.vocabularySize {
      throw .otherVocabulary(
        tokens: model.description.vocabularySize, referenceTokens: reference.description.vocabularySize)
    }
    self.model = model
    self.reference = reference
    self.backend = backend
    self.store = store
    self.holdsStates = holdsStates
  }

  /// What the model says to every token but each window's first.
  /// - Parameters:
  ///   - windows: each of the model's sequence length
  ///   - progress: layers done, of how many
  public func perplexity(
    of windows: [[Int32]], progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
  ) throws -> Perplexity {
    let start = ContinuousClock.now
    let length = model.sequenceLength
    var losses = TokenLosses()
    try run(windows, progress: progress) { index, logits in
      for first in stride(from: 0, to: length - 1, by: Self.logitTokens) {
        let last = min(first + Self.logitTokens, length - 1)
        losses.add(
          try logits(first..<last), targets: Array(windows[index][first + 1...last]), backend: backend)
      }
    }
    return Perplexity(
      perplexity: losses.perplexity, tokens: windows.count * length, windows: windows.count,
      seconds: seconds(since: start), against: losses.divergence)
  }

  /// How the model answers.
  /// - Parameters:
  ///   - answers: each of the model's sequence length at most
  ///   - progress: layers done, of how many
  public func figures(
    of answers: [TaskAnswer], progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
  ) throws -> TaskFigures {
    let start = ContinuousClock.now
    // What stands behind an answer has no part in what is said to it.
    let windows = answers.map {
      $0.ids + Array(repeating: $0.ids[0], count: model.sequenceLength - $0.ids.count)
    }
    var scores = Array(repeating: [AnswerScore](), count: reference == nil ? 1 : 2)
    try run(windows, progress: progress) { index, logits in
      let answer = answers[index]
      var parts = Array(repeating: AnswerScore(), count: scores.count)
      for first in stride(from: answer.context - 1, to: answer.ids.count - 1, by: Self.logitTokens) {
        let last = min(first + Self.logitTokens, answer.ids.count - 1)
        let targets = Array(answer.ids[first + 1...last])
        for (stream, rows) in try logits(first..<last).enumerated() {
          parts[stream].add(rows, targets: targets, backend: backend)
        }
      }
      for stream in scores.indices { scores[stream].append(parts[stream]) }
    }
    return TaskFigures(answers, scores, seconds: seconds(since: start))
  }

  /// Takes all windows through all layers, and then one by one to the heads.
  /// - Parameter visit: gets a window's number, and what gives the logits of a range of its tokens, by each of the models
  private func run(
    _ windows: [[Int32]], progress: (_ done: Int, _ total: Int) -> Void,
    visit: (_ window: Int, _ logits: (Range<Int>) throws -> [Matrix]) throws -> Void
  ) throws {
    let perBatch = max(1, Self.batchTokens / model.sequenceLength)
    let batches = stride(from: 0, to: windows.count, by: perBatch).map {
      Array(windows[$0..<min($0 + perBatch, windows.count)])
    }
    let models = [model] + (reference.map { [$0] } ?? [])
    let total = models.reduce(0) { $0 + $1.description.layerCount }
    var done = 0
    for (stream, model) in models.enumerated() {
      try runThroughLayers(model, stream, batches) {
        done += 1
        progress(done, total)
      }
    }
    let heads = try models.map { try $0.head() }
    let length = model.sequenceLength
    let buffers = models.map {
      backend.makeMatrix(
        rows: (batches.map(\.count).max() ?? 0) * length, columns: $0.description.hiddenSize)
    }
    for (number, batch) in batches.enumerated() {
      for (stream, model) in models.enumerated() {
        try read(
          key(stream, model.description.layerCount, number),
          into: buffers[stream].prefix(batch.count * length))
      }
      for row in batch.indices {
        try visit(number * perBatch + row) { tokens in
          let rows = row * length + tokens.lowerBound..<row * length + tokens.upperBound
          return zip(heads, buffers).map { $0.logits($1.rows(rows)) }
        }
      }
    }
    try backend.checkDevice()
  }

  private func key(_ stream: Int, _ layer: Int, _ batch: Int) -> HiddenStatesKey {
    HiddenStatesKey(stream: stream, stage: layer, batch: batch)
  }

  /// Takes all windows to the end of a model's last layer.
  private func runThroughLayers(
    _ model: DecoderModel, _ stream: Int, _ batches: [[[Int32]]], done: () -> Void
  ) throws {
    for (index, batch) in batches.enumerated() {
      try write(try model.embed(batch.flatMap { $0 }), key(stream, 0, index))
    }
    let buffer = backend.makeMatrix(
      rows: (batches.map(\.count).max() ?? 0) * model.sequenceLength, columns: model.description.hiddenSize)
    for index in 0..<model.description.layerCount {
      let layer = try model.layer(index)
      for (number, batch) in batches.enumerated() {
        let states = buffer.prefix(batch.count * model.sequenceLength)
        try read(key(stream, index, number), into: states)
        if number + 1 < batches.count { store.prefetch(key(stream, index, number + 1)) }
        layer.run(states, sequenceLength: model.sequenceLength)
        try write(states, key(stream, index + 1, number), replacing: [key(stream, index, number)])
      }
      done()
    }
  }

  private func read(_ key: HiddenStatesKey, into states: Matrix) throws {
    try backend.withHostMatrix(states, for: .writing) { try store.read(key, into: $0) }
  }

  private func write(_ states: Matrix, _ key: HiddenStatesKey, replacing: [HiddenStatesKey] = []) throws {
    do {
      try backend.withHostMatrix(states, for: .changing) {
        if holdsStates {
          try store.hold($0, key: key, replacing: replacing)
        } else {
          try store.write($0, key: key, replacing: replacing)
        }
      }
    } catch {
      // What a device that failed leaves is no fault of the model's.
      try backend.checkDevice()
      throw error
    }
    try backend.checkDevice()
  }
}

private func seconds(since start: ContinuousClock.Instant) -> Double {
  let elapsed = (ContinuousClock.now - start).components
  return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
}
