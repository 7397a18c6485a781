import Glibc
import Synchronization
import SystemPackage

/// A directory that appears at its path only when it is complete.
///
/// The work goes into a hidden directory beside the wanted one; ``publish()`` brings it to the disk and
/// gives it its name, all at once. Unpublished, it goes with its object, so that a run that fails
/// leaves nothing at the output path.
public final class StagingDirectory: Sendable {
  /// Where the directory is to stand.
  public let outputPath: String
  /// Where the work goes until then.
  public let path: String
  private let isOpen = Mutex(true)

  /// Creates the hidden directory, and those above it that are missing.
  /// - Throws: ``FileError``, EEXIST if there is something at `outputPath`.
  public init(for outputPath: String) throws(FileError) {
    // Normalised: a trailing slash must not put the staging inside the output.
    let output = FilePath(outputPath).lexicallyNormalized()
    guard let name = output.lastComponent, name.kind == .regular else {
      throw FileError(path: outputPath, operation: .create, errno: .fileExists)
    }
    self.outputPath = output.string
    try Self.refuseWhatExists(at: self.outputPath)
    let parent = FileSystem.parent(of: output.string)
    try FileSystem.createDirectories(parent)
    // What publishing will need is tried now, and not after hours of work.
    try FileSystem.synchronizeDirectory(parent)
    let staging = FileSystem.join(parent, ".\(name.string)\(Self.infix)\(getpid())")
    path = staging
    try FileError.attempt(.create, staging) { () throws(Errno) in
      try SystemCall.makeDirectory(staging)
    }
  }

  private static let infix = ".partial-"

  /// Whether a name is that of a hidden directory whose process is gone, as far as this machine tells: another one may
  /// share the file system.
  public static func isAbandoned(_ name: String) -> Bool {
    guard name.hasPrefix("."),
      let digits = name.split(separator: Self.infix, omittingEmptySubsequences: false).last,
      digits.count < name.count, let process = pid_t(digits), process > 0
    else { return false }
    do {
      try SystemCall.kill(process, 0)
      return false
    } catch { return error == .noSuchProcess }
  }

  deinit {
    // An error has nobody to go to here; who wants to hear of it calls `discard()`.
    try? discard()
  }

  /// Puts the directory in its place, with everything in it on the disk.
  /// - Throws: ``FileError``, EEXIST if something has come to stand at the output path meanwhile.
  public func publish() throws(FileError) {
    try isOpen.withLock { isOpen throws(FileError) in
      precondition(isOpen, "the staging directory is published or discarded already")
      try FileSystem.synchronizeTree(path)
      try Self.refuseWhatExists(at: outputPath)
      // Between the look and the renaming nothing can get lost: a directory's name never replaces a
      // file, nor a directory unless it is empty.
      try FileError.attempt(.rename, outputPath) { () throws(Errno) in
        try SystemCall.rename(path, to: outputPath)
      }
      isOpen = false
    }
    try FileSystem.synchronizeDirectory(FileSystem.parent(of: outputPath))
  }

  /// Puts files of the directory in the place of the whole, each under a name beside the wanted one, and removes the rest.
  /// - Parameter files: what each file is called in the directory, and there; the last one is taken for the sign that all
  ///   are complete
  /// - Throws: ``FileError``, EEXIST if there is something under one of the names
  public func publish(_ files: [(name: String, published: String)]) throws(FileError) {
    let parent = FileSystem.parent(of: outputPath)
    try isOpen.withLock { isOpen throws(FileError) in
      precondition(isOpen, "the staging directory is published or discarded already")
      try FileSystem.synchronizeTree(path)
      for file in files { try Self.refuseWhatExists(at: FileSystem.join(parent, file.published)) }
      var moved: [String] = []
      do throws(FileError) {
        for file in files {
          let target = FileSystem.join(parent, file.published)
          try FileSystem.move(FileSystem.join(path, file.name), to: target)
          moved.append(target)
        }
      } catch {
        for target in moved { try? FileSystem.removeTree(target) }
        throw error
      }
      isOpen = false
    }
    try FileSystem.removeTree(path)
  }

  /// Removes the directory with all that is in it, unless it is published.
  public func discard() throws(FileError) {
    try isOpen.withLock { isOpen throws(FileError) in
      guard isOpen else { return }
      try FileSystem.removeTree(path)
      isOpen = false
    }
  }

  /// Removes what is not published, for a process that is about to end while another thread still makes files.
  /// - Returns: false if it is published
  public func abandon() -> Bool {
    // The process ends whether or not its files could be removed. A directory that gains a file cannot be; once it is
    // gone, none can be made.
    let isPublished = isOpen.withLock { !$0 } && (try? FileSystem.exists(path)) == false
    if isPublished { return false }
    for _ in 0..<1_000 where (try? FileSystem.exists(path)) ?? false { try? FileSystem.removeTree(path) }
    return true
  }

  private static func refuseWhatExists(at path: String) throws(FileError) {
    if try FileSystem.kind(of: path, symlinks: .refuse) != nil {
      throw FileError(path: path, operation: .create, errno: .fileExists)
    }
  }
}
