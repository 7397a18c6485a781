import Checkpoint
import SystemIO

/// A GGUF model that was dropped as it is, a file or all parts of one, and not in a directory: it is put into one once it is
/// complete, and is then a drop as any other.
struct LooseModel {
  /// The files, the first part first.
  let files: [String]
  private let folder: String

  private var stamps: [String: FileStamp] = [:]
  private var unchangedSince: ContinuousClock.Instant?
  private var unchangedScans = 0
  private var lengths = StampedMemo<ShardLength>()

  /// - Parameters:
  ///   - name: of the first part
  ///   - folder: the directory that it was dropped in
  init(name: String, in folder: String) {
    files = GGUFFiles.parts(of: name)
    self.folder = folder
  }

  /// The name of the directory that it gets, and of its result.
  var target: String { GGUFFiles.stem(of: files[0]) }

  /// Looks at the files, and puts them into their directory if nothing speaks against it.
  /// - Returns: what is waited for; nil once they are in it
  mutating func look(_ circumstances: Readiness.Circumstances) -> [String]? {
    do {
      let gaps = try gaps(circumstances)
      guard gaps.isEmpty else { return Readiness.shortened(gaps) }
      try wrap()
      return nil
    } catch { return ["\(error)"] }
  }

  private mutating func gaps(_ circumstances: Readiness.Circumstances) throws -> [String] {
    let found = try files.reduce(into: [String: FileStamp]()) { stamps, name in
      let path = path(name)
      guard try FileSystem.kind(of: path) == .regular else { return }
      stamps[name] = try FileSystem.stamp(of: path).stamp
    }
    if found != stamps || unchangedSince == nil {
      (unchangedSince, unchangedScans) = (circumstances.now, 0)
    }
    unchangedScans += 1
    stamps = found
    lengths.prune(keeping: stamps)
    let gaps = files.compactMap { name in
      guard let stamp = stamps[name] else { return "\(name) is missing" }
      let path = path(name)
      let length = lengths.value(name, stamp, now: circumstances.now) { ShardLength(readingGGUF: path) }
      return length.gap(in: name, byteCount: stamp.byteCount)
    }
    if !gaps.isEmpty { return gaps }
    if circumstances.isNetworked {
      return [
        "on a network file system nothing shows that a lone file is complete: drop a directory with it and .ready"
      ]
    }
    if try FileSystem.exists(path(target)) {
      return ["\(target) is there already: rename one of the two, or wait until it is taken"]
    }
    let age = unchangedSince.map { circumstances.now - $0 } ?? .zero
    guard unchangedScans >= circumstances.scansToSettle, age >= circumstances.settleTime else {
      return ["complete, waits until nothing has changed for \(circumstances.settleTime)"]
    }
    return files.filter { circumstances.hasNoWriter(path($0)) == false }.map { "\($0) is open for writing" }
  }

  private static let gatheringSuffix = ".gathering"

  /// Gives back to a drop folder what a process had begun to gather and not ended.
  static func giveBack(in folder: String) {
    let names = (try? FileSystem.names(in: folder)) ?? []
    for hidden in names where hidden.hasPrefix(".") && hidden.hasSuffix(gatheringSuffix) {
      let directory = FileSystem.join(folder, hidden)
      for name in (try? FileSystem.names(in: directory)) ?? [] {
        // Where a file of the name has come meanwhile, this one waits for it to go.
        try? FileSystem.move(FileSystem.join(directory, name), to: FileSystem.join(folder, name))
      }
      if (try? FileSystem.names(in: directory))?.isEmpty == true { try? FileSystem.removeTree(directory) }
    }
  }

  /// Hidden until all files are in it: its renaming then says that it is complete.
  private func wrap() throws {
    let hidden = path(".\(target)\(Self.gatheringSuffix)")
    try FileSystem.createDirectories(hidden)
    for name in files { try FileSystem.move(path(name), to: FileSystem.join(hidden, name)) }
    try FileSystem.move(hidden, to: path(target))
  }

  private func path(_ name: String) -> String { FileSystem.join(folder, name) }
}
