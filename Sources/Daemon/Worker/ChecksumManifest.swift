import SystemIO

/// `SHA256SUMS`, as `sha256sum` writes and checks it: of every file below a directory, itself aside.
public enum ChecksumManifest {
  public static let fileName = Manifest.name

  /// Digests every file below `directory` and writes the manifest into it, all at once.
  /// - Parameter advanced: called as parts of files are read
  /// - Throws: ``FileError``
  public static func write(into directory: String, advanced: () -> Void = {}) throws {
    // Before the files are listed.
    try AtomicFile.removeLeftovers(of: FileSystem.join(directory, fileName))
    var lines = ""
    for name in try files(below: directory) where name != fileName {
      let digest = try SHA256Digest.of(
        file: FileSystem.join(directory, name), symlinks: .refuse, advanced: advanced)
      lines += Manifest.Entry(path: name, digest: digest).line
    }
    try AtomicFile.write(lines, to: FileSystem.join(directory, fileName))
  }

  /// Digests some files anew that have been changed or added on purpose, if there is a manifest; one that cannot be read stays
  /// as it is.
  /// - Throws: ``FileError``
  public static func update(_ names: [String], in directory: String) throws {
    let path = FileSystem.join(directory, fileName)
    guard try FileSystem.exists(path),
      case .manifest(let manifest) = Manifest.read(path)
    else { return }
    let known = Set(manifest.entries.map(\.path))
    let added = names.filter { !known.contains($0) }.map { Manifest.Entry(path: $0, digest: "") }
    let lines = try (manifest.entries + added).map { entry in
      guard names.contains(entry.path) else { return entry.line }
      let digest = try SHA256Digest.of(file: FileSystem.join(directory, entry.path), symlinks: .refuse)
      return Manifest.Entry(path: entry.path, digest: digest).line
    }
    try AtomicFile.write(lines.joined(), to: path)
  }

  /// What is wrong with a directory by its manifest, in words; nothing where all is well.
  /// - Throws: ``FileError`` if there is no manifest, or if a file cannot be read
  public static func problems(in directory: String, advanced: () -> Void = {}) throws -> [String] {
    let text = try FileSystem.contents(
      of: FileSystem.join(directory, fileName), limit: Manifest.byteLimit, symlinks: .refuse)
    let manifest: Manifest
    switch Manifest.parse(text) {
    case .manifest(let read): manifest = read
    case .unreadable(let reason): return [reason]
    case .refused(let refusal): return [refusal.reason]
    }
    var problems: [String] = []
    var named: Set<String> = [fileName]
    for entry in manifest.entries {
      named.insert(entry.path)
      let path = FileSystem.join(directory, entry.path)
      if try FileSystem.kind(of: path, symlinks: .refuse) != .regular {
        problems.append("\(entry.path) is missing")
      } else if try SHA256Digest.of(file: path, symlinks: .refuse, advanced: advanced) != entry.digest {
        problems.append("\(entry.path) is not what was written")
      }
    }
    return problems
      + (try files(below: directory)).filter { !named.contains($0) }.map { "\($0) is not listed" }
  }

  private static func files(below directory: String) throws(FileError) -> [String] {
    try FileSystem.regularFiles(below: directory, symlinks: .refuse, includingHidden: true, depth: .max)
  }
}
