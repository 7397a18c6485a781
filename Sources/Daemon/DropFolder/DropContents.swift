import SystemIO

/// The files of a drop as one look finds them. Two equal ones mean that nothing was written meanwhile.
struct DropContents: Equatable, Sendable {
  struct File: Equatable, Sendable {
    /// Relative to the drop.
    let path: String
    let stamp: FileStamp

    /// Whether it, or a directory on the way to it, is hidden.
    var isHidden: Bool { path.split(separator: "/").contains { $0.hasPrefix(".") } }
  }

  enum Fault: Error, Equatable {
    case refused(DropRefusal)
    case unreadable(FileError)
  }

  static let maximumFileCount = 100_000
  static let maximumDepth = 16

  /// In the order of their paths, those in directories below included.
  private(set) var files: [File] = []
  /// The first file or directory that this process may not read, hidden ones aside, which nobody reads.
  private(set) var unreadable: File?

  /// Looks at every name and opens no file.
  init(directory: String) throws(Fault) {
    if FileSystem.isReadable(directory, isDirectory: true) {
      try add(directory, prefix: "", depth: 0)
    } else {
      do { unreadable = File(path: "", stamp: try FileSystem.stamp(of: directory).stamp) } catch {
        throw .unreadable(error)
      }
    }
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
      let file = File(path: prefix + name, stamp: found.stamp)
      let isDirectory = found.kind == .directory
      if isDirectory || found.kind == .regular, !FileSystem.isReadable(path, isDirectory: isDirectory) {
        if !file.isHidden { unreadable = unreadable ?? file }
        if isDirectory { continue }
      }
      switch found.kind {
      case .regular: files.append(file)
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

  /// Another one as soon as any file is another, or written to.
  var digest: String {
    let lines = files.map { file in
      let stamp = file.stamp
      return
        "\(file.path)\n\(stamp.inode) \(stamp.byteCount) \(stamp.modifiedNanoseconds) \(stamp.changedNanoseconds)\n"
    }
    var digest = SHA256Digest()
    digest.update(lines.joined())
    return digest.finish()
  }

  /// What a job reads of it, to be looked at again while it does.
  var source: SourceFiles {
    let visible = files.filter { !$0.isHidden }
    return SourceFiles(stamps: Dictionary(visible.map { ($0.path, $0.stamp) }) { first, _ in first })
  }

  /// Every file by its path.
  var stamps: [String: FileStamp] {
    Dictionary(files.map { ($0.path, $0.stamp) }) { first, _ in first }
  }
}
