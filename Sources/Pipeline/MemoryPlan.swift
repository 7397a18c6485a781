import Decoder

/// What a run will hold in memory at its peak, mapped files aside, worked out from config.json before any work.
public struct MemoryPlan: Sendable, Equatable {
  /// Sequences that the forward pass computes at a time.
  public let batchSamples: Int
  /// Rows of a linear that the solver works on at a time.
  public let panelRows: Int
  public let peakBytes: Int

  /// Tokens of a batch when memory is no matter: enough for matrix products to run at full speed.
  static let preferredBatchTokens = 4_096
  static let preferredPanelRows = 1_024

  /// The largest batches and panels, up to the preferred ones, whose peak stays within `budgetBytes`.
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:)`` if the smallest do not fit.
  public init(
    _ model: ModelDescription, target: Target, samples: Int, sequenceLength: Int, budgetBytes: Int
  ) throws(PipelineError) {
    var batch = max(1, min(samples, Self.preferredBatchTokens / sequenceLength))
    var panel = Self.preferredPanelRows
    while true {
      let peak = Self.peakBytes(
        model, target: target, batchTokens: batch * sequenceLength, panelRows: panel)
      if peak <= budgetBytes {
        (batchSamples, panelRows, peakBytes) = (batch, panel, peak)
        return
      }
      if batch == 1 && panel <= 64 {
        throw .notEnoughMemory(needed: peak, available: budgetBytes)
      }
      batch = max(1, batch / 2)
      panel = max(64, panel / 2)
    }
  }

  /// The plan of a run that is gone on with: sums depend on the sizes that it began with.
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:)`` if they no longer fit.
  public init(
    _ model: ModelDescription, target: Target, batchSamples: Int, panelRows: Int, sequenceLength: Int,
    budgetBytes: Int
  ) throws(PipelineError) {
    peakBytes = Self.peakBytes(
      model, target: target, batchTokens: batchSamples * sequenceLength, panelRows: panelRows)
    self.batchSamples = batchSamples
    self.panelRows = panelRows
    if peakBytes > budgetBytes { throw .notEnoughMemory(needed: peakBytes, available: budgetBytes) }
  }

  /// The widest stage decides: its layer and the one that follows, Σ with what is derived from it, and the larger
  /// of the forward pass's and the solver's buffers. With ``Target/original`` there are two streams of everything
  /// but Σ; beside it stand Σ of the sample and the drift.
  static func peakBytes(
    _ model: ModelDescription, target: Target, batchTokens: Int, panelRows: Int
  ) -> Int {
    let float = 4
    let streams = target == .original ? 2 : 1
    let linears = model.layerLinears
    let layer = linears.reduce(0) { $0 + $1.outFeatures * $1.inFeatures } * float
    let widest = linears.map(\.inFeatures).max() ?? 0
    let codes = linears.map { $0.outFeatures * $0.inFeatures }.max() ?? 0
    let drift = widest * widest + widest * max(model.hiddenSize, model.contextFeatures)
    let gram = (4 * widest * widest + (streams - 1) * drift) * float
    let statesPerToken = 5 * model.hiddenSize + 3 * model.contextFeatures + 3 * model.intermediateSize
    let forward = streams * batchTokens * statesPerToken * float
    // Every stream's next two slots, decoded ahead; one that is being written, and a spare.
    let cache =
      (streams * (widest + model.hiddenSize) + 2 * max(widest, model.hiddenSize)) * batchTokens * float
    let solver = 8 * panelRows * widest * float + codes
    return Self.baseBytes + 2 * streams * layer + gram + forward + max(cache, solver)
  }

  /// The program itself, its tables, LMDB's, and the spare mappings of matrices.
  static let baseBytes = 100_000_000
}
