import Compute
import Decoder

/// What a run will hold in memory at its peak, mapped files aside, worked out from config.json before any work.
public struct MemoryPlan: Sendable, Equatable {
  /// What is done with a stage of a layer; each holds other things.
  public enum Phase: String, Sendable, Codable, CaseIterable {
    /// The stage before runs on every batch, and Σ is summed up.
    case gathering
    /// The stage's linears are quantized.
    case solving
  }

  /// Sequences that the forward pass computes at a time.
  public let batchSamples: Int
  /// Rows of a linear that the solver works on at a time, and that it decides on together when to stop.
  public let panelRows: Int
  /// The peak of every phase in the host's memory, over all stages.
  public let bytesPerPhase: [Phase: Int]
  /// The same in a device's; nil where matrices are in the host's.
  public let deviceBytesPerPhase: [Phase: Int]?
  /// Where the states of all tokens stand between two stages: in memory where there is room for them beside all else, since
  /// to encode them for the cache and to decode them takes longer than all else that is done with them but products.
  public let states: StatesPlace

  public var peakBytes: Int { bytesPerPhase.values.max() ?? 0 }
  public var devicePeakBytes: Int? { deviceBytesPerPhase?.values.max() }

  /// Tokens of a batch on a device when memory is no matter: enough for matrix products to run at full speed.
  static let preferredBatchTokensOnDevice = 4_096
  /// On the processor always the same, as the rows of a panel stop together: bits must not follow from memory. Larger
  /// panels were no faster.
  public static let panelRows = 512
  /// Rows are what a device works on at once.
  static let preferredPanelRowsOnDevice = 16_384
  private static let leastLargePanelRows = 1_024
  private static let leastPanelRowsOnDevice = 64

  /// What there is.
  public struct Budget: Sendable, Equatable {
    public var hostBytes: Int
    /// Of the device that matrices are in; nil where that is the host.
    public var deviceBytes: Int?

    public init(hostBytes: Int, deviceBytes: Int? = nil) {
      self.hostBytes = hostBytes
      self.deviceBytes = deviceBytes
    }

    public init(hostBytes: Int, of backend: any ComputeBackend) {
      self.init(hostBytes: hostBytes, deviceBytes: backend.deviceMemory?.limitBytes)
    }
  }

  /// What there is to do.
  public struct Work: Sendable {
    public var model: ModelDescription
    public var samples: Int
    public var sequenceLength: Int
    /// The first of the samples, which run through the original model, too; 0 with ``Target/layer``, and where there is
    /// nothing to correct.
    public var originalSamples: Int
    /// What weights and inputs are rounded to in the forward pass.
    public var operands: OperandType
    /// Whether some linear keeps outliers, which takes a second solution beside the first.
    public var keepsOutliers: Bool
    /// Bytes of a value between two stages.
    public var stateBytes: Int
    public var states: StatesChoice
    /// Whether weights are rotated as they are read.
    public var isRotated: Bool
    /// Whether the head is quantized for what it reads.
    public var solvesHead: Bool
    /// Tokens of a batch, as far as they are whole sequences. On the processor a constant: sums over tokens, and even
    /// products of single tokens, depend on it in their last digits, and bits must not follow from memory. Larger batches
    /// were no faster there.
    static let batchTokens = 1_024
    var batchTokens = Work.batchTokens

    /// Sequences of a batch on the processor.
    var batchSamples: Int { batch(of: batchTokens) }

    fileprivate func batch(of tokens: Int) -> Int { max(1, min(samples, tokens / sequenceLength)) }

    public init(
      model: ModelDescription, samples: Int, sequenceLength: Int, originalSamples: Int,
      operands: OperandType = .float32, keepsOutliers: Bool = false, stateBytes: Int = 2,
      states: StatesChoice = .auto, isRotated: Bool = false, solvesHead: Bool = false
    ) {
      self.isRotated = isRotated
      self.solvesHead = solvesHead
      self.stateBytes = stateBytes
      self.states = states
      self.model = model
      self.samples = samples
      self.sequenceLength = sequenceLength
      self.originalSamples = model.hasPlainOutputs ? originalSamples : 0
      self.operands = operands
      self.keepsOutliers = keepsOutliers
    }
  }

