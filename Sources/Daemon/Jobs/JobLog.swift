import FoundationEssentials
import SystemIO

/// What the daemon's log says of one job, with times, in a file of its own: it is among the job's files while there is
/// work, and afterwards beside the result, or beside the reason why there is none.
struct JobLog {
  static let fileName = "quantease_job.log"

  let path: String

  /// - Parameter directory: where the file is, or is to be
  init(directory: String) { path = FileSystem.join(directory, Self.fileName) }

  /// A line that cannot be written is in the daemon's log all the same, and costs no job anything.
  func write(_ priority: Log.Priority, _ event: String, _ fields: [Log.Field]) {
    try? OutputFile.append(Log.line(Log.dated(priority, Date()), event, fields), to: path)
  }

  /// Copies what there is into `directory`, in the place of what is there.
  /// - Returns: whether there is anything
  @discardableResult func copy(into directory: String) throws(FileError) -> Bool {
    guard try FileSystem.exists(path) else { return false }
    let place = JobLog(directory: directory).path
    try FileSystem.removeTree(place)
    try FileSystem.copyFile(path, to: place)
    return true
  }
}
