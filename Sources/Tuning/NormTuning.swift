import Checkpoint
import Compute
import Decoder
import Foundation
import Tensors

/// Brings the predictions of a quantized model closer to the original's by the weights of its norms.
///
/// These are stored in full, and every output of a layer's first linears, and of the head, scales with one of them: a few
/// thousand numbers a layer that calibration text cannot be learnt by heart with. They follow the gradient of the
/// Kullback-Leibler divergence of the two models' predictions (norm tweaking, arXiv 2309.02784, with the loss of distillation
/// at the model's end in place of one at every layer's).
///
/// A layer's weights are resident while it runs, or all are; the states at every layer's beginning of one batch are in memory.
public struct NormTuning {
  /// How the weights follow the gradient: Adam, on w ← w (1 + δ).
  public struct Schedule: Sendable, Equatable {
    /// Steps, of a batch each.
    public var steps = 16
    /// Tokens of a batch, as far as whole sequences allow.
    public var batchTokens = 1_024
    /// What a weight moves by at most in the first step, as a share of itself; it falls to nothing by half a cosine. nil goes by
    /// how far the models are apart: steps of Adam are as long where little is to be gained.
    public var rate: Double?
    /// Tokens that decide whether the weights are kept.
    public var judgedTokens = 2_048

    public init() {}

    func rate(divergence: Double) -> Double { rate ?? min(0.01 * divergence.squareRoot(), 0.006) }

    public func sequences(length: Int) -> Int { max(1, batchTokens / length) }

    /// Sequences that there is use for, to learn of and to judge by.
    public func wanted(length: Int) -> (learnt: Int, judged: Int) {
      (steps * sequences(length: length), max(1, judgedTokens / length))
    }

    /// The same of so many that there are, at most.
    public func used(of samples: Int, length: Int) -> (learnt: Int, judged: Int) {
      let wanted = wanted(length: length)
      return (min(wanted.learnt, samples), min(wanted.judged, samples))
    }

    /// Divides what there is.
    /// - Parameters:
    ///   - solved: sequences that layers were solved for, without those that overlap others: they would be learnt of and judge
    ///   - spare: others of their kind
    public func text(solved: [[Int32]], spare: [[Int32]], length: Int) -> Text {
      let wanted = wanted(length: length)
      let isJudgeSolved = spare.count <= wanted.judged
      let learnt = (isJudgeSolved ? spare : spare.dropLast(wanted.judged)) + solved
      let judged = isJudgeSolved ? spare + solved : spare
      return Text(
        learnt: Array(learnt.prefix(wanted.learnt)), judged: Array(judged.suffix(wanted.judged)),
        isJudgeSolved: isJudgeSolved)
    }
  }

  /// What is learnt of, each sequence several times where there are few, and what judges.
  public struct Text: Sendable, Equatable {
    public let learnt: [[Int32]]
    public let judged: [[Int32]]
    /// Whether layers were solved for what judges. The model is closer to the original there than elsewhere, and what brings it
    /// closer on other text can take it away there: it tells no more than that no step went astray.
    public let isJudgeSolved: Bool

    public init(learnt: [[Int32]], judged: [[Int32]], isJudgeSolved: Bool) {
      precondition(!learnt.isEmpty && !judged.isEmpty, "a sequence to learn of and another to judge by")
      (self.learnt, self.judged, self.isJudgeSolved) = (learnt, judged, isJudgeSolved)
    }

    /// The divergence that weights are kept up to, of so much without them.
    func limit(_ before: Double) -> Double { (isJudgeSolved ? 1.1 : 1) * before }
  }

  public struct Outcome: Sendable, Equatable {
    /// Mean divergence in nats a token of what judged, with the weights as they were and as they came to be.
    public let before: Double
    public let after: Double
    /// The weights as they are to be stored, by tensor; none where they came to nothing better.
    public let weights: [String: [Float]]
  }

  private let original: DecoderModel
  private let model: DecoderModel
  private let norms: TunedNorms
  private let tape: GradientTape
  private let backend: any ComputeBackend
  private let schedule: Schedule
  private let keepsLayers: Bool
  private var layers: [DecoderLayer?]
  private var ownHead: DecoderHead?

  /// Rows whose logits are in memory at a time.
  private static let logitRows = 256

  /// - Parameters:
  ///   - model: the quantized one; see ``ModelDescription/hasGradients``
  ///   - original: with the same vocabulary
  ///   - keepsLayers: whether there is memory for all of the quantized model's layers, ``bytes(of:samples:sequenceLength:schedule:keepingLayers:)``
  public init(
    model: (description: ModelDescription, source: any WeightSource),
    original: (description: ModelDescription, source: any WeightSource), sequenceLength: Int,
    operands: OperandType, backend: any ComputeBackend, schedule: Schedule = Schedule(), keepsLayers: Bool
  ) throws {
    precondition(model.description.hasGradients, "no gradient of the model can be computed")
    norms = TunedNorms(model.source)
    tape = GradientTape(backend)
    self.backend = backend
    self.schedule = schedule
    self.keepsLayers = keepsLayers
    self.model = try DecoderModel(
      model.description, source: norms, backend: tape, sequenceLength: sequenceLength, operands: operands)
    self.original = try DecoderModel(
      original.description, source: original.source, backend: backend, sequenceLength: sequenceLength,
      operands: operands)
    layers = Array(repeating: nil, count: model.description.layerCount)
  }

