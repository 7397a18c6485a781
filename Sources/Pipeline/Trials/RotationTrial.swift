import Calibration
import Checkpoint
import Compute
import Decoder
import Export
import Solvers
import Tensors

/// Finds out whether a rotation helps a model under the settings of a run: a few of its layers are quantized without it and
/// with it, all others stay as they are, and what both predict of sequences that they were not solved for is compared with
/// what the model does.
///
/// Layers' own errors do not tell: they are larger behind a rotation where the model is better.
struct RotationTrial {
  private let run: QuantizationRun
  private let backend: any ComputeBackend
  private let advanced: () -> Void

  /// Layers that are quantized, evenly spaced.
  private static let layers = 4
  /// Tokens that they are solved for, at most; as a share of all, where there are few; and the tokens that are looked at, as a
  /// share of those. Of a quarter of them the trial of SmolLM2 at 2 bits came to the wrong answer. Where so many would overlap,
  /// there are fewer of both.
  private static let (tokens, share, heldOutShare) = (4_096, 4, 2)
  /// A rotation that helps less is none: it costs a head of its own where there was none, and a trial errs.
  private static let leastGain = 0.05
  /// The part of the result that a head of its own may be.
  private static let largestHead = 0.1

  /// Why none is made, memory aside; nil if one is.
  /// - Parameter samples: sequences that do not overlap
  static func obstacle(
    of model: ModelDescription, _ treatments: [String: Treatment], in checkpoint: CheckpointReader,
    samples: Int
  ) -> String? {
    if let obstacle = RotatedWeights.obstacle(model, checkpoint) { return obstacle }
    if let note = headNote(of: model, treatments) { return note }
    return samples < 2 ? "a trial takes two sequences that do not overlap" : nil
  }

  /// Why a head of its own would cost too much; nil where the model has one, or it is a small part of the result.
  private static func headNote(of model: ModelDescription, _ treatments: [String: Treatment]) -> String? {
    guard model.hasTiedHead else { return nil }
    let bytes = model.vocabularySize * model.hiddenSize * 2
    let linears = model.exported(by: treatments).reduce(0) { sum, linear in
      sum + linear.outFeatures * linear.inFeatures * (linear.gridFormat?.bitWidth.rawValue ?? 16) / 8
    }
    let growth = Double(bytes) / Double(bytes + linears)
    guard growth > largestHead else { return nil }
    let percent = Int((growth * 100).rounded())
    return "its head is that of the embeddings, and one of its own would make the result \(percent) % larger"
  }

  /// - Throws: what a run throws that begins with these settings
  static func decision(
    _ request: QuantizationRequest, _ backend: any ComputeBackend, _ progress: (ProgressEvent) -> Void
  ) throws -> Report.Rotation {
    func run(_ rotation: QuantizationSettings.Rotation) throws -> QuantizationRun {
      var trial = request
      (trial.rotation, trial.averageBits, trial.resume, trial.importanceMatrix) = (rotation, nil, nil, nil)
      return try QuantizationRun(trial, backend: backend)
    }
    func off(_ note: String) -> Report.Rotation { Report.Rotation(chosen: "off", note: note) }
    let start = ContinuousClock.now
    let (checkpoint, model) = try QuantizationRun.open(
      request.model, symlinks: request.symlinks, allowingRequantizing: request.allowsRequantizing,
      rotation: .off)
    let linears = try request.recipe.resolve(for: model, in: checkpoint).linears
    if let obstacle = obstacle(of: model, linears, in: checkpoint, samples: request.calibration.distinct) {
      return off(obstacle)
    }
    let plain = try run(.off)
    let needed = plain.trialBytes
    let budget = backend.deviceMemory?.limitBytes ?? request.memoryBudgetBytes
    if needed > budget { return off("a trial takes \(needed.memorySize) of memory") }
    let rotated: QuantizationRun
    do { rotated = try run(.residual) } catch let error as PipelineError where error.isLackOfMemory {
      return off("\(error)")
    }
    progress(.step("trying whether a rotation helps"))
    return try withoutActuallyEscaping(progress) { progress in
      func divergence(_ run: QuantizationRun) throws -> Double {
        try backend.tellingDeviceFaults {
          try RotationTrial(run: run, backend: backend, advanced: { progress(.advanced) }).divergence()
        }
      }
      let (without, with) = (try divergence(plain), try divergence(rotated))
      guard without.isFinite && with.isFinite else { return off("the trial came to no number") }
      let helps = with < (1 - leastGain) * without
      return Report.Rotation(
        chosen: helps ? "residual" : "off", divergence: without, rotatedDivergence: with,
        seconds: (ContinuousClock.now - start).seconds)
    }
  }

  /// What it takes beside a run.
  struct Sizes {
    /// The sequences that layers are solved for, and those that are looked at.
    let (solved, heldOut): (Int, Int)
    /// The layers that are quantized.
    let layers: Int

    /// - Parameters:
    ///   - samples: the run's sequences
    ///   - distinct: those of them that do not overlap, at least 2, of which both are taken; nil if all are such
    init(samples: Int, distinct: Int? = nil, sequenceLength: Int, layerCount: Int) {
      let share = RotationTrial.heldOutShare
      let possible = (distinct ?? samples) * share / (share + 1)
      solved = max(1, min(samples / RotationTrial.share, RotationTrial.tokens / sequenceLength, possible))
      heldOut = max(1, solved / share)
      layers = min(RotationTrial.layers, layerCount)
    }

