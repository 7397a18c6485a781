import FoundationEssentials
import SystemIO

/// The sources of jobs that are over, in `done/` and `failed/`, and which of them are not kept. Outputs are never among
/// them, and neither is what stands in `incoming/`: that is its owner's.
public struct Retention: Sendable {
  public let keepDone: Keeping
  public let keepFailed: Keeping

  public init(keepDone: Keeping, keepFailed: Keeping) {
    (self.keepDone, self.keepFailed) = (keepDone, keepFailed)
  }

  /// Whether anything is ever removed.
  public var isActive: Bool { keepDone != .all || keepFailed != .all }

  public struct Item: Sendable, Equatable {
    /// The job's identifier.
    public let id: String
    public let path: String
    public let byteCount: Int
    /// When the job was over, in seconds since 1970.
    public let finishedAt: Double
  }

  /// What is not kept, the newest first.
  /// - Parameters:
  ///   - jobs: those that are known
  ///   - now: in seconds since 1970
  ///   - unreadable: takes why one cannot be looked at; it stays
  /// - Throws: ``FileError``
  public func surplus(
    in spool: Spool, jobs: [JobRecord], now: Double = Date().timeIntervalSince1970,
    unreadable: (any Error) -> Void = { _ in }
  ) throws -> [Item] {
    let known = Dictionary(jobs.map { ($0.id, $0) }) { first, _ in first }
    return try [(spool.done, keepDone), (spool.failed, keepFailed)].flatMap { folder, keeping -> [Item] in
      if keeping == .all { return [] }
      let items = try FileSystem.names(in: folder).compactMap { id -> Item? in
        // What has no job's name was put there by a person, who may remove it.
        guard JobName.name(of: id) != id, known[id]?.phase.isOver ?? true else { return nil }
        let path = FileSystem.join(folder, id)
        do {
          let changedAt = try Double(FileSystem.stamp(of: path).stamp.modifiedNanoseconds) / 1e9
          return Item(
            id: id, path: path, byteCount: try FileSystem.treeSize(path),
            finishedAt: known[id]?.finishedAt ?? changedAt)
        } catch {
          unreadable(error)
          return nil
        }
      }
      return keeping.surplus(of: items.sorted { $0.finishedAt > $1.finishedAt }) {
        now - $0.finishedAt
      } size: {
        $0.byteCount
      }
    }
  }

  /// Removes one, and what an unfinished job has left for `retry`, which cannot be any more.
  /// - Throws: ``FileError``
  public static func remove(_ item: Item, in spool: Spool) throws {
    try FileSystem.removeTree(item.path)
    try FileSystem.removeTree(FileSystem.join(spool.partial, item.id))
  }
}
