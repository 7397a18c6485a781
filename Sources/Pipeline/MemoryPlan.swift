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
    _ model: ModelDescription, samples: Int, sequenceLength: Int, budgetBytes: Int
  ) throws(PipelineError) {
    var batch = max(1, min(samples, Self.preferredBatchTokens / sequenceLength))
    var panel = Self.preferredPanelRows
    while true {
      let peak = Self.peakBytes(model, batchTokens: batch * sequenceLength, panelRows: panel)
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

  /// The widest stage decides: its layer, the one that follows, Σ with its factor, and the larger of the
  /// forward pass's and the solver's buffers.
  static func peakBytes(_ model: ModelDescription, batchTokens: Int, panelRows: Int) -> Int {
    let float = 4
    let linears = model.layerLinears
    let layer = linears.reduce(0) { $0 + $1.outFeatures * $1.inFeatures } * float
    let widest = linears.map(\.inFeatures).max() ?? 0
    let gram = 4 * widest * widest * float
    let statesPerToken = 5 * model.hiddenSize + 3 * model.contextFeatures + 3 * model.intermediateSize
    let forward = batchTokens * statesPerToken * float
    let solver = 6 * panelRows * widest * float
    return 2 * layer + gram + max(forward, forward / 2 + solver)
  }
}