  /// What tuning takes of the memory, in bytes.
  /// - Parameter samples: sequences that there are
  public static func bytes(
    of model: ModelDescription, samples: Int, sequenceLength length: Int, schedule: Schedule = Schedule(),
    keepingLayers: Bool
  ) -> Int {
    let layers = (0..<model.layerCount).map { model.linears(ofLayer: $0).weightCount }
    // In fp32, and as the backend multiplies by them; and the original's.
    let weights = 8 * (keepingLayers ? layers.reduce(0, +) : layers.max() ?? 0) + 4 * (layers.max() ?? 0)
    let used = schedule.used(of: samples, length: length)
    let tokens = schedule.sequences(length: length) * length
    let states = (used.learnt + 2 * used.judged) * length + (model.layerCount + 3) * tokens
    let widest = model.linears(ofLayer: 0).reduce(0) { $0 + $1.outFeatures + $1.inFeatures }
    let heads = 2 * model.vocabularySize * model.head.width + 5 * logitRows * model.vocabularySize
    return weights + 4 * (states * model.hiddenSize + 3 * tokens * widest + 2 * length * length + heads)
  }

  /// Why a model's norms cannot be tuned; nil if they can.
  public static func obstacle(of model: ModelDescription, on backend: any ComputeBackend) -> String? {
    if !(backend is any HostMemoryBackend) { return "a device computes no gradients here" }
    return model.hasGradients ? nil : "gradients of \(model.modelType)'s layers are not known"
  }

  /// Learns, and judges what was learnt.
  /// - Parameters:
  ///   - text: sequences of the model's length
  ///   - stored: the type that a tensor's values are stored in
  ///   - progress: steps done, of how many
  public mutating func run(
    on text: Text, storedAs stored: (_ tensor: String) -> DType,
    progress: (_ done: Int, _ total: Int) throws -> Void = { _, _ in }
  ) throws -> Outcome {
    let size = schedule.sequences(length: model.sequenceLength)
    let batches = text.learnt.indices.parts(of: size).map { text.learnt[$0].flatMap { $0 } }
    let targets = try lastStates(of: batches + text.judged)
    let head = try original.head()
    let before = try divergence(text.judged, Array(targets[batches.count...]), head)
    var adam = Adam(rate: schedule.rate(divergence: before), steps: schedule.steps)
    var weights: [NormalizationParameters.Origin: [Float]] = [:]
    var generator = SplitMix64(seed: 1)
    var order: [Int] = []
    for step in 0..<schedule.steps {
      try progress(step, schedule.steps)
      if order.isEmpty { order = batches.indices.shuffled(using: &generator) }
      let batch = order.removeLast()
      tape.removeWeightGradients()
      try learn(batches[batch], targets[batch], head)
      for (origin, gradient) in tape.weightGradients where weights[origin] == nil {
        weights[origin] = try norms.vector(origin.tensor, count: gradient.count).map { $0 + origin.offset }
      }
      adam.step(tape.weightGradients, weights)
      norms.stored = adam.stored(weights)
    }
    for (tensor, values) in norms.stored {
      norms.stored[tensor] = values.map { $0.rounded(to: stored(tensor)) }
    }
    let after = try divergence(text.judged, Array(targets[batches.count...]), head)
    return Outcome(before: before, after: after, weights: after < text.limit(before) ? norms.stored : [:])
  }

  // MARK: The models

  /// The original's last hidden states of every batch, a layer at a time.
  private func lastStates(of batches: [[Int32]]) throws -> [Matrix] {
    let states = try batches.map { backend.copy(of: try original.embed($0)) }
    for index in 0..<original.description.layerCount {
      let layer = try original.layer(index)
      for batch in states { layer.run(batch, sequenceLength: original.sequenceLength) }
      layer.forget()
    }
    return states
  }

  /// A layer of the quantized model, its norms as they are now.
  private mutating func layer(_ index: Int) throws -> DecoderLayer {
    guard let known = layers[index] else {
      if !keepsLayers { tape.removeWeights() }
      let layer = try model.layer(index)
      if keepsLayers { layers[index] = layer }
      return layer
    }
    let layer = try model.unloadedLayer(index)
    layer.adoptWeights(of: known)
    layers[index] = layer
    return layer
  }

  /// The quantized model's head, its norm as it is now.
  private mutating func head() throws -> DecoderHead {
    let head = try ownHead?.replacingInput(by: model.headInput()) ?? model.head()
    ownHead = head
    return head
  }

