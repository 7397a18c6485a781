import Checkpoint
import Compute
import Decoder
import Export
import SystemIO
import Tensors
import Tuning

// What is done to a result when all of it is written.
extension QuantizationRun {
  /// Tunes the norms of the model that stands in a directory, in all of its formats.
  /// - Returns: what came of it; with a note where nothing could
  func tuneNorms(in directory: String, _ progress: (ProgressEvent) -> Void) throws -> Report.Tuning {
    let start = ContinuousClock.now
    if let note = obstacleToTuning(memoryBytes: request.memoryBudgetBytes) {
      progress(.warning("norms are not tuned: \(note)"))
      return Report.Tuning(note: note)
    }
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
    // Text that layers were solved for is closer to the original than other text: that is learnt of where there is some.
    let (solved, spare) = calibration.sequences
    let text = NormTuning.Schedule().text(solved: solved, spare: spare, length: calibration.sequenceLength)
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
