import Checkpoint
import Compute
import Decoder
import Pipeline
import SystemIO
import Tensors

/// A checkpoint that is to be dropped, looked at as the daemon and its worker will look at it: what they would refuse is
/// an error before anything is copied.
public struct Submission: Sendable {
  public let model: ModelDescription
  public let settings: JobSettings
  public let inputBytes: Int
  private let modelType: DType
  private let treatments: [String: Treatment]
  private let otherBytes: Int

  /// - Parameters:
  ///   - source: the checkpoint's directory
  ///   - recipe: a file of settings that takes the place of the directory's own, if there is one
  /// - Throws: errors of the checkpoint; ``ConfigurationError`` for the recipe; ``SubmissionError``
  public init(source: String, recipe: String?, configuration: DaemonConfiguration) throws {
    settings =
      try recipe.map { try JobFile.read(file: $0, defaults: configuration.defaults) }
      ?? JobFile.read(directory: source, defaults: configuration.defaults)
    let checkpoint: CheckpointReader
    (checkpoint, model) = try QuantizationRun.open(source, symlinks: .follow)
    let treatments = try settings.settings.recipe().resolve(for: model)
    self.treatments = treatments
    guard let calibration = settings.calibrationPath(in: source) else { throw SubmissionError.noCalibration }
    guard try FileSystem.kind(of: calibration) == .regular else {
      throw SubmissionError.missingCalibration(calibration)
    }
    modelType = checkpoint.weightType(of: model)
    inputBytes = checkpoint.tensors.values.reduce(0) { $0 + $1.byteRange.count }
    otherBytes = checkpoint.tensors.values.reduce(0) { sum, tensor in
      let isQuantized = tensor.name.hasSuffix(".weight") && treatments[String(tensor.name.dropLast(7))] != nil
      return sum + (isQuantized ? 0 : tensor.byteCount)
    }
  }

  /// The linears that are to be quantized.
  public var linearCount: Int { treatments.count }

  /// About what all formats of the result take.
  public var resultBytes: Int {
    var sum = 0
    for format in settings.settings.formats {
      sum += otherBytes
      for (count, bits) in weights {
        sum += format == .dense ? count * modelType.byteWidth : count * bits / 8
      }
    }
    return sum
  }

  /// Hidden states of all sequences at the turn from one stage to the next, before compression.
  public var cacheBytes: Int {
    let settings = settings.settings
    let tokens = (settings.samples + settings.originalSamples) * settings.sequenceLength
    return tokens * 2 * (model.hiddenSize + max(model.intermediateSize, model.contextFeatures))
  }

  /// The memory that the job would plan with now.
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)``
  public func memoryPlan(backend: any ComputeBackend, budgetBytes: Int) throws -> MemoryPlan {
    let settings = settings.settings
    return try MemoryPlan(
      MemoryPlan.Work(
        model: model, samples: settings.samples, sequenceLength: settings.sequenceLength,
        originalSamples: settings.originalSamples, operands: backend.operandType(for: modelType),
        keepsOutliers: treatments.values.contains { $0.outliers != nil }), budgetBytes: budgetBytes)
  }

  /// Of every linear that is to be quantized: its weights, and the bits of one.
  private var weights: [(count: Int, bits: Int)] {
    (0..<model.layerCount).flatMap { index in
      model.linears(ofLayer: index).compactMap { linear in
        guard let grid = treatments[model.layerPrefix(index) + linear.name]?.gridFormat else { return nil }
        return (linear.outFeatures * linear.inFeatures, grid.bitWidth.rawValue)
      }
    }
  }
}

/// What a job would lack.
public enum SubmissionError: Error, Equatable, Sendable, CustomStringConvertible {
  case noCalibration
  case missingCalibration(String)

  public var description: String {
    switch self {
    case .noCalibration:
      "no calibration text: name one as 'calibration' in the recipe or the directory's \(JobFile.name), or for all jobs "
        + "under 'defaults' in the daemon's configuration"
    case .missingCalibration(let path):
      "\(path): the calibration text is not there; put it there, or name another one as 'calibration'"
    }
  }

  /// As for every wrong configuration.
  public var exitCode: Int32 { 78 }
}