  /// Mean divergence of what the quantized model predicts.
  private mutating func divergence(
    _ batches: [[Int32]], _ targets: [Matrix], _ originalHead: DecoderHead
  ) throws -> Double {
    let states = try batches.map { backend.copy(of: try model.embed($0)) }
    for index in layers.indices {
      let layer = try layer(index)
      for batch in states { layer.run(batch, sequenceLength: model.sequenceLength) }
    }
    let head = try head()
    var (sum, count) = (0.0, 0)
    for (own, target) in zip(states, targets) {
      for rows in (0..<own.rows).parts(of: Self.logitRows) {
        let logits = head.logits(own.rows(rows))
        for prediction in backend.divergences(of: logits, from: originalHead.logits(target.rows(rows))) {
          sum += Double(prediction.divergence)
          count += 1
        }
      }
    }
    return sum / Double(count)
  }

  /// Adds the gradients of a batch's mean divergence to the tape's.
  private mutating func learn(_ tokens: [Int32], _ target: Matrix, _ originalHead: DecoderHead) throws {
    let length = model.sequenceLength
    let states = backend.copy(of: try model.embed(tokens))
    var beginnings: [Matrix] = []
    for index in layers.indices {
      beginnings.append(backend.copy(of: states))
      try layer(index).run(states, sequenceLength: length)
    }
    tape.isRecording = true
    defer { tape.isRecording = false }
    let head = try head()
    var gradient = backend.makeMatrix(rows: states.rows, columns: states.columns)
    for rows in (0..<states.rows).parts(of: Self.logitRows) {
      let part = states.rows(rows)
      let logits = head.logits(part)
      tape.setGradient(
        of: logits,
        to: logits.divergenceGradient(
          from: originalHead.logits(target.rows(rows)), of: states.rows,
          by: ThreadTeam(threads: backend.threads)))
      tape.runBackward()
      backend.copy(tape.takeGradient(of: part), into: gradient.rows(rows))
      tape.removeGradients()
    }
    for index in layers.indices.reversed() {
      let beginning = beginnings.removeLast()
      try layer(index).run(beginning, sequenceLength: length)
      tape.setGradient(of: beginning, to: gradient)
      tape.runBackward()
      gradient = tape.takeGradient(of: beginning)
      tape.removeGradients()
    }
  }
}

/// Adam on w (1 + δ), whose rate falls to nothing by half a cosine.
private struct Adam {
  let rate: Double
  let steps: Int
  private var step = 0
  private var moments: [NormalizationParameters.Origin: [(delta: Double, mean: Double, square: Double)]] = [:]

  init(rate: Double, steps: Int) {
    self.rate = rate
    self.steps = steps
  }

  /// - Parameters:
  ///   - gradients: of the weights
  ///   - weights: as they were to begin with
  mutating func step(
    _ gradients: [NormalizationParameters.Origin: [Double]],
    _ weights: [NormalizationParameters.Origin: [Float]]
  ) {
    step += 1
    let rate = rate * (1 + cos(Double.pi * Double(step - 1) / Double(steps))) / 2
    let (meanDecay, squareDecay) = (0.9, 0.99)
    let meanShare = 1 - pow(meanDecay, Double(step))
    let squareShare = 1 - pow(squareDecay, Double(step))
    for (origin, gradient) in gradients {
      guard let start = weights[origin] else { continue }
      var own = moments[origin] ?? Array(repeating: (0, 0, 0), count: gradient.count)
      for index in own.indices {
        let slope = gradient[index] * Double(start[index])
        own[index].mean = meanDecay * own[index].mean + (1 - meanDecay) * slope
        own[index].square = squareDecay * own[index].square + (1 - squareDecay) * slope * slope
        own[index].delta -=
          rate * own[index].mean / meanShare / ((own[index].square / squareShare).squareRoot() + 1e-12)
      }
      moments[origin] = own
    }
  }

  func stored(_ weights: [NormalizationParameters.Origin: [Float]]) -> [String: [Float]] {
    var result: [String: [Float]] = [:]
    for (origin, own) in moments {
      guard let start = weights[origin] else { continue }
      result[origin.tensor] = zip(start, own).map { weight, moment in
        Float(Double(weight) * (1 + moment.delta)) - origin.offset
      }
    }
    return result
  }
}

extension Matrix {
  /// The gradient of Σ KL(p ‖ q) / tokens for the logits of q, which these are.
  /// - Parameter other: logits of p
  fileprivate func divergenceGradient(
    from other: Matrix, of tokens: Int, by team: ThreadTeam
  ) -> Matrix {
    let result = Matrix(rows: rows, columns: columns)
    team.run(chunks: rows) { row in
      let first = row * columns
      let (own, target) = unsafe (pointer + first, other.pointer + first)
      let gradient = unsafe result.pointer + first
      func softmaxTerms(_ logits: UnsafeMutablePointer<Float>) -> (largest: Float, factor: Float) {
        var largest = -Float.infinity
        for index in 0..<columns { largest = unsafe max(largest, logits[index]) }
        var sum: Float = 0
        for index in 0..<columns { sum += unsafe exp(logits[index] - largest) }
        return (largest, 1 / (sum * Float(tokens)))
      }
      let (p, q) = unsafe (softmaxTerms(target), softmaxTerms(own))
      for index in 0..<columns {
        unsafe gradient[index] =
          q.factor * exp(own[index] - q.largest) - p.factor * exp(target[index] - p.largest)
      }
    }
    return result
  }
}
