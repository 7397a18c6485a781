/// The place of one batch of hidden states in a run.
public struct HiddenStatesKey: Hashable, Sendable {
  /// Which model computed them, for example 0 for the quantized and 1 for the original one.
  public var stream: Int
  /// The stage of the layer loop that reads them.
  public var stage: Int
  /// The batch of sequences of the calibration set.
  public var batch: Int

  public init(stream: Int, stage: Int, batch: Int) {
    precondition(stream >= 0 && stage >= 0 && batch >= 0, "the parts of a key count from zero")
    self.stream = stream
    self.stage = stage
    self.batch = batch
  }

  /// 24 bytes whose lexicographic order is the order of (stream, stage, batch).
  var encoded: [UInt8] {
    [stream, stage, batch].flatMap { part in
      (0..<8).map { byte in UInt8(truncatingIfNeeded: part >> (56 - 8 * byte)) }
    }
  }
}

extension HiddenStatesKey: CustomStringConvertible {
  public var description: String { "stream \(stream), stage \(stage), batch \(batch)" }
}