  /// On the processor sizes are the same for everybody. With a device they are the largest ones, up to the preferred, whose
  /// peaks stay within the budget: panels give way first, as they cost less.
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)`` if the smallest do not fit.
  public init(_ work: Work, budget: Budget) throws(PipelineError) {
    guard budget.deviceBytes != nil else {
      self = try MemoryPlan(
        work, batchSamples: work.batchSamples, panelRows: Self.panelRows, budget: budget)
      return
    }
    if let plan = Self.keepingStatesOnDevice(work, budget) {
      self = plan
      return
    }
    var batch = work.batch(of: Self.preferredBatchTokensOnDevice)
    var panel = Self.preferredPanelRowsOnDevice
    while true {
      let plan = MemoryPlan(work, batchSamples: batch, panelRows: panel, isOnDevice: true)
      if plan.fits(budget) {
        // The sizes do not depend on where states are, and so neither do the bits.
        self = try MemoryPlan(work, batchSamples: batch, panelRows: panel, budget: budget)
        return
      }
      let isSolverTooLarge = !plan.fits(budget, in: [.solving])
      if panel > Self.leastPanelRowsOnDevice && (isSolverTooLarge || batch == 1) {
        panel /= 2
      } else if batch > 1 {
        batch /= 2
      } else {
        throw plan.refusal(work, budget)
      }
    }
  }

  /// The plan with all states in the device's memory, if it has room for them beside panels that are still large.
  private static func keepingStatesOnDevice(_ work: Work, _ budget: Budget) -> MemoryPlan? {
    guard budget.deviceBytes != nil, work.states == .auto else { return nil }
    let batch = work.batch(of: preferredBatchTokensOnDevice)
    return sequence(first: preferredPanelRowsOnDevice) { $0 / 2 }.prefix { $0 >= leastLargePanelRows }.lazy
      .map { MemoryPlan(work, batchSamples: batch, panelRows: $0, isOnDevice: true, states: .device) }
      .first { $0.fits(budget) }
  }

  public init(_ work: Work, budgetBytes: Int) throws(PipelineError) {
    try self.init(work, budget: Budget(hostBytes: budgetBytes))
  }

  /// The plan for given sizes, such as those of a run that is gone on with, as a device's sums depend on the sizes that it
  /// began with.
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)`` if they do not fit.
  public init(
    _ work: Work, batchSamples: Int, panelRows: Int, budget: Budget
  ) throws(PipelineError) {
    let isOnDevice = budget.deviceBytes != nil
    func plan(_ states: StatesPlace) -> MemoryPlan {
      MemoryPlan(
        work, batchSamples: batchSamples, panelRows: panelRows, isOnDevice: isOnDevice, states: states)
    }
    // The rest is for the page cache, which checkpoint and result go through.
    let share = Budget(hostBytes: budget.hostBytes / 4 * 3, deviceBytes: budget.deviceBytes)
    let inMemory = (isOnDevice ? [(StatesPlace.device, budget)] : []) + [(.memory, share)]
    let fitting =
      work.states == .cache
      ? nil : inMemory.lazy.map { (plan($0), $1) }.first { $0.fits($1) }?.0
    self = fitting ?? plan(.cache)
    if !fits(budget) { throw refusal(work, budget) }
  }

  private func fits(_ budget: Budget, in phases: [Phase] = Phase.allCases) -> Bool {
    phases.allSatisfy { phase in
      bytesPerPhase[phase, default: 0] <= budget.hostBytes
        && deviceBytesPerPhase?[phase] ?? 0 <= budget.deviceBytes ?? .max
    }
  }

  /// The plan that takes as little as can be.
  public static func smallest(_ work: Work, isOnDevice: Bool = false) -> MemoryPlan {
    MemoryPlan(
      work, batchSamples: isOnDevice ? 1 : work.batchSamples,
      panelRows: isOnDevice ? leastPanelRowsOnDevice : panelRows, isOnDevice: isOnDevice)
  }

  /// The plan for given sizes, whatever memory there is.
  init(
    _ work: Work, batchSamples: Int, panelRows: Int, isOnDevice: Bool = false, states: StatesPlace = .cache
  ) {
    // Of a mixture one expert is there at a time.
    let stages = (0..<work.model.layerCount).flatMap { work.model.stages(ofLayer: $0) }.flatMap { stage in
      stage.experts.isEmpty
        ? [stage]
        : [stage.experts.first, stage.experts.last].compactMap(\.self).flatMap(\.halves)
    }
    let needs = Needs(
      work: work, batchSamples: batchSamples, panelRows: panelRows, states: states, stages: stages,
      stateColumns: work.model.stateColumns(before: stages))
    self.states = states
    self.batchSamples = batchSamples
    self.panelRows = panelRows
    bytesPerPhase =
      isOnDevice
      ? [.gathering: needs.gatheringBesideDevice, .solving: needs.solvingBesideDevice]
      : [.gathering: needs.gathering, .solving: needs.solving]
    deviceBytesPerPhase =
      isOnDevice ? [.gathering: needs.gatheringOnDevice, .solving: needs.solvingOnDevice] : nil
  }

  /// The error of a plan that does not fit, with the one change that would do.
  private func refusal(_ work: Work, _ budget: Budget) -> PipelineError {
    func smallest(_ originalSamples: Int, _ length: Int) -> MemoryPlan {
      var other = work
      (other.originalSamples, other.sequenceLength) = (originalSamples, length)
      return Self.smallest(other, isOnDevice: deviceBytesPerPhase != nil)
    }
    // The host's is told first: without it there is nothing to put into a device's.
    let isOfHost = peakBytes > budget.hostBytes
    let shorter = sequence(first: work.sequenceLength / 2) { $0 / 2 }
      .prefix { $0 >= Self.leastUsefulLength }.first { smallest(work.originalSamples, $0).fits(budget) }
    let ofLayerTarget = smallest(0, work.sequenceLength)
    let mend =
      if let shorter {
        "take --sequence-length \(shorter)"
      } else if work.originalSamples > 0 && ofLayerTarget.fits(budget) {
        "take --target layer, which needs "
          + (isOfHost ? ofLayerTarget.peakBytes : ofLayerTarget.devicePeakBytes ?? 0).memorySize
      } else if isOfHost {
        "free memory, or take a machine with more"
      } else {
        "free the GPU's memory, or take one with more, or --device cpu"
      }
    let phases = isOfHost ? bytesPerPhase : deviceBytesPerPhase ?? [:]
    let largest = phases.max { ($0.value, $0.key.rawValue) < ($1.value, $1.key.rawValue) }
    return .notEnoughMemory(
      needed: largest?.value ?? 0, available: isOfHost ? budget.hostBytes : budget.deviceBytes ?? 0,
      phase: largest?.key ?? .gathering, mend: mend)
  }

  /// Shorter sequences tell little of a model's attention.
  private static let leastUsefulLength = 256

  /// Rows of the head that are solved at a time, each time with a factor of its own: as many whole panels as make that cheap.
  static func headRows(_ model: ModelDescription, panelRows: Int) -> Int {
    let panels = max(1, (model.head.width + panelRows - 1) / panelRows)
    return min(panels * panelRows, model.vocabularySize)
  }
}

