import Checkpoint
import Compute
import Decoder
import Export
import SystemIO
import Tensors
import Tuning

/// Whether norms are tuned when all is quantized, as it was decided when the job began: later there may be more memory, or
/// less, and a job that goes on comes to the bytes of one that was not interrupted.
struct TuningDecision: Codable, Equatable {
  /// Why they stay as they are; nil if they are tuned.
  var note: String?
}

// What is done to a result when all of it is written.
extension QuantizationRun {
  /// What was decided when the job began, or is now; nil where nobody asked for it, and of ranks that have no result to tune.
  ///
  /// A job that was begun by a version that did not keep its decision decides now.
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)`` if the job began with the memory for it, and it is
  ///   not there now: to wait for it is all that comes to the same bytes
  /// - Parameter available: what memory may be taken
  func tuningDecision(memoryBytes available: Int) throws(PipelineError) -> TuningDecision? {
    guard request.tunesNorms, ranks.isChief else { return nil }
    guard let begun = opening.head?.tuning else {
      return TuningDecision(note: obstacleToTuning(memoryBytes: available))
    }
    let needed = tuningBytes(keepingLayers: false)
    guard note(of: begun) == nil, needed > available else { return begun }
    throw .notEnoughMemory(
      needed: needed, available: available, phase: .exporting,
      mend: "that is to tune norms, for which it began with enough: it goes on when there is as much again")
  }

  /// Why norms stay as they are by a decision; nil if they are tuned. A job that began on the processor may have come to a device
  /// that has no gradients, and has other bits for that already.
  func note(of decision: TuningDecision) -> String? {
    decision.note ?? NormTuning.obstacle(of: description, on: backend)
  }

  /// Tunes the norms of the model that stands in a directory, in all of its formats.
  /// - Returns: what came of it; with a note where nothing could
  func tuneNorms(_ decision: TuningDecision, in directory: String, _ progress: (ProgressEvent) -> Void) throws
    -> Report.Tuning
  {
    let start = ContinuousClock.now
    if let note = note(of: decision) { return Report.Tuning(note: note) }
    let places =
      request.formats.count == 1
      ? [directory] : request.formats.map { FileSystem.join(directory, $0.rawValue) }
    let results = try places.map { place in
      try Self.open(place, symlinks: .refuse, allowingRequantizing: true, rotation: .off)
    }
    let (result, quantized) = results[0]
    let calibration = request.calibration
    var tuning = try NormTuning(
      model: (quantized, result), original: (description, checkpoint),
      sequenceLength: calibration.sequenceLength, operands: operands, backend: backend,
      keepsLayers: tuningBytes(keepingLayers: true) <= request.memoryBudgetBytes)
    let text = tuningText
    let outcome = try tuning.run(on: text, storedAs: { result.tensors[$0]?.dtype ?? .float32 }) {
      try checkSource()
      progress(.step("tuning norms, step \($0 + 1) of \($1)"))
    }
    guard outcome.before.isFinite, outcome.after.isFinite else {
      return Report.Tuning(note: "the divergence of the predictions is no finite number")
    }
    for (reader, _) in results {
      for (tensor, values) in outcome.weights { try reader.overwrite(tensor, with: values) }
    }
    return Report.Tuning(
      tensors: outcome.weights.count, before: outcome.before, after: outcome.after,
      isJudgeSolved: text.isJudgeSolved, seconds: (ContinuousClock.now - start).seconds)
  }

  /// What norms are learnt of, and judged by. Text that layers were solved for is closer to the original than other text: that
  /// is learnt of where there is some. Sequences that overlap are left out, as they would be on both sides.
  var tuningText: NormTuning.Text {
    let calibration = request.calibration
    let (solved, spare) = calibration.sequences
    return NormTuning.Schedule().text(
      solved: Array(solved.prefix(calibration.distinct)), spare: spare, length: calibration.sequenceLength)
  }

  /// Why the norms cannot be tuned; nil if they can.
  /// - Parameter memoryBytes: what may be taken
  func obstacleToTuning(memoryBytes: Int) -> String? {
    if let obstacle = NormTuning.obstacle(of: description, on: backend) { return obstacle }
    let needed = tuningBytes(keepingLayers: false)
    return needed > memoryBytes
      ? "it takes \(byteSize(needed)) of memory, and \(byteSize(memoryBytes)) may be taken" : nil
  }

  private var tuningSamples: Int {
    request.calibration.samples + request.calibration.spare.count / request.calibration.sequenceLength
  }

  private func tuningBytes(keepingLayers: Bool) -> Int {
    NormTuning.bytes(
      of: description, samples: tuningSamples, sequenceLength: request.calibration.sequenceLength,
      keepingLayers: keepingLayers)
  }
}

extension CheckpointReader {
  /// Writes other values in the place of a tensor's, which is stored as floats.
  fileprivate func overwrite(_ tensor: String, with values: [Float]) throws {
    guard let place = tensors[tensor] else { preconditionFailure("\(tensor) was read before") }
    precondition(
      place.coding == nil && place.part == nil
        && place.byteRange.count == values.count * place.dtype.byteWidth,
      "\(tensor) is stored otherwise")
    var writer = ByteWriter()
    switch place.dtype {
    case .bfloat16: writer.append(values.map(\.bfloat16Bits))
    case .float16: writer.append(values.map(\.float16Bits))
    default: writer.append(values)
    }
    try OutputFile(resuming: place.file).write(writer.bytes, at: place.byteRange.lowerBound)
  }
}
