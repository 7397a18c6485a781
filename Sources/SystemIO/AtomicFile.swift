import SystemPackage

/// Small files that are there whole, old or new, whatever happens meanwhile.
public enum AtomicFile {
  /// Writes a file beside `path`, brings it to the disk and puts it in the place of what was there.
  public static func write(_ bytes: [UInt8], to path: String) throws(FileError) {
    let destination = FilePath(path)
    let name = destination.lastComponent?.string ?? ""
    let suffix = String(UInt32.random(in: 0...UInt32.max), radix: 16)
    let temporary = destination.removingLastComponent().appending(".\(name).\(suffix).tmp").string
    let file = try OutputFile(creating: temporary)
    do {
      try file.write(bytes, at: 0)
      try file.synchronize()
      try FileError.attempt(.rename, path) { () throws(Errno) in
        try SystemCall.rename(temporary, to: path)
      }
    } catch {
      // The first error is the one to tell; a leftover that cannot be removed is hidden and small.
      try? FileSystem.removeTree(temporary)
      throw error
    }
    try FileSystem.synchronize(FileSystem.parent(of: path))
  }

  /// The same for a file that one process at a time writes, and that others look through the directory of: what earlier
  /// ones left beside it, which were ended while they wrote it, goes first.
  public static func rewrite(_ bytes: [UInt8], to path: String) throws(FileError) {
    try removeLeftovers(of: path)
    try write(bytes, to: path)
  }

  /// Removes what was left beside `path` by processes that were ended while they wrote it.
  public static func removeLeftovers(of path: String) throws(FileError) {
    let directory = FileSystem.parent(of: path)
    for name in try FileSystem.names(in: directory)
    where name.hasPrefix(".\(FileSystem.name(of: path)).") && name.hasSuffix(".tmp") {
      try FileSystem.removeTree(FileSystem.join(directory, name))
    }
  }

  /// Writes `text` in UTF-8.
  public static func write(_ text: String, to path: String) throws(FileError) {
    try write(Array(text.utf8), to: path)
  }
}
