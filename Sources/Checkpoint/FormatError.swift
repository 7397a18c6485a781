/// A file that breaks a rule of its format: an error in the data, after sysexits.h.
public protocol FormatError: Error, CustomStringConvertible {
  var file: String { get }
  /// What is wrong with it.
  var fact: String { get }
  /// What a person can do.
  var mend: String { get }
}

extension FormatError {
  /// The process's exit status.
  public var exitCode: Int32 { 65 }

  public var description: String { "\(file): \(fact); \(mend)" }
}

/// What a clone without git-lfs has in place of a large file.
enum GitLFSPointer {
  static let fact = "the file is a git-lfs pointer to the weights, and not the weights"
  static let mend = "fetch them in the repository that it is of: git lfs pull"
}
