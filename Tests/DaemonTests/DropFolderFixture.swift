import SystemIO
import SystemPackage
import TestSupport

@testable import Daemon

/// A spool with a drop folder whose clock moves as the test says.
final class DropFolderFixture {
  let directory: TemporaryDirectory
  let spool: Spool
  let folder: DropFolder
  private(set) var now = ContinuousClock.now

  static let settleTime = Duration.seconds(10)

  init(
    isInMemory: Bool = false, isNetworked: Bool = false,
    hasNoWriter: @escaping (String) -> Bool? = { _ in nil }
  ) throws {
    directory = try TemporaryDirectory(isInMemory: isInMemory)
    spool = Spool(root: directory.file("spool"))
    try spool.create()
    folder = DropFolder(
      spool: spool, settleTime: Self.settleTime, isNetworked: { _ in isNetworked },
      hasNoWriter: hasNoWriter)
  }

  /// Scans after some time has passed, having taken in the news.
  func scan(after time: Duration = .seconds(1)) -> [Drop] {
    now += time
    _ = folder.drain()
    return folder.scan(now: now)
  }

  /// The state of the drop `model`, or of another one.
  func state(of name: String = "model", after time: Duration = .seconds(1)) -> Drop.State? {
    scan(after: time).first { $0.name == name }?.state
  }

  /// The state after as many scans as settling takes, and more than the time.
  func settledState(of name: String = "model") -> Drop.State? {
    for _ in 0..<3 { _ = scan(after: .seconds(5)) }
    return state(of: name, after: .seconds(5))
  }

  /// Scans until the thread that verifies manifests has an answer.
  func verifiedState(of name: String = "model") -> Drop.State? {
    var last: Drop.State?
    for _ in 0..<2000 {
      last = state(of: name, after: .milliseconds(1))
      if last != .waiting(reasons: ["verifying SHA256SUMS"]) { break }
      Pause.milliseconds(2)
    }
    return last
  }

  /// Claims a drop, and moves it as a ledger would.
  func claim(_ name: String, as id: String) throws {
    try folder.claim(name) { _, _ in
      try FileSystem.move(incoming(name), to: FileSystem.join(spool.working, id))
    }
  }

  func incoming(_ path: String) -> String { FileSystem.join(spool.incoming, path) }

  /// Appends to a file below `incoming/`, making it and its directories if they are missing.
  func append(_ bytes: [UInt8], to path: String) throws {
    let path = incoming(path)
    try FileSystem.createDirectories(FileSystem.parent(of: path))
    let file = try FileDescriptor.open(
      FilePath(path), .writeOnly, options: [.append, .create], permissions: .ownerReadWrite)
    _ = try file.closeAfter { try file.writeAll(bytes) }
  }

  func append(_ text: String, to path: String) throws {
    try append(Array(text.utf8), to: path)
  }

  /// A complete checkpoint of one shard below `incoming/`.
  func dropModel(_ name: String = "model") throws {
    try append("{}", to: "\(name)/config.json")
    try append(Self.shard(elements: 4), to: "\(name)/model.safetensors")
  }

  /// The bytes of a shard with one tensor.
  static func shard(_ tensor: String = "w", elements: Int) -> [UInt8] {
    let header =
      #"{"\#(tensor)":{"dtype":"F32","shape":[\#(elements)],"data_offsets":[0,\#(4 * elements)]}}"#
    return tensorFile(header: header, data: [UInt8](repeating: 7, count: 4 * elements))
  }

  static func index(_ shards: [String]) -> String {
    let entries = shards.enumerated().map { #""w\#($0)":"\#($1)""# }
    return #"{"metadata":{},"weight_map":{\#(entries.joined(separator: ","))}}"#
  }

  static func digest(_ bytes: [UInt8]) -> String {
    var digest = SHA256Digest()
    unsafe digest.update(bytes.span.bytes)
    return digest.finish()
  }
}
