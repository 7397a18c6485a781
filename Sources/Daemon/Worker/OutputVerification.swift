import Checkpoint
import Decoder
import Export
import Pipeline
import SystemIO

/// Checks a finished output: every byte against its checksum, and every checkpoint in it as a loader would.
public enum OutputVerification {
  /// What is wrong, in words; nothing where all is well.
  /// - Parameter advanced: called after every file
  /// - Throws: ``FileError`` if something cannot be read
  public static func problems(of output: String, advanced: () -> Void = {}) throws -> [String] {
    guard try FileSystem.kind(of: output) == .directory else {
      return ["\(output) is no directory"]
    }
    guard try FileSystem.exists(FileSystem.join(output, ChecksumManifest.fileName)) else {
      return ["\(ChecksumManifest.fileName) is missing: the daemon writes it when an output is complete"]
    }
    var problems = try ChecksumManifest.problems(in: output, advanced: advanced)
    for checkpoint in try checkpoints(in: output) {
      do {
        let (reader, weights) = try openWeights(checkpoint)
        _ = try ModelDescription(checking: reader, source: weights)
      } catch {
        problems.append("\(checkpoint): \(error)")
      }
    }
    do { _ = try Report(directory: output) } catch {
      problems.append("\(Report.fileName): \(error)")
    }
    return problems
  }

  /// The output itself, or its directories, one for every format.
  private static func checkpoints(in output: String) throws -> [String] {
    if let file = try CheckpointReader.ggufFile(of: output) { return [file] }
    if try FileSystem.exists(FileSystem.join(output, "config.json")) { return [output] }
    return OutputFormatName.allCases.map { FileSystem.join(output, $0.rawValue) }
      .filter { (try? FileSystem.kind(of: $0)) == .directory }
  }
}

extension Report {
  /// The report of a quantized checkpoint.
  public init(directory: String) throws {
    try self.init(at: Place(directory: directory))
  }
}