    /// The sequences that go through the layers: what is looked at does with the quantized ones and without.
    var sequences: Int { solved + 2 * heldOut }

    /// What it takes at its peak, in a layer or at the head.
    /// - Parameter plan: of the run without a rotation
    func bytes(
      of model: ModelDescription, sequenceLength: Int, operands: OperandType, plan: MemoryPlan
    ) -> Int {
      let tokens = sequences * sequenceLength
      let states = tokens * model.widestStates * 4
      let head = model.vocabularySize * (model.hiddenSize + 3 * DecoderHead.trialTokens) * 4
      // The queries' weights of latents, twice; or all experts of a layer, what they read, and what they make of it.
      let stages = (0..<model.layerCount).flatMap { model.stages(ofLayer: $0) }
      let together = stages.map { ($0.experts.isEmpty ? $0.companions : $0.linears).weightCount }.max() ?? 0
      let mixture = model.hasMixtures ? 5 * tokens * model.hiddenSize * 4 : 0
      return states + mixture + together * (operands == .bfloat16 ? 2 : 4)
        + max(plan.devicePeakBytes ?? plan.peakBytes, head)
    }
  }

  /// The mean divergence of the model with its quantized layers from the one without any.
  private func divergence() throws -> Double {
    let calibration = run.request.calibration
    let length = calibration.sequenceLength
    let sizes = run.trialSizes
    let model = try run.model(sequenceLength: length)
    let chosen = chosenLayers
    // What layers are solved for, and what is looked at, without quantized layers and with them.
    var gathered = try TrialStates(model, calibration.tokens(of: 0..<sizes.solved), of: run)
    let samples = calibration.distinct - sizes.heldOut..<calibration.distinct
    var reference = try TrialStates(model, calibration.tokens(of: samples), of: run)
    var quantized = reference.copy
    for index in 0..<run.description.layerCount {
      let isChosen = chosen.contains(index)
      let layer = try model.unloadedLayer(index)
      // One of its own takes what is quantized: queries of latents are made again in a later stage.
      let own = isChosen ? try model.unloadedLayer(index) : layer
      for (stage, ownStage) in zip(layer.stages, own.stages) {
        advanced()
        try layer.load(stage)
        let gram =
          isChosen ? GramMatrix(inFeatures: stage.inFeatures, operands: run.operands, backend: backend) : nil
        let tokens = gram == nil || stage.experts.isEmpty ? nil : gathered.mixtureTokens(of: stage, in: layer)
        if index <= chosen.last ?? 0 { gathered.advance(through: stage, of: layer, summing: gram) }
        reference.advance(through: stage, of: layer)
        if let gram {
          layer.leave(stage)
          if let tokens {
            try quantize(ownStage, own, tokens, gram)
          } else {
            try quantize(ownStage, own, gram.values)
          }
          try own.load(ownStage)
        }
        quantized.advance(through: ownStage, of: own)
        own.leave(ownStage)
        try backend.checkDevice()
      }
    }
    let head = try model.head()
    let divergence = head.meanDivergences(of: [(head, quantized.residual)], from: reference.residual, backend)
    try backend.checkDevice()
    return divergence[0]
  }

  private var chosenLayers: [Int] {
    let (count, wanted) = (run.description.layerCount, run.trialSizes.layers)
    return (0..<wanted).map { (2 * $0 + 1) * count / (2 * wanted) }
  }

  /// - Parameter gram: Σ, which has no other use from now on
  private func quantize(_ stage: Stage, _ layer: DecoderLayer, _ gram: Matrix) throws {
    let problem = try backend.problem(gram, of: stage.title, layer: layer.index)
    let begun = try stage.linears.compactMap { linear -> QuantizationRun.BegunLinear? in
      let name = layer.moduleName(of: linear)
      guard let treatment = run.treatments[name] else { return nil }
      return try run.begin(name, linear, run.rows(of: linear, in: layer), treatment, problem)
    }
    for linear in begun {
      let quantized = try run.finish(linear, layer: layer.index).linear
      layer.replaceWeights(of: linear.description, by: quantized, backend: backend)
    }
  }

  /// Quantizes a mixture's experts as a run would, one after the other, and leaves all of them loaded.
  private func quantize(
    _ stage: Stage, _ layer: DecoderLayer, _ tokens: MixtureTokens, _ shared: GramMatrix
  ) throws {
    let grams = ExpertGrams(
      layer: layer, tokens: tokens, shared: shared, settings: run.request.experts, operands: run.operands,
      backend: backend)
    for (index, expert) in stage.experts.enumerated() {
      advanced()
      try quantize(expert.expansion, layer, grams.expansion(of: expert, index))
      try layer.load(expert.expansion)
      try quantize(expert.contraction, layer, grams.contraction(of: expert, index))
      try layer.load(expert.contraction)
    }
  }
}

extension QuantizationRun {
  fileprivate var trialSizes: RotationTrial.Sizes {
    RotationTrial.Sizes(
      samples: request.calibration.samples, distinct: request.calibration.distinct,
      sequenceLength: request.calibration.sequenceLength, layerCount: description.layerCount)
  }

  /// What a trial takes at its peak, of the memory that matrices are in.
  fileprivate var trialBytes: Int {
    trialSizes.bytes(
      of: description, sequenceLength: request.calibration.sequenceLength, operands: operands, plan: plan)
  }
}
