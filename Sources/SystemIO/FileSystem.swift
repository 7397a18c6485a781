import Glibc
import SystemPackage

/// Questions to the file system, and changes to its tree.
public enum FileSystem {
  /// The names in a directory, sorted, without `.` and `..`.
  public static func names(in directory: String) throws(FileError) -> [String] {
    try FileError.attempt(.list, directory) { () throws(Errno) in
      try SystemCall.names(in: SystemCall.open(directory, flags: O_RDONLY | O_DIRECTORY))
    }
  }

  /// The regular files of a directory and of those below it, by their paths relative to it, in the order of names.
  /// - Parameters:
  ///   - symlinks: whether a link stands for what it leads to
  ///   - includingHidden: whether those count whose names begin with a dot
  ///   - depth: how many directories down to go; by default further than any checkpoint does
  public static func regularFiles(
    below directory: String, symlinks: SymlinkPolicy, includingHidden: Bool = false, depth: Int = 8
  ) throws(FileError) -> [String] {
    var files: [String] = []
    for name in try names(in: directory) where includingHidden || !name.hasPrefix(".") {
      let path = join(directory, name)
      switch try kind(of: path, symlinks: symlinks) {
      case .regular: files.append(name)
      case .directory where depth > 0:
        files += try regularFiles(
          below: path, symlinks: symlinks, includingHidden: includingHidden, depth: depth - 1
        ).map { "\(name)/\($0)" }
      default: break
      }
    }
    return files
  }

  /// What is at `path`; nil if nothing is, or if a link there leads nowhere.
  public static func kind(
    of path: String, symlinks: SymlinkPolicy = .follow
  ) throws(FileError) -> FileKind? {
    do {
      return try SystemCall.status(path, symlinks: symlinks).kind
    } catch {
      if error == .noSuchFileOrDirectory || error == .notDirectory { return nil }
      throw FileError(path: path, operation: .inspect, errno: error)
    }
  }

  /// Whether something is at `path`, or a link that leads nowhere.
  public static func exists(_ path: String) throws(FileError) -> Bool {
    try kind(of: path, symlinks: .refuse) != nil
  }

  /// The bytes of all files below a directory.
  public static func treeSize(_ directory: String) throws(FileError) -> Int {
    var total = 0
    for name in try names(in: directory) {
      let path = join(directory, name)
      switch try kind(of: path, symlinks: .refuse) {
      case .directory: total += try treeSize(path)
      case .regular: total += try fileSize(path)
      default: break
      }
    }
    return total
  }

  /// The length of the file at `path` in bytes.
  public static func fileSize(_ path: String) throws(FileError) -> Int {
    try FileError.attempt(.inspect, path) { () throws(Errno) in
      try SystemCall.status(path, symlinks: .follow).byteCount
    }
  }

  /// Bytes that may still be written to the file system that holds `path`, which exists.
  public static func freeBytes(_ path: String) throws(FileError) -> Int {
    try FileError.attempt(.inspect, path) { () throws(Errno) in try SystemCall.freeBytes(path) }
  }

