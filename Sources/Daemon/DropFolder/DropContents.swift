import SystemIO

/// The files of a drop as one look finds them. Two equal ones mean that nothing was written meanwhile.
struct DropContents: Equatable, Sendable {
  struct File: Equatable, Sendable {
    /// Relative to the drop.
    let path: String
    let stamp: FileStamp
  }

  enum Fault: Error, Equatable {
    case refused(DropRefusal)
    case unreadable(FileError)
  }

  static let maximumFileCount = 100_000
  static let maximumDepth = 16

  /// In the order of their paths, those in directories below included.
  private(set) var files: [File] = []

  /// Looks at every name and opens no file.
  init(directory: String) throws(Fault) {
    try add(directory, prefix: "", depth: 0)
  }

  private mutating func add(_ directory: String, prefix: String, depth: Int) throws(Fault) {
    guard depth <= Self.maximumDepth else {
      throw .refused(.tooDeep(prefix, limit: Self.maximumDepth))
    }
    let names: [String]
    do { names = try FileSystem.names(in: directory) } catch { throw .unreadable(error) }
    for name in names {
      let path = "\(directory)/\(name)"
      let found: (stamp: FileStamp, kind: FileKind)
      do { found = try FileSystem.stamp(of: path) } catch {
        // A name that was mended on its way into a string leads nowhere.
        if name.contains("\u{FFFD}") { throw .refused(.nameNotUTF8(prefix + name)) }
        // Partial names give way to final ones at any time.
        if error.errno == .noSuchFileOrDirectory { continue }
        throw .unreadable(error)
      }
      switch found.kind {
      case .regular: files.append(File(path: prefix + name, stamp: found.stamp))
      case .directory: try add(path, prefix: "\(prefix)\(name)/", depth: depth + 1)
      case .symbolicLink: throw .refused(.symbolicLink(prefix + name))
      case .other: throw .refused(.notAFile(prefix + name))
      }
      if files.count > Self.maximumFileCount {
        throw .refused(.tooManyFiles(limit: Self.maximumFileCount))
      }
    }
  }

  private static let partialSuffixes = [
    ".part", ".tmp", ".incomplete", ".partial", ".crdownload", ".aria2", ".download",
  ]

  /// The files whose names say that they are not complete.
  var partialPaths: [String] {
    files.map(\.path).filter { path in Self.partialSuffixes.contains { path.hasSuffix($0) } }
  }

  /// Every file by its path.
  var stamps: [String: FileStamp] {
    Dictionary(files.map { ($0.path, $0.stamp) }) { first, _ in first }
  }
}
