import ActivationCache
import Checkpoint
import Compute
import Decoder
import Glibc
import Tensors

/// Perplexity of a model over windows of tokens.
public struct Perplexity: Sendable, Codable, Equatable {
  /// exp of the mean loss over each window's length − 1 predictions.
  public let perplexity: Double
  public let tokens: Int
  public let windows: Int
  public let seconds: Double
}

/// Evaluates a model out of core: one layer is resident, the hidden states of all windows are in the cache.
public struct PerplexityEvaluation {
  private let model: DecoderModel
  private let backend: any ComputeBackend
  private let store: HiddenStatesStore

  /// Tokens that are computed at a time, as far as whole windows allow.
  private static let batchTokens = 4_096
  /// Tokens whose logits are in memory at a time.
  private static let logitTokens = 256

  public init(model: DecoderModel, backend: any ComputeBackend, store: HiddenStatesStore) {
    self.model = model
    self.backend = backend
    self.store = store
  }

  /// - Parameters:
  ///   - windows: each of the model's sequence length
  ///   - progress: layers done, of how many
  public func run(
    _ windows: [[Int32]], progress: (_ done: Int, _ total: Int) -> Void = { _, _ in }
  ) throws -> Perplexity {
    let start = ContinuousClock.now
    let length = model.sequenceLength
    let perBatch = max(1, Self.batchTokens / length)
    let batches = stride(from: 0, to: windows.count, by: perBatch).map {
      Array(windows[$0..<min($0 + perBatch, windows.count)])
    }
    func key(_ layer: Int, _ batch: Int) -> HiddenStatesKey {
      HiddenStatesKey(stream: 0, stage: layer, batch: batch)
    }
    for (index, batch) in batches.enumerated() {
      try write(try model.embed(batch.flatMap { $0 }), key(0, index))
    }
    let buffer = backend.makeMatrix(
      rows: min(perBatch, windows.count) * length, columns: model.description.hiddenSize)
    let layers = model.description.layerCount
    for index in 0..<layers {
      let layer = try model.layer(index)
      for (number, batch) in batches.enumerated() {
        let states = buffer.prefix(batch.count * length)
        try read(key(index, number), into: states)
        if number + 1 < batches.count { store.prefetch(key(index, number + 1)) }
        layer.run(states, sequenceLength: length)
        try write(states, key(index + 1, number), replacing: [key(index, number)])
      }
      progress(index + 1, layers)
    }

    let head = try model.head()
    var loss = 0.0
    for (number, batch) in batches.enumerated() {
      let states = buffer.prefix(batch.count * length)
      try read(key(layers, number), into: states)
      for (row, window) in batch.enumerated() {
        loss += self.loss(of: window, states: states.rows(row * length..<(row + 1) * length), head: head)
      }
    }
    try backend.checkDevice()
    return Perplexity(
      perplexity: exp(loss / Double(windows.count * (length - 1))),
      tokens: windows.count * length, windows: windows.count,
      seconds: seconds(since: start))
  }

  private func read(_ key: HiddenStatesKey, into states: Matrix) throws {
    try backend.withHostMatrix(states, for: .writing) { try store.read(key, into: $0) }
  }

  private func write(_ states: Matrix, _ key: HiddenStatesKey, replacing: [HiddenStatesKey] = []) throws {
    do {
      try backend.withHostMatrix(states, for: .changing) {
        try store.write($0, key: key, replacing: replacing)
      }
    } catch {
      // What a device that failed leaves is no fault of the model's.
      try backend.checkDevice()
      throw error
    }
    try backend.checkDevice()
  }

  /// The summed loss of a window's predictions.
  private func loss(of window: [Int32], states: Matrix, head: DecoderHead) -> Double {
    let predictions = window.count - 1
    return stride(from: 0, to: predictions, by: Self.logitTokens).reduce(0.0) { sum, start in
      let end = min(start + Self.logitTokens, predictions)
      let logits = head.logits(states.rows(start..<end))
      let losses = backend.negativeLogLikelihoods(
        logits: logits, targets: Array(window[start + 1...end]))
      return losses.reduce(sum) { $0 + Double($1) }
    }
  }
}

private func seconds(since start: ContinuousClock.Instant) -> Double {
  let elapsed = (ContinuousClock.now - start).components
  return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
}