/// The bytes that the phases hold, part by part.
private struct Needs {
  let work: MemoryPlan.Work
  let batchSamples: Int
  let panelRows: Int
  let states: StatesPlace
  /// Of all layers, one after the other.
  let stages: [Stage]
  /// The values of a token that stand before each of them.
  let stateColumns: [Int]

  private static let float = 4
  /// The program itself, its tables, and the spare mappings of matrices.
  private static let base = 32_000_000
  /// Threads whose scratch memory is counted: sizes must not follow from the number of a machine's processors.
  private static let threads = 8
  /// Tokens whose inputs are packed for 16-bit products.
  private static let packedTokens = 1_024
  /// Rows that a thread transposes to round them, and the matrices that it has of them.
  private static let roundingRows = 96
  private static let roundingMatrices = 4
  /// Matrices of a panel: target, codes, gradient, errors, W Σ, and with outliers those of the other solution.
  private static let matricesOfPanel = 5
  private static let panelMatricesWithOutliers = 9

  private var model: ModelDescription { work.model }
  private var hasOriginal: Bool { work.originalSamples > 0 }
  private var streams: Int { hasOriginal ? 2 : 1 }
  /// Tokens of the original's largest batch, and of the largest of all: one ends with the original's last sample.
  private var originalTokens: Int { min(batchSamples, work.originalSamples) * work.sequenceLength }
  private var batchTokens: Int {
    max(originalTokens, min(batchSamples, work.samples - work.originalSamples) * work.sequenceLength)
  }

