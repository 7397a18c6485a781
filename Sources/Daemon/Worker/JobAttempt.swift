import SystemIO

/// One worker's go at a job that others may be at: a directory of its own within the job's.
///
/// A scheduler starts a job elsewhere when it hears no more of a host, on which the first worker may go on all the same. Each
/// writes into its own directory, reads of the others' what is whole, and the first to finish has its result renamed to
/// the job's. They come to the same bytes, so it does not matter which.
public struct JobAttempt: Sendable, Equatable {
  /// From 1.
  public let number: Int
  public let directory: String

  private static let prefix = "attempt."
  static let eventsName = "events"

  private init(_ number: Int, in job: String) {
    self.number = number
    directory = FileSystem.join(job, "\(Self.prefix)\(number)")
  }

  /// What the worker says, an event a line.
  public var events: String { FileSystem.join(directory, Self.eventsName) }
  var journal: String { FileSystem.join(directory, "journal") }

  /// Those that have been begun, in order.
  /// - Parameter job: the job's directory
  /// - Throws: ``FileError``
  public static func all(in job: String) throws(FileError) -> [JobAttempt] {
    guard try FileSystem.exists(job) else { return [] }
    return try FileSystem.names(in: job)
      .compactMap { $0.hasPrefix(prefix) ? Int($0.dropFirst(prefix.count)) : nil }
      .sorted().map { JobAttempt($0, in: job) }
  }

  /// Begins the next one.
  /// - Throws: ``FileError``
  public static func begin(in job: String) throws(FileError) -> JobAttempt {
    let earlier = try all(in: job)
    var number = (earlier.last?.number ?? 0) + 1
    while true {
      let attempt = JobAttempt(number, in: job)
      // A name is given once, on any file system: who makes the directory has it.
      if try FileSystem.makeDirectory(attempt.directory) {
        for other in earlier { try attempt.clear(other) }
        return attempt
      }
      number += 1
    }
  }

  /// Removes what an earlier attempt has made, all but its journal and what it has said. A worker that is still at it must
  /// not publish what is half removed: first it is no longer where it looks for it.
  private func clear(_ other: JobAttempt) throws(FileError) {
    let kept = [FileSystem.name(of: other.journal), Self.eventsName]
    for name in try FileSystem.names(in: other.directory) where !kept.contains(name) {
      let trash = FileSystem.join(directory, ".of-\(other.number)-\(name)")
      try FileSystem.move(FileSystem.join(other.directory, name), to: trash)
      try FileSystem.removeTree(trash)
    }
  }
}