  /// All bytes of a small file. Works for `/proc` too, where lengths are not known beforehand.
  /// - Throws: ``FileError``, EFBIG if there are more than `limit` bytes.
  public static func contents(
    of path: String, limit: Int, symlinks: SymlinkPolicy = .follow
  ) throws(FileError) -> [UInt8] {
    let descriptor = try FileError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | symlinks.openFlags)
    }
    var contents: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65_536)
    while true {
      let count = try FileError.attempt(.read, path) { () throws(Errno) in
        try SystemCall.read(descriptor, into: &buffer)
      }
      if count == 0 { return contents }
      contents += buffer[..<count]
      if contents.count > limit {
        throw FileError(path: path, operation: .read, errno: .fileTooLarge)
      }
    }
  }

  /// Copies the bytes of a regular file to a new one.
  public static func copyFile(
    _ source: String, to destination: String, symlinks: SymlinkPolicy = .follow
  ) throws(FileError) {
    // Read and not mapped: a file that somebody cuts off meanwhile would be a signal and not an error.
    let input = try InputFile(path: source, symlinks: symlinks)
    let output = try OutputFile(creating: destination)
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    var offset = 0
    while true {
      let count = try input.read(into: &buffer)
      if count == 0 { return }
      try output.write(unsafe buffer.span.bytes.extracting(first: count), at: offset)
      offset += count
    }
  }

  /// Makes a directory with the files of another one, which takes no space where the file system lets a file have
  /// several names, and copies elsewhere. What is neither a file nor a directory is left out.
  /// - Parameter isWanted: which of the names directly in `source`
  /// - Throws: ``FileError``
  public static func linkTree(
    _ source: String, to destination: String, where isWanted: (String) -> Bool = { _ in true }
  ) throws(FileError) {
    try createDirectories(destination)
    for name in try names(in: source) where isWanted(name) {
      let (from, to) = (join(source, name), join(destination, name))
      switch try kind(of: from, symlinks: .refuse) {
      case .directory: try linkTree(from, to: to)
      case .regular:
        do { try SystemCall.link(from, to: to) } catch {
          switch error {
          case .improperLink, .notPermitted, .permissionDenied, .tooManyLinks, .notSupported,
            .notSupportedOnSocket:
            try copyFile(from, to: to, symlinks: .refuse)
          default: throw FileError(path: to, operation: .create, errno: error)
          }
        }
      default: break
      }
    }
  }

  /// What a file holds from a place on, as far as is read at once; nothing behind its end. A file that another host appends to
  /// is opened anew for it, as that is when a network file system looks for news.
  public static func contents(of path: String, from offset: Int, limit: Int) throws(FileError)
    -> [UInt8]
  {
    try FileError.attempt(.read, path) { () throws(Errno) in
      let descriptor = try SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | O_NOFOLLOW)
      var contents: [UInt8] = []
      while contents.count < limit {
        var buffer = [UInt8](repeating: 0, count: min(65_536, limit - contents.count))
        let count = try SystemCall.read(descriptor, into: &buffer, at: offset + contents.count)
        if count == 0 { break }
        contents += buffer[..<count]
      }
      return contents
    }
  }

  /// Creates a directory.
  /// - Returns: false if there is something at `path` already
  public static func makeDirectory(_ path: String) throws(FileError) -> Bool {
    do { try SystemCall.makeDirectory(path) } catch {
      if error == .fileExists { return false }
      throw FileError(path: path, operation: .create, errno: error)
    }
    return true
  }

  /// Creates a directory and those above it that are missing; one that exists is fine.
  public static func createDirectories(_ path: String) throws(FileError) {
    if try kind(of: path) == .directory { return }
    let above = parent(of: path)
    if above != path { try createDirectories(above) }
    // Someone else may have made it meanwhile.
    if try !makeDirectory(path), try kind(of: path) != .directory {
      throw FileError(path: path, operation: .create, errno: .fileExists)
    }
  }

  /// Removes a file, or a directory with all that is in it; no symbolic link is followed on the way
  /// down. Nothing at `path` is fine.
  public static func removeTree(_ path: String) throws(FileError) {
    try remove(path, in: AT_FDCWD, path: path)
  }

  private static func remove(_ name: String, in parent: Int32, path: String) throws(FileError) {
    do {
      return try SystemCall.unlink(name, in: parent)
    } catch .noSuchFileOrDirectory {
      return
    } catch .isDirectory {
      // Handled below.
    } catch {
      throw FileError(path: path, operation: .remove, errno: error)
    }
    // Going down by descriptors: nobody can put a link in the place of a directory already entered.
    let directory = try FileError.attempt(.list, path) { () throws(Errno) in
      try SystemCall.open(name, flags: O_RDONLY | O_DIRECTORY | O_NOFOLLOW, in: parent)
    }
    let names: [String]
    do {
      names = try SystemCall.names(in: directory)
    } catch {
      throw FileError(path: path, operation: .list, errno: error)
    }
    for name in names {
      try remove(name, in: directory.number, path: join(path, name))
    }
    try FileError.attempt(.remove, path) { () throws(Errno) in
      try SystemCall.unlink(name, in: parent, isDirectory: true)
    }
  }

  /// Waits until a file's bytes, or a directory's names, are on the disk.
  public static func synchronize(_ path: String) throws(FileError) {
    try FileError.attempt(.synchronize, path) { () throws(Errno) in
      try SystemCall.synchronize(
        SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | O_NOFOLLOW))
    }
  }

  /// Waits until a directory's names are on the disk; `path` may be a link to it.
  public static func synchronizeDirectory(_ path: String) throws(FileError) {
    try FileError.attempt(.synchronize, path) { () throws(Errno) in
      try SystemCall.synchronize(SystemCall.open(path, flags: O_RDONLY | O_DIRECTORY))
    }
  }

  /// ``synchronize(_:)`` for every file and directory below `directory`, and itself.
  public static func synchronizeTree(_ directory: String) throws(FileError) {
    for name in try names(in: directory) {
      let path = join(directory, name)
      switch try kind(of: path, symlinks: .refuse) {
      case .directory: try synchronizeTree(path)
      case .regular: try synchronize(path)
      default: break
      }
    }
    try synchronize(directory)
  }

  /// A new file without a name, to be read and written: whatever ends this process, nothing of it stays.
  /// - Parameter directory: on whose file system it is
  /// - Returns: its descriptor, which the caller closes
  public static func openNameless(in directory: String) throws(FileError) -> Int32 {
    let path = join(directory, ".scratch-\(ThisProcess.identifier)-\(UInt32.random(in: 0...UInt32.max))")
    return try FileError.attempt(.create, path) { () throws(Errno) in
      let file = try SystemCall.open(path, flags: O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
      try SystemCall.unlink(path)
      return try SystemCall.duplicate(file)
    }
  }

  /// The path, or the nearest directory above it that is there.
  public static func nearestExisting(_ path: String) throws(FileError) -> String {
    var path = path
    while try !exists(path) { path = parent(of: path) }
    return path
  }

  /// `name` inside `directory`.
  public static func join(_ directory: String, _ name: String) -> String {
    FilePath(directory).appending(name).string
  }

  /// The directory that holds `path`.
  public static func parent(of path: String) -> String {
    let parent = FilePath(path).removingLastComponent()
    return parent.isEmpty ? "." : parent.string
  }

  /// The last component of `path`.
  public static func name(of path: String) -> String {
    FilePath(path).lastComponent?.string ?? path
  }
}