  var gathering: Int {
    let packedInputs = packedInputs
    return stages.indices.map { index in
      let before = stages[(index + stages.count - 1) % stages.count]
      let stage = stages[index]
      return square(stage) + streams * residentWeights(before) + packedInputs
        + (hasDrift(stage) ? drift(stage) + residentWeights(stage) : 0) + heldWhileGathering(index, .memory)
    }.max().map { $0 + standing + writtenValue } ?? 0
  }

  var solving: Int {
    zip(stages, stateColumns).map { stage, columns in
      let width = stage.inFeatures
      let panels = panelMatrices * min(panelRows, widestOutput(stage)) * width * Self.float
      let rounding = Self.threads * Self.roundingMatrices * Self.roundingRows * width * Self.float
      // What a linear is replaced by takes no more than its weights did, which go before.
      return square(stage) + drift(stage) + weights(stage) + codes(stage) + neighbours(stage)
        + max(panels, rounding) + held(columns, .memory)
    }.max().map { max($0, head + held(stateColumns[0], .memory)) + standing } ?? 0
  }

  /// The head's square, and its rows with their codes.
  private var head: Int {
    guard work.solvesHead else { return 0 }
    let width = model.head.width
    let rows = MemoryPlan.headRows(model, panelRows: panelRows)
    let panels = max(
      panelMatrices * min(panelRows, rows), Self.threads * Self.roundingMatrices * Self.roundingRows)
    return width * (Self.float * (width + rows + panels + neighboursOfColumn) + 2 * rows)
  }

  /// What of that is in the host's memory where a device computes: rows on their way, and their codes.
  private var headBesideDevice: Int {
    work.solvesHead
      ? model.head.width * MemoryPlan.headRows(model, panelRows: panelRows) * (Self.float + 2) : 0
  }

  // MARK: With a device

  /// cuBLAS's workspace, the corner of a Gram matrix, and the scores of an attention with their probabilities.
  private var deviceBase: Int {
    64_000_000 + 4 * 2_048 * 2_048 + max(64_000_000, Self.float * work.sequenceLength * work.sequenceLength)
      * 3 / 2
  }
  /// Columns whose changes a sweep takes to the others by one product.
  private static let windowColumns = 1_024
  /// What the driver, cuBLAS and their like take of the host, as it was measured, and the pinned memory that arrays are copied
  /// by way of.
  private static let (driver, staging) = (270_000_000, 4 * (32 << 20))
  /// Buffers that the device copies from while the host fills others.
  private static let pinnedBuffers = 3
  /// What states that a device keeps in the host's memory are cut into, and what is pinned at once.
  private static let (pinnedBlock, pinnedSlab) = (1 << 20, 64 << 20)
  /// The states of a batch that stand at a time, at most.
  private static let slotsOfBatch = 4

