/// A name in the drop folder, and what is to be done with it.
public struct Drop: Sendable, Equatable, Codable {
  /// What shows that an upload is complete.
  public enum Rule: String, Sendable, Codable {
    /// The uploader put `.ready` beside the files.
    case marker
    /// The whole directory came by one rename.
    case renamed
    /// Every file has the digest that `SHA256SUMS` gives it.
    case manifest
    /// Every shard has its length, and nothing changed for the settle time.
    case settled
  }

  public enum State: Sendable, Equatable, Codable {
    case ready(Rule)
    /// Nothing is wrong, but the upload is not complete, or not known to be. The reasons stay the same from
    /// scan to scan while nothing happens.
    case waiting(reasons: [String])
    /// It will never start like this; a person has to change something, and the next scan looks again.
    case refused(Refusal)
  }

  /// Why a drop is not taken, and what a person can do about it.
  public struct Refusal: Sendable, Equatable, Codable {
    public let reason: String
    public let mend: String
  }

  /// The directory's name in `incoming/`.
  public let name: String
  public let state: State
  /// Grows from drop to drop in the order in which they were first seen.
  public let arrival: Int

  /// The same with what a daemon that has looked for longer knows of it.
  public func knowing(_ refusal: Refusal?) -> Drop {
    guard case .waiting = state, let refusal else { return self }
    return Drop(name: name, state: .refused(refusal), arrival: arrival)
  }
}

/// Why a drop is refused.
enum DropRefusal: Error, Equatable {
  case symbolicLink(String)
  case notAFile(String)
  case shardOutside(index: String, shard: String)
  case listedOutside(manifest: String, path: String)
  case nameNotUTF8(String)
  case tooManyFiles(limit: Int)
  case tooDeep(String, limit: Int)
  case markedButIncomplete([String])
  case unreadable(path: String, drop: String, mend: String)

  var state: Drop.State { .refused(Drop.Refusal(reason: reason, mend: mend)) }

  var reason: String {
    switch self {
    case .symbolicLink(let path): "\(path) is a symbolic link, which may lead anywhere"
    case .notAFile(let path): "\(path) is a pipe, a socket or a device"
    case .shardOutside(let index, let shard):
      "\(index) places tensors in '\(shard)', which is no file of this directory"
    case .listedOutside(let manifest, let path):
      "\(manifest) lists '\(path)', which is no file below this directory"
    case .nameNotUTF8(let name): "the name \(name) is not UTF-8"
    case .tooManyFiles(let limit): "there are more than \(limit) files in it"
    case .tooDeep(let path, let limit): "\(path) lies more than \(limit) directories deep"
    case .markedButIncomplete(let gaps):
      "it is marked as ready, but incomplete: \(gaps.joined(separator: "; "))"
    case .unreadable(let path, let drop, _):
      "the daemon may not read \(path.isEmpty ? drop : path)"
    }
  }

  var mend: String {
    switch self {
    case .symbolicLink: "put the file itself in its place (cp -rL copies what links lead to)"
    case .notAFile: "remove it: only regular files and directories belong there"
    case .shardOutside: "put the shards beside the index, and plain file names into its weight_map"
    case .listedOutside: "write it inside the directory, with paths relative to it: sha256sum * > SHA256SUMS"
    case .nameNotUTF8: "rename it"
    case .tooManyFiles, .tooDeep: "drop the checkpoint's files only, all in one directory"
    case .unreadable(_, _, let mend): mend
    case .markedButIncomplete:
      "add what is missing, or remove \(Readiness.markerName) until the upload is complete"
    }
  }
}
