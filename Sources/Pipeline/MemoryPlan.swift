import Compute
import Decoder
import Tensors

/// What a run will hold in memory at its peak, mapped files aside, worked out from config.json before any work.
public struct MemoryPlan: Sendable, Equatable {
  /// What is done with a stage of a layer; each holds other things.
  public enum Phase: String, Sendable, Codable, CaseIterable {
    /// The stage before runs on every batch, and Σ is summed up.
    case gathering
    /// The factor of Σ is made.
    case factoring
    /// Grids and first codes are chosen, at the plane nearest by the factor.
    case drafting
    /// Codes descend on Σ, and are written.
    case descending
    /// The other tensors are copied.
    case exporting
  }

  /// Sequences that the forward pass computes at a time.
  public let batchSamples: Int
  /// Rows of a linear that the solver works on at a time, and that it decides on together when to stop, at most.
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
  /// Ranks share a linear's panels: of a narrow one there are as many, of one size if they can be.
  private static let panelsOfNarrow = [4, 6]
  /// Panels are whole blocks of operands in 16 bits.
  private static let rowsOfBlock = 32
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
    /// Whether the head is corrected for what the layers have lost, which the original's last states tell.
    public var correctsHead: Bool
    /// Tokens of a batch, as far as they are whole sequences. On the processor a constant: sums over tokens, and even
    /// products of single tokens, depend on it in their last digits, and bits must not follow from memory. Larger batches
    /// were no faster there.
    static let batchTokens = 1_024
    var batchTokens = Work.batchTokens
    /// Rows of a linear that are solved at a time on the processor.
    var panelRows = MemoryPlan.panelRows

    /// Sequences of a batch on the processor.
    var batchSamples: Int { batch(of: batchTokens) }

    fileprivate func batch(of tokens: Int) -> Int { max(1, min(samples, tokens / sequenceLength)) }

    public init(
      model: ModelDescription, samples: Int, sequenceLength: Int, originalSamples: Int,
      operands: OperandType = .float32, keepsOutliers: Bool = false, stateBytes: Int = 2,
      states: StatesChoice = .auto, isRotated: Bool = false, solvesHead: Bool = false,
      correctsHead: Bool = false
    ) {
      self.isRotated = isRotated
      self.solvesHead = solvesHead
      self.stateBytes = stateBytes
      self.states = states
      self.model = model
      self.samples = samples
      self.sequenceLength = sequenceLength
      self.originalSamples = model.hasPlainOutputs ? originalSamples : 0
      self.correctsHead = correctsHead && self.originalSamples > 0
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
        work, batchSamples: work.batchSamples, panelRows: work.panelRows, budget: budget)
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
      let isSolverTooLarge = !plan.fits(budget, in: [.factoring, .drafting, .descending])
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
    let needs = MemoryNeeds(
      work: work, batchSamples: batchSamples, panelRows: panelRows, states: states, stages: stages,
      stateColumns: work.model.stateColumns(before: stages))
    self.states = states
    self.batchSamples = batchSamples
    self.panelRows = panelRows
    func perPhase(_ bytes: (Phase) -> Int) -> [Phase: Int] {
      Dictionary(uniqueKeysWithValues: Phase.allCases.map { ($0, bytes($0)) })
    }
    bytesPerPhase = perPhase { isOnDevice ? needs.besideDevice($0) : needs.onHost($0) }
    deviceBytesPerPhase = isOnDevice ? perPhase(needs.onDevice) : nil
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
        "free memory, give more with --memory if the machine has it, or take one with more"
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

  /// A linear's panels on the processor.
  static func panels(of outFeatures: Int, most: Int = panelRows) -> [Range<Int>] {
    (0..<outFeatures).parts(of: panelRows(of: outFeatures, most: most))
  }

  /// Rows of a linear's panels on the processor.
  static func panelRows(of outFeatures: Int, most: Int = panelRows) -> Int {
    let heights = panelsOfNarrow.map { count in
      (count, (max(outFeatures, 1) + count * rowsOfBlock - 1) / (count * rowsOfBlock) * rowsOfBlock)
    }
    let even = heights.first { $0 * $1 == outFeatures && $1 <= most }
    return min((even ?? heights[0]).1, most)
  }

  /// Rows of a linear's panels.
  func panelRows(of outFeatures: Int) -> Int {
    deviceBytesPerPhase == nil ? Self.panelRows(of: outFeatures, most: panelRows) : panelRows
  }

  /// Rows of the head that are solved at a time, each time with a factor of its own: as many whole panels as make that cheap.
  static func headRows(_ model: ModelDescription, panelRows: Int) -> Int {
    let panels = max(1, (model.head.width + panelRows - 1) / panelRows)
    return min(panels * panelRows, model.vocabularySize)
  }
}