  var gatheringOnDevice: Int {
    // States on their way to and from the host pass by in the same memory.
    let valueBytes = max(work.operands == .bfloat16 ? 2 : 0, states == .memory ? work.stateBytes : 0)
    let roundedInputs = valueBytes * widestSlot * batchTokens
    return stages.indices.map { index in
      let before = stages[(index + stages.count - 1) % stages.count]
      let stage = stages[index]
      return square(stage) + streams * residentWeights(before)
        + (hasDrift(stage) ? drift(stage) + residentWeights(stage) : 0)
        + heldWhileGathering(index, .device)
    }.max().map { $0 + roundedInputs + forwardOnDevice + deviceBase } ?? 0
  }

  var solvingOnDevice: Int {
    zip(stages, stateColumns).map { stage, columns in
      let width = stage.inFeatures
      let rows = min(panelRows, widestOutput(stage))
      let panels = (panelMatrices * width + min(Self.windowColumns, width)) * rows * Self.float
      return square(stage) + drift(stage) + weights(stage) + neighbours(stage) + panels
        + held(columns, .device)
    }.max().map { max($0, head + held(stateColumns[0], .device)) + workingOnDevice + deviceBase } ?? 0
  }

  /// The buffers of the forward pass, which are kept from batch to batch: those that states are read into, and others.
  private var forwardOnDevice: Int {
    stateFeatures * (batchTokens + originalTokens) * Self.float + workingOnDevice
  }

  private var workingOnDevice: Int {
    (workingFeatures * (batchTokens + originalTokens) + mixture) * Self.float
  }

  /// States of all tokens, if this is where they stand.
  private func held(_ columns: Int, _ place: StatesPlace) -> Int {
    states == place
      ? columns * (work.samples + work.originalSamples) * work.sequenceLength * work.stateBytes : 0
  }

  /// Batch by batch the states before the stage give way to those after it.
  private func heldWhileGathering(_ index: Int, _ place: StatesPlace) -> Int {
    held(max(stateColumns[index], stateColumns[(index + stages.count - 1) % stages.count]), place)
  }

  var gatheringBesideDevice: Int {
    standingBesideDevice + (stages.flatMap(\.linears).map(codes).max() ?? 0)
      + (stages.indices.map { heldWhileGathering($0, .memory) }.max() ?? 0)
  }

  /// The codes of the drafts, and those of the linear before, which is still written.
  var solvingBesideDevice: Int {
    let written = stages.indices.map { index in
      let before = stages[(index + stages.count - 1) % stages.count]
      // With outliers there is a second solution beside the first.
      return codes(stages[index]) * (work.keepsOutliers ? 2 : 1) + (before.linears.last.map(codes) ?? 0)
    }
    return standingBesideDevice + max(written.max() ?? 0, headBesideDevice)
      + held(stateColumns.max() ?? 0, .memory)
  }

  private var standingBesideDevice: Int {
    let embeddings = model.hiddenSize * batchTokens * Self.float
    let standing = Self.base + Self.driver + Self.staging + embeddings + blocksBesideDevice + rotated
    if states != .cache { return standing }
    return standing + 2 * writtenValue + valuesAhead
      + Self.pinnedBuffers * widestSlot * batchTokens * Self.float
  }

  /// What states that a device keeps in the host's memory take more than their bytes: the rest of the last block of each,
  /// and of what was pinned last, and a value that stands beside those that it replaces.
  private var blocksBesideDevice: Int {
    let batches = (work.samples + work.originalSamples + batchSamples - 1) / batchSamples + streams
    return states == .memory
      ? Self.pinnedSlab + batches * Self.slotsOfBatch * Self.pinnedBlock / 2
        + widestSlot * batchTokens * work.stateBytes : 0
  }

  /// What is there all the time: the program, and the buffers of the forward pass and of the cache, which are kept from
  /// batch to batch.
  private var standing: Int {
    let embeddings = model.hiddenSize
    let forward =
      (stateFeatures + workingFeatures) * (batchTokens + originalTokens) + embeddings * batchTokens
    return Self.base + (forward + mixture) * Self.float + writtenValue + valuesAhead + rotated
  }

