import Calibration
import Checkpoint
import Glibc
import Pipeline
import SystemIO

/// What may differ from job to job.
public struct JobSettings: Codable, Sendable, Equatable {
  /// The calibration files: absolute paths, or such below the job's directory; empty if nobody named one.
  public var calibration: CalibrationSources
  /// The greater before the smaller.
  public var priority: Int
  /// Hosts that share the job, where the queue has hosts to give.
  public var ranks: Int
  public var settings: QuantizationSettings

  public init(
    calibration: CalibrationSources = CalibrationSources([]), priority: Int = 0,
    ranks: Int = 1, settings: QuantizationSettings = QuantizationSettings()
  ) {
    self.calibration = calibration
    self.priority = priority
    self.ranks = ranks
    self.settings = settings
  }

  /// The calibration files of a job whose files are in `directory`, by absolute paths.
  public func calibration(in directory: String) -> CalibrationSources {
    calibration.replacingPaths { $0.hasPrefix("/") ? $0 : FileSystem.join(directory, $0) }
  }

  /// Looks whether they are there.
  /// - Throws: ``SubmissionError`` if one is not; ``FileError``
  func requireCalibration(in directory: String) throws {
    if calibration.files.isEmpty { throw SubmissionError.noCalibration }
    for file in calibration(in: directory).files where try FileSystem.kind(of: file.path) != .regular {
      throw SubmissionError.missingCalibration(file.path)
    }
  }

  /// The same settings for what is to be quantized: a GGUF model becomes a GGUF file, unless the job asks for another format,
  /// which it is then refused.
  /// - Parameters:
  ///   - model: the job's directory, or a GGUF file
  ///   - defaults: of all jobs
  ///   - file: where these settings come from
  /// - Throws: ``ConfigurationError``, exit code 65, if they ask for what the result would not have: a night later nobody wants
  ///   another file than the one that was asked for
  func adapted(to model: String, defaults: JobSettings, file: String) throws(ConfigurationError)
    -> JobSettings
  {
    var adapted = self
    if settings.formats == defaults.settings.formats, CheckpointReader.isGGUF(model) {
      adapted.settings.formats = [.gguf]
    }
    for (key, setting) in settings.keys(unlike: defaults.settings) {
      if let reason = adapted.settings.reasonToIgnore(setting) {
        throw ConfigurationError(
          .file(file, nil), key: key, problem: "would be ignored", mend: reason, exitCode: EX_DATAERR)
      }
    }
    return adapted
  }

  /// Whether a relative path stays below the directory that it starts from.
  static func isPossible(calibration path: String) -> Bool {
    !path.contains("\0") && (path.hasPrefix("/") || !path.split(separator: "/").contains(".."))
  }
}

extension QuantizationSettings {
  /// Those of grids that say something else than the defaults do, by their keys.
  fileprivate func keys(unlike defaults: Self) -> [(String, ConditionalSetting)] {
    func key<Value: Equatable>(
      _ key: String, _ setting: ConditionalSetting, _ value: KeyPath<Self, Value>
    ) -> (String, ConditionalSetting)? {
      self[keyPath: value] == defaults[keyPath: value] ? nil : (key, setting)
    }
    return [
      key("bits", .bits, \.bits), key("group-size", .groupSize, \.groupSize),
      key("symmetric", .symmetry, \.symmetric), key("gguf-type", .ggufType, \.ggufType),
      key("gguf-pure", .ggufPure, \.ggufPure),
    ].compactMap { $0 }
  }
}

/// A job's own `quantease.yaml`, flat, for what it wants otherwise than the daemon's defaults.
///
/// Whoever may drop a checkpoint writes it, so it is taken for hostile: a regular file and no symbolic link, of at
/// most 1 MiB, without aliases, and without any key of the daemon's own.
public enum JobFile {
  public static let name = "quantease.yaml"

  /// - Parameter directory: the job's
  /// - Returns: `defaults`, changed where the file says so; unchanged without a file
  /// - Throws: ``ConfigurationError``, exit code 65
  public static func read(
    directory: String, defaults: JobSettings
  ) throws(ConfigurationError) -> JobSettings {
    try merge(FileSystem.join(directory, name), isRequired: false, over: defaults)
  }

  /// - Parameter file: its path, under any name
  /// - Returns: `defaults`, changed where the file says so
  /// - Throws: ``ConfigurationError``, exit code 65, if there is no such file, too
  public static func read(file: String, defaults: JobSettings) throws(ConfigurationError) -> JobSettings {
    try merge(file, isRequired: true, over: defaults)
  }

  private static func merge(
    _ path: String, isRequired: Bool, over defaults: JobSettings
  ) throws(ConfigurationError) -> JobSettings {
    do { return try settings(path, isRequired: isRequired, over: defaults) } catch {
      throw error.withExitCode(EX_DATAERR)
    }
  }

  private static func settings(
    _ path: String, isRequired: Bool, over defaults: JobSettings
  ) throws(ConfigurationError) -> JobSettings {
    guard
      let file = try SettingsFile(
        path: path, symlinks: isRequired ? .follow : .refuse, isRequired: isRequired)
    else {
      return defaults
    }
    var (result, origins) = (defaults, [String: SettingOrigin]())
    for entry in try file.entries() {
      guard let setting = SettingTable.job.first(where: { $0.key == entry.key }) else {
        throw entry.unknown(known: SettingTable.job.map(\.key), elsewhere: mend(key: entry.key))
      }
      try entry.apply(setting, to: &result)
      origins[entry.key] = entry.origin
    }
    do { try result.settings.validate() } catch {
      let key = SettingEntry.key(of: error)
      // Two settings that exclude each other need not both stand in this file.
      let mend =
        origins[key] == nil ? "\(error.mend); the value is the daemon's default, set it here" : error.mend
      throw ConfigurationError(
        origins[key] ?? .file(path, nil), key: key,
        problem: "\(Excerpt.quoted(error.value)) is not possible", mend: mend)
    }
    return result
  }

  /// What to do about a key that the daemon's file has and a job's has not.
  private static func mend(key: String) -> String? {
    if key == DaemonConfiguration.section { return "its keys stand at the top level of this file" }
    return SettingTable.daemon.contains { $0.key == key } ? "it is the daemon's own: leave it out" : nil
  }
}
