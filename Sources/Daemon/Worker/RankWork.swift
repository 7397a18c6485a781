import Calibration
import Collective
import Compute
import Export
import FoundationEssentials
import Pipeline
import SystemIO

// What the ranks of a job do, whoever has started them.
extension Ranks {
  /// Makes sure that all are of one version and have the same settings.
  /// - Throws: ``RankError/differs(_:what:value:chief:chiefValue:)``
  public func agree(on settings: QuantizationSettings) throws {
    if isAlone { return }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys]
    try agree(on: "quantease", Producer.version)
    try agree(on: "the settings", String(decoding: try encoder.encode(settings), as: UTF8.self))
  }

  /// Works as one of those that are not the first one, which has the calibration set, the journal and the output.
  /// - Parameters:
  ///   - cache: what the names of the job's caches begin with; nil where none is kept
  ///   - request: what is asked for, given the calibration set
  public func follow(
    by backend: any ComputeBackend, cache: String?,
    _ request: (CalibrationSet) throws -> QuantizationRequest
  ) throws {
    guard let calibration = try share(nil as CalibrationSet?) else { return }
    var request = try request(calibration)
    if let cache {
      let directory = FileSystem.parent(of: cache)
      if try FileSystem.isNetworked(FileSystem.nearestExisting(directory)) {
        throw ResumableJobError.networkedCache(directory)
      }
      request.resume = ResumePlace(journal: "", cache: cache, identity: "")
    }
    _ = try QuantizationRun(request, backend: backend, ranks: self).run { _ in }
  }

  /// Lets the others go, who wait for a calibration set, where there was nothing to do.
  public func dismissIdle() throws {
    if !isAlone, bytesSent[.tokens] == nil { _ = try share(nil as CalibrationSet?) }
  }
}
