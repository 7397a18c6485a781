import SystemIO

/// `SHA256SUMS`, as `sha256sum` writes and checks it: of every file below a directory, itself aside.
public enum ChecksumManifest {
  public static let fileName = "SHA256SUMS"

  /// Digests every file below `directory` and writes the manifest into it, all at once.
  /// - Parameter advanced: called after every file
  /// - Throws: ``FileError``
  public static func write(into directory: String, advanced: () -> Void = {}) throws {
    var lines = ""
    for name in try files(below: directory) where name != fileName {
      lines += "\(try SHA256Digest.of(file: FileSystem.join(directory, name), symlinks: .refuse))  \(name)\n"
      advanced()
    }
    try AtomicFile.write(lines, to: FileSystem.join(directory, fileName))
  }

  /// What is wrong with a directory by its manifest, in words; nothing where all is well.
  /// - Throws: ``FileError`` if there is no manifest, or if a file cannot be read
  public static func problems(in directory: String, advanced: () -> Void = {}) throws -> [String] {
    let manifest = try FileSystem.contents(
      of: FileSystem.join(directory, fileName), limit: 1 << 24, symlinks: .refuse)
    var problems: [String] = []
    var named: Set<String> = [fileName]
    for line in String(decoding: manifest, as: UTF8.self).split(separator: "\n") {
      guard let (digest, name) = entry(line) else {
        problems.append("\(fileName): \"\(line.prefix(80))\" is no digest with a file's name")
        continue
      }
      named.insert(name)
      let path = FileSystem.join(directory, name)
      if try FileSystem.kind(of: path, symlinks: .refuse) != .regular {
        problems.append("\(name) is missing")
      } else if try SHA256Digest.of(file: path, symlinks: .refuse) != digest {
        problems.append("\(name) is not what was written")
      }
      advanced()
    }
    return problems
      + (try files(below: directory)).filter { !named.contains($0) }.map { "\($0) is not listed" }
  }

  /// A line's digest and name. A name that leads out of the directory is none.
  static func entry(_ line: some StringProtocol) -> (digest: String, name: String)? {
    let digest = line.prefix(64)
    let rest = line.dropFirst(64)
    guard digest.count == 64, digest.allSatisfy(\.isHexDigit), rest.hasPrefix("  ") || rest.hasPrefix(" *")
    else { return nil }
    let name = String(rest.dropFirst(2))
    let parts = name.split(separator: "/", omittingEmptySubsequences: false)
    guard !name.isEmpty, !parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }) else { return nil }
    return (digest.lowercased(), name)
  }

  private static func files(below directory: String, prefix: String = "") throws(FileError) -> [String] {
    var files: [String] = []
    for name in try FileSystem.names(in: directory) {
      let path = FileSystem.join(directory, name)
      switch try FileSystem.kind(of: path, symlinks: .refuse) {
      case .directory: files += try self.files(below: path, prefix: "\(prefix)\(name)/")
      case .regular: files.append(prefix + name)
      default: break
      }
    }
    return files
  }
}
