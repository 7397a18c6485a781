import Pipeline
import SystemIO

/// A checkpoint that is to be dropped, looked at as the daemon and its worker will look at it: what they would refuse is
/// an error before anything is copied.
public struct Submission: Sendable {
  public let plan: RunPlan
  public let settings: JobSettings

  /// - Parameters:
  ///   - source: the checkpoint's directory, or a GGUF file
  ///   - recipe: a file of settings that takes the place of the directory's own, if there is one
  /// - Throws: errors of the checkpoint; ``ConfigurationError`` for the recipe; ``SubmissionError``
  public init(source: String, recipe: String?, configuration: DaemonConfiguration) throws {
    // A file has nothing beside it: what stands in its directory is not copied.
    let own =
      try recipe.map { try JobFile.read(file: $0, defaults: configuration.defaults) }
      ?? JobFile.read(directory: source, defaults: configuration.defaults)
    settings = try own.adapted(
      to: source, defaults: configuration.defaults, file: recipe ?? FileSystem.join(source, JobFile.name))
    plan = try RunPlan(
      model: source, settings: settings.settings, symlinks: .follow,
      hasConverter: configuration.ggufConverter != nil)
    try settings.requireCalibration(in: source)
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
