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

  private static let (prefix, retiredPrefix) = ("attempt.", "retired.")
  static let eventsName = "events"

  private init(_ number: Int, in job: String, _ prefix: String = Self.prefix) {
    self.number = number
    directory = FileSystem.join(job, "\(prefix)\(number)")
  }

  /// What the worker says, an event a line.
  public var events: String { FileSystem.join(directory, Self.eventsName) }
  var journal: String { FileSystem.join(directory, "journal") }

  /// Those that have been begun, in order.
  /// - Parameter job: the job's directory
  /// - Throws: ``FileError``
  public static func all(in job: String) throws(FileError) -> [JobAttempt] { try all(in: job, prefix) }

  /// The journals of all of them, and of those that are retired, in order.
  /// - Throws: ``FileError``
  static func journals(in job: String) throws(FileError) -> [String] {
    try (all(in: job, retiredPrefix) + all(in: job)).map(\.journal)
  }

  private static func all(in job: String, _ prefix: String) throws(FileError) -> [JobAttempt] {
    guard try FileSystem.exists(job) else { return [] }
    return try FileSystem.names(in: job)
      .compactMap { $0.hasPrefix(prefix) ? Int($0.dropFirst(prefix.count)) : nil }
      .sorted().map { JobAttempt($0, in: job, prefix) }
  }

  /// Has nothing come of any attempt so far, whose worker may still be at it, as what the job is to come to may be something
  /// else from now on. What they have journalled is kept: it says of what job it is.
  /// - Throws: ``FileError``
  static func retireAll(in job: String) throws(FileError) {
    for attempt in try all(in: job) {
      let retired = JobAttempt(attempt.number, in: job, retiredPrefix)
      if try FileSystem.exists(retired.directory) {
        // Its worker has made the directory anew.
        try FileSystem.removeTree(attempt.directory)
      } else {
        try FileSystem.move(attempt.directory, to: retired.directory)
      }
    }
  }

  /// The greatest number so far; 0 where there is none.
  /// - Throws: ``FileError``
  static func lastNumber(in job: String) throws(FileError) -> Int {
    max(try all(in: job).last?.number ?? 0, try all(in: job, retiredPrefix).last?.number ?? 0)
  }

  /// Begins the next one.
  /// - Parameter last: the number of the last one whose directory is gone
  /// - Throws: ``FileError``
  public static func begin(in job: String, after last: Int = 0) throws(FileError) -> JobAttempt {
    let earlier = try all(in: job)
    // A number is given once: a worker that nobody wants any more would find its directory again.
    var number = max(last, try lastNumber(in: job)) + 1
    while true {
      let attempt = JobAttempt(number, in: job)
      // A name is given once, on any file system: who makes the directory has it.
      if try FileSystem.makeDirectory(attempt.directory) {
        // Made once: a directory of that name without it is one that a retired worker made anew.
        try AtomicFile.write("", to: attempt.events)
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
    do {
      for name in try FileSystem.names(in: other.directory) where !kept.contains(name) {
        let trash = FileSystem.join(directory, ".of-\(other.number)-\(name)")
        try FileSystem.move(FileSystem.join(other.directory, name), to: trash)
        try FileSystem.removeTree(trash)
      }
    } catch {
      // Its worker, or another one, has moved or written something meanwhile; what stays goes with the job's directory.
      guard
        [.noSuchFileOrDirectory, .directoryNotEmpty, .resourceBusy, .staleNFSFileHandle].contains(error.errno)
      else {
        throw error
      }
    }
  }

  /// Whether nobody waits for what comes of this one any more: its directory is gone or retired, or there is a later one.
  public var isOutdated: Bool {
    guard let all = try? Self.all(in: FileSystem.parent(of: directory)) else { return false }
    return all.last?.number != number
  }
}