  /// A whole linear that adds to the residual stream.
  private var rotated: Int {
    guard work.isRotated else { return 0 }
    let adding = stages.filter { $0.parts == [.attentionOutput] || $0.parts == [.contraction] }
    return Self.float * (adding.map(codes).max() ?? 0)
  }

  /// A token's values in the buffers that states are read into.
  private var stateFeatures: Int {
    model.hiddenSize + model.contextFeatures + model.intermediateSize + model.latentFeatures
  }

  /// A token's values in the forward pass's other buffers: normalised inputs, queries, keys and values and their context,
  /// expansion, and what a block makes.
  private var workingFeatures: Int {
    model.hiddenSize + model.mixerFeatures + model.latentFeatures + model.expansionFeatures
      + (model.hasBlockOutputs ? model.hiddenSize : 0)
  }

  private var panelMatrices: Int {
    work.keepsOutliers ? Self.panelMatricesWithOutliers : Self.matricesOfPanel
  }

  /// What pair moves know of a stage's columns.
  private func neighbours(_ stage: Stage) -> Int { neighboursOfColumn * stage.inFeatures * Self.float }
  private var neighboursOfColumn: Int { 3 * 16 }

  /// What all experts share: the Gram matrix of what they read, the rows of one of them, what it makes, and a batch's sum.
  private var mixture: Int {
    guard model.hasMixtures else { return 0 }
    return model.hiddenSize * (model.hiddenSize + 3 * max(batchTokens, Self.packedTokens))
  }

  private var widestSlot: Int { max(model.intermediateSize, model.contextFeatures, model.hiddenSize) }

  /// The largest value as the cache encodes it, in 16 bits, and once more as LMDB takes it, or beside those in memory that
  /// it replaces.
  private var writtenValue: Int { 2 * widestSlot * batchTokens }

  /// The next two values of every stream, decoded before they are asked for, if there is a next batch.
  private var valuesAhead: Int {
    if states == .memory { return 0 }
    let tokens =
      (batchSamples < work.samples ? batchTokens : 0)
      + (batchSamples < work.originalSamples ? originalTokens : 0)
    return (widestSlot + model.hiddenSize) * tokens * Self.float
  }

  /// Σ, with whatever is derived from it.
  private func square(_ stage: Stage) -> Int { stage.inFeatures * stage.inFeatures * Self.float }

  /// The weights of a stage as the solver has them.
  private func weights(_ stage: Stage) -> Int { Self.float * codes(stage) }

  /// The same as the forward pass has them.
  private func residentWeights(_ stage: Stage) -> Int {
    let companions = stage.companions.reduce(0) { $0 + $1.outFeatures * $1.inFeatures }
    return (codes(stage) + companions) * (work.operands == .bfloat16 ? 2 : Self.float)
  }

  /// In the order in which 16-bit products read them: inputs, some tokens at a time, once for each side of a Gram matrix;
  /// or keys and values.
  private var packedInputs: Int {
    if work.operands == .float32 { return 0 }
    let inputs = widestSlot * min(batchTokens, Self.packedTokens)
    return 2 * 2 * max(inputs, model.keyFeatures * batchTokens)
  }

  /// A byte a weight.
  private func codes(_ stage: Stage) -> Int { stage.linears.reduce(0) { $0 + codes($1) } }

  private func codes(_ linear: LayerLinear) -> Int { linear.outFeatures * linear.inFeatures }

  private func hasDrift(_ stage: Stage) -> Bool { hasOriginal && stage.residualScale != nil }

  /// The correction, which stands where the drift was summed up.
  private func drift(_ stage: Stage) -> Int { hasDrift(stage) ? weights(stage) : 0 }

  private func widestOutput(_ stage: Stage) -> Int { stage.linears.map(\.outFeatures).max() ?? 0 }
}
