import SystemIO

/// An empty directory that goes with its object.
public final class TemporaryDirectory: Sendable {
  public let path: String

  /// - Parameter isInMemory: For tests of many small files that no disk should slow down; where the system
  ///   has no such place, the directory is as any other.
  public init(isInMemory: Bool = false) throws {
    let memory = "/dev/shm"
    let hasMemory = try isInMemory && FileSystem.kind(of: memory) == .directory
    let parent = hasMemory ? memory : TestEnvironment.temporaryDirectory
    let name = "quantease-test-\(String(UInt64.random(in: 0...UInt64.max), radix: 36))"
    path = FileSystem.join(parent, name)
    try FileSystem.createDirectories(path)
  }

  deinit { try? FileSystem.removeTree(path) }

  /// The path of `name` inside.
  public func file(_ name: String) -> String { FileSystem.join(path, name) }

  /// Writes a file and gives its path.
  @discardableResult
  public func write(_ bytes: [UInt8], to name: String) throws -> String {
    try OutputFile(creating: file(name)).write(bytes, at: 0)
    return file(name)
  }

  /// Writes a text file and gives its path.
  @discardableResult
  public func write(_ text: String, to name: String) throws -> String {
    try write(Array(text.utf8), to: name)
  }
}
