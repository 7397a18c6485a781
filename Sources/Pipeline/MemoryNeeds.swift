import Compute
import Decoder

/// The bytes that the phases hold, part by part.
struct MemoryNeeds {
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
  /// Those of a panel that gets its first codes: target, codes and what is between; with outliers what is left of each
  /// weight, and what their places are chosen by.
  private static let matricesOfDraft = 3
  private static let draftMatricesWithOutliers = 5
  /// What is kept of the panels of the stage before, at most.
  private static let spares = 32 << 20
  /// A panel of a tensor, what it is changed to, and its bytes.
  private static let exported = 3 * 4 * 1_048_576

  private var model: ModelDescription { work.model }
  private var hasOriginal: Bool { work.originalSamples > 0 }
  private var streams: Int { hasOriginal ? 2 : 1 }
  /// Tokens of the original's largest batch, and of the largest of all: one ends with the original's last sample.
  private var originalTokens: Int { min(batchSamples, work.originalSamples) * work.sequenceLength }
  private var batchTokens: Int {
    max(originalTokens, min(batchSamples, work.samples - work.originalSamples) * work.sequenceLength)
  }

  /// In the host's memory, where matrices are there.
  func onHost(_ phase: MemoryPlan.Phase) -> Int {
    switch phase {
    case .gathering: gathering
    case .factoring: solving { square($0) + drift($0) + min(panels($0, panelMatrices), Self.spares) }
    case .drafting:
      solving { stage in
        drafts(stage) + square(stage) + drift(stage)
          + max(panels(stage, panelMatricesOfDraft), rounding(stage))
      }
    case .descending: descending
    case .exporting: Self.base + Self.exported + rotated + headCorrection + writtenValue + valuesAhead
    }
  }

  private var gathering: Int {
    let packedInputs = packedInputs
    return stages.indices.map { index in
      let before = stages[(index + stages.count - 1) % stages.count]
      let stage = stages[index]
      return square(stage) + streams * residentWeights(before) + packedInputs
        + (hasDrift(stage) ? drift(stage) + residentWeights(stage) : 0) + heldWhileGathering(index, .memory)
    }.max().map { max($0, headGathering(.memory) + packedInputs) + standing + writtenValue } ?? 0
  }

  /// What the head's correction and the sum of squares that it is made with take while the last stage runs.
  private func headGathering(_ place: StatesPlace) -> Int {
    guard work.correctsHead, let last = stages.last else { return 0 }
    return 2 * headCorrection + streams * residentWeights(last) + heldWhileGathering(0, place)
  }

  /// `[width, width]`
  private var headCorrection: Int {
    work.correctsHead ? Self.float * model.head.width * model.head.width : 0
  }

  /// - Parameter bytes: what a stage has of its own
  private func solving(_ bytes: (Stage) -> Int) -> Int {
    (zip(stages, stateColumns).map { bytes($0) + held($1, .memory) }.max() ?? 0) + standing
  }

  private var descending: Int {
    let ofStages = solving { stage in
      // As it is packed for the files.
      let written = stage.linears.map(\.weightCount).max() ?? 0
      let descending =
        square(stage) + drift(stage) + neighbours(stage) + max(panels(stage, panelMatrices), written)
      return drafts(stage) + max(descending, residentWeights(stage))
    }
    return max(ofStages, head + held(stateColumns.first ?? 0, .memory) + standing)
  }

  /// The codes of a stage's drafts; with outliers there is a second solution beside the first.
  private func drafts(_ stage: Stage) -> Int { codes(stage) * (work.keepsOutliers ? 2 : 1) }

  private func panels(_ stage: Stage, _ matrices: Int) -> Int {
    matrices * min(panelRows, widestOutput(stage)) * stage.inFeatures * Self.float
  }

  private func rounding(_ stage: Stage) -> Int {
    Self.threads * Self.roundingMatrices * Self.roundingRows * stage.inFeatures * Self.float
  }

