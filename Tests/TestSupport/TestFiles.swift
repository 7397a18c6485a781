import SystemIO

/// Where the files are that tests read.
public enum TestFiles {
  /// The repository, from where this file was compiled.
  private static var repository: String {
    var path = #filePath
    for _ in 0..<3 { path = FileSystem.parent(of: path) }
    return path
  }

  /// A file of the repository itself, by its path from the root.
  public static func repositoryFile(_ path: String) -> String {
    FileSystem.join(repository, path)
  }

  /// The folder of a checkpoint among the fixtures.
  public static func model(_ name: String) -> String {
    FileSystem.join(repository, "Tests/Fixtures/models/\(name)")
  }

  /// The configuration of a checkpoint among the fixtures as transformers writes it.
  public static func savedConfiguration(_ name: String) -> String {
    FileSystem.join(repository, "Tests/Fixtures/saved/\(name).json")
  }

  /// A file of torch.save among the fixtures.
  public static func torch(_ name: String) -> String {
    FileSystem.join(repository, "Tests/Fixtures/torch/\(name)")
  }

  /// A checkpoint in 8-bit floats among the fixtures.
  public static func fp8(_ name: String) -> String {
    FileSystem.join(repository, "Tests/Fixtures/fp8/\(name)")
  }

  /// A GGUF file, or what is expected of it, among the fixtures.
  public static func gguf(_ name: String) -> String {
    FileSystem.join(repository, "Tests/Fixtures/gguf/\(name)")
  }

  /// The names of all checkpoints among the fixtures.
  public static let models: [String] = {
    let names = try? FileSystem.names(in: FileSystem.join(repository, "Tests/Fixtures/models"))
    return (names ?? []).sorted()
  }()

  /// The names of all GGUF files among the fixtures, without their ending.
  public static let ggufs: [String] = {
    let names = try? FileSystem.names(in: FileSystem.join(repository, "Tests/Fixtures/gguf"))
    return (names ?? []).filter { $0.hasSuffix(".gguf") }.map { String($0.dropLast(5)) }.sorted()
  }()

  /// A file of the reference data, which lie outside the repository; nil where they are not at hand.
  /// `QUANTEASE_SHARED` names their folder, and otherwise it is `shared` beside the repository.
  public static func reference(_ name: String) -> String? {
    let folder =
      TestEnvironment.variable("QUANTEASE_SHARED")
      ?? FileSystem.join(FileSystem.parent(of: repository), "shared")
    let path = FileSystem.join(folder, "reference/\(name)")
    return (try? FileSystem.exists(path)) == true ? path : nil
  }
}
