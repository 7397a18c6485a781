import SystemIO

/// The drop folder's layout, all on one file system, so that every move is one rename.
public struct Spool: Sendable, Equatable {
  public let root: String

  public init(root: String) {
    self.root = root
  }

  /// Where people and programs put checkpoints, a directory each.
  public var incoming: String { FileSystem.join(root, "incoming") }
  /// Claimed sources, `working/<id>`.
  public var working: String { FileSystem.join(root, "working") }
  /// The sources of published jobs.
  public var done: String { FileSystem.join(root, "done") }
  /// The sources of failed jobs, `failed/<id>`, each with a `reason.json` beside its files.
  public var failed: String { FileSystem.join(root, "failed") }
  /// Finished checkpoints, under the names that their sources were dropped with.
  public var output: String { FileSystem.join(root, "output") }
  /// What is being made: hidden, and on the output's file system.
  public var partial: String { FileSystem.join(output, ".partial") }

  /// What people ask of a running daemon, a file each; see ``JobRequest``.
  public var requests: String { FileSystem.join(root, ".requests") }
  /// What programs are still to be told of, a file each; see ``HookEvent``.
  public var hookEvents: String { FileSystem.join(root, ".hooks") }
  /// Where a running daemon answers, a local socket; see ``StatusClient``.
  public var socket: String { FileSystem.join(root, ".socket") }
  /// Held by the daemon.
  public var lock: String { FileSystem.join(root, ".lock") }

  /// What tells this spool from any other directory in its place, such as the one that its file system is mounted on.
  private var markFile: String { FileSystem.join(root, ".spool") }

  /// - Returns: nil where there is none, as in a spool of an earlier version
  /// - Throws: ``FileError``
  func mark() throws(FileError) -> String? {
    guard try FileSystem.exists(markFile) else { return nil }
    return String(
      decoding: try FileSystem.contents(of: markFile, limit: 64, symlinks: .refuse), as: UTF8.self)
  }

  /// Gives the spool a mark, where it has none.
  /// - Throws: ``FileError``
  func marked() throws -> String {
    if let mark = try mark() { return mark }
    let mark = String(UInt64.random(in: .min ... .max), radix: 16)
    try AtomicFile.write(mark, to: markFile)
    return mark
  }

  /// Creates the directories that are missing.
  /// - Throws: ``FileError``
  public func create() throws(FileError) {
    for directory in [incoming, working, done, failed, partial, requests, hookEvents] {
      try FileSystem.createDirectories(directory)
    }
  }
}
