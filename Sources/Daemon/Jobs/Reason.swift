import Export
import FoundationEssentials
import SystemIO

/// Why a job came to nothing: `reason.json`, beside its source or in its place in `failed/`.
struct Reason: Codable, Equatable {
  static let fileName = "reason.json"

  let id: String
  let name: String
  let outcome: JobRecord.Phase
  /// Nil in those of earlier versions.
  let kind: JobFailure.Kind?
  let message: String
  let code: Int32
  /// Seconds since 1970.
  let failedAt: Double
  /// Where the checkpoint is.
  let source: String

  func write(to directory: String) throws {
    try AtomicFile.rewrite(JSONEncoder.ofReports.lines(self), to: FileSystem.join(directory, Self.fileName))
  }

  /// Reads the one in `directory`; nil if there is none, or none that can be read.
  init?(directory: String) {
    let path = FileSystem.join(directory, Self.fileName)
    guard let bytes = try? FileSystem.contents(of: path, limit: 1 << 20, symlinks: .refuse),
      let reason = try? JSONDecoder.ofReports.decode(Reason.self, from: Data(bytes))
    else { return nil }
    self = reason
  }

  init(
    id: String, name: String, outcome: JobRecord.Phase, kind: JobFailure.Kind?, message: String, code: Int32,
    failedAt: Double, source: String
  ) {
    (self.id, self.name, self.outcome, self.kind) = (id, name, outcome, kind)
    (self.message, self.code, self.failedAt, self.source) = (message, code, failedAt, source)
  }
}