  /// The head's square, and its rows with their codes.
  private var head: Int {
    guard work.solvesHead else { return 0 }
    let width = model.head.width
    let rows = MemoryPlan.headRows(model, panelRows: panelRows)
    let panels = max(
      panelMatrices * min(panelRows, rows), Self.threads * Self.roundingMatrices * Self.roundingRows)
    return width * (Self.float * (width + rows + panels + neighboursOfColumn) + 2 * rows) + headCorrection
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

  /// In a device's memory.
  func onDevice(_ phase: MemoryPlan.Phase) -> Int {
    switch phase {
    case .gathering: gatheringOnDevice
    case .factoring: solvingOnDevice { square($0) + drift($0) + weights($0) }
    case .drafting, .descending:
      max(
        solvingOnDevice { stage in
          let rows = min(panelRows, widestOutput(stage))
          let panels = (panelMatrices * stage.inFeatures + min(Self.windowColumns, stage.inFeatures)) * rows
          return square(stage) + drift(stage) + weights(stage) + neighbours(stage) + panels * Self.float
        }, head + held(stateColumns.first ?? 0, .device) + workingOnDevice + deviceBase)
    case .exporting: deviceBase + workingOnDevice + headCorrection
    }
  }

  /// In the host's memory beside that.
  func besideDevice(_ phase: MemoryPlan.Phase) -> Int {
    switch phase {
    case .gathering: gatheringBesideDevice
    case .factoring, .drafting, .descending: solvingBesideDevice
    case .exporting: standingBesideDevice + Self.exported
    }
  }

  private var gatheringOnDevice: Int {
    // States on their way to and from the host pass by in the same memory.
    let valueBytes = max(work.operands == .bfloat16 ? 2 : 0, states == .memory ? work.stateBytes : 0)
    let roundedInputs = valueBytes * widestSlot * batchTokens
    return stages.indices.map { index in
      let before = stages[(index + stages.count - 1) % stages.count]
      let stage = stages[index]
      return square(stage) + streams * residentWeights(before)
        + (hasDrift(stage) ? drift(stage) + residentWeights(stage) : 0)
        + heldWhileGathering(index, .device)
    }.max().map { max($0, headGathering(.device)) + roundedInputs + forwardOnDevice + deviceBase } ?? 0
  }

  private func solvingOnDevice(_ bytes: (Stage) -> Int) -> Int {
    (zip(stages, stateColumns).map { bytes($0) + held($1, .device) }.max() ?? 0) + workingOnDevice
      + deviceBase
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

  private var gatheringBesideDevice: Int {
    standingBesideDevice + (stages.flatMap(\.linears).map(\.weightCount).max() ?? 0)
      + (stages.indices.map { heldWhileGathering($0, .memory) }.max() ?? 0)
  }

  /// The codes of the drafts, and those of the linear before, which is still written.
  private var solvingBesideDevice: Int {
    let written = stages.indices.map { index in
      let before = stages[(index + stages.count - 1) % stages.count]
      return drafts(stages[index]) + (before.linears.last?.weightCount ?? 0)
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

  private var panelMatricesOfDraft: Int {
    work.keepsOutliers ? Self.draftMatricesWithOutliers : Self.matricesOfDraft
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

  /// The weights of a stage in fp32, as a device's solver has them, and what corrects them.
  private func weights(_ stage: Stage) -> Int { Self.float * codes(stage) }

  /// The same as the forward pass has them.
  private func residentWeights(_ stage: Stage) -> Int {
    (codes(stage) + stage.companions.weightCount) * (work.operands == .bfloat16 ? 2 : Self.float)
  }

  /// In the order in which 16-bit products read them: inputs, some tokens at a time, once for each side of a Gram matrix;
  /// or keys and values.
  private var packedInputs: Int {
    if work.operands == .float32 { return 0 }
    let inputs = widestSlot * min(batchTokens, Self.packedTokens)
    return 2 * 2 * max(inputs, model.keyFeatures * batchTokens)
  }

  /// A byte a weight.
  private func codes(_ stage: Stage) -> Int { stage.linears.weightCount }

  private func hasDrift(_ stage: Stage) -> Bool { hasOriginal && stage.residualScale != nil }

  /// The correction, which stands where the drift was summed up.
  private func drift(_ stage: Stage) -> Int { hasDrift(stage) ? weights(stage) : 0 }

  private func widestOutput(_ stage: Stage) -> Int { stage.linears.map(\.outFeatures).max() ?? 0 }
}
