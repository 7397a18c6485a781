import Export
import FoundationEssentials
import SystemIO

/// Something that happened and that an operator may want to be told of, by a program of his own: `on-done`, for
/// example, in the folder that the setting `hooks` names.
///
/// The daemon has no network and does not wait for anybody. It leaves a file in the spool's `.hooks/`, and a process of
/// another unit, with other rights, runs the program; see ``HookRunner``.
public struct HookEvent: Codable, Sendable, Equatable {
  public enum Kind: String, Codable, Sendable, CaseIterable {
    case done, failed
    /// A drop needs a person.
    case refused
    /// The machine stands in a job's way; and does not any more.
    case paused, resumed

    /// The program's name.
    public var program: String { "on-\(rawValue)" }
  }

  public var kind: Kind
  /// The job's identifier; nil of a drop that is none yet.
  public var job: String?
  /// The name of the drop.
  public var name: String
  /// Why, and what a person can do about it.
  public var reason: String?
  public var mend: String?
  /// The directory of the result.
  public var output: String?
  /// Where the checkpoint is.
  public var source: String?
  /// What it took.
  public var seconds: Double?
  public var meanRelativeError: Double?

  public init(_ kind: Kind, name: String) {
    self.kind = kind
    self.name = name
  }

  /// What the program gets to know, as variables.
  var environment: [String: String] {
    var variables = ["QUANTEASE_EVENT": kind.rawValue, "QUANTEASE_NAME": name]
    let facts: [(String, String?)] = [
      ("JOB", job), ("REASON", reason), ("MEND", mend), ("OUTPUT", output), ("SOURCE", source),
      ("REPORT", output.map { FileSystem.join($0, ReportPage.fileName) }),
      ("SECONDS", seconds.map { "\(Int($0.rounded()))" }), ("ERROR", meanRelativeError.map { "\($0)" }),
    ]
    // All of them are there, so that a shell that minds unset ones minds none.
    for (key, value) in facts {
      // A variable ends at a zero byte.
      variables["QUANTEASE_\(key)"] = value?.replacing("\0", with: "") ?? ""
    }
    return variables
  }

  /// More would mean that nobody runs them.
  private static let pendingLimit = 1_000

  /// Leaves the event to be told.
  /// - Throws: ``FileError``
  func leave(in spool: Spool) throws {
    guard try FileSystem.names(in: spool.hookEvents).count < Self.pendingLimit else { return }
    let microseconds = Int(Date().timeIntervalSince1970 * 1e6)
    let file = "\(microseconds)-\(UInt16.random(in: 0...UInt16.max)).\(kind.rawValue)"
    try AtomicFile.write(Array(try JSONEncoder().encode(self)), to: FileSystem.join(spool.hookEvents, file))
  }

  init(path: String) throws {
    let bytes = try FileSystem.contents(of: path, limit: 1 << 20, symlinks: .refuse)
    self = try JSONDecoder().decode(HookEvent.self, from: Data(bytes))
  }
}
