import SystemIO

/// What has come of a job's source; the raw value is what its name in `incoming/` then ends in.
enum SourceStanding: String, CaseIterable {
  case working, done, failed
}

/// Where the source of a job stands.
///
/// The claim of a drop is the job's row and nothing else, so whatever may be read can be taken. Moves come after it,
/// to put a source out of harm's way and under a name that tells what came of it: to a folder of its own where the
/// kernel allows that, which it does only for a directory that this process may write to, as its `..` changes; else to
/// another name in `incoming/`, for which the right to write there is enough. A mount point or a read-only file system
/// allows neither: such a source keeps its name, and the inode in the row keeps it from being taken twice.
///
/// Rows do not say where a source is. The directories do, whatever a daemon that ended was about to do.
extension Spool {
  /// The place of a source in the folder for its standing.
  func place(_ id: String, _ standing: SourceStanding) -> String {
    let folder =
      switch standing {
      case .working: working
      case .done: done
      case .failed: failed
      }
    return FileSystem.join(folder, id)
  }

  /// The place of a source that cannot leave `incoming/`.
  private func keptPlace(_ id: String, _ standing: SourceStanding) -> String {
    FileSystem.join(incoming, "\(id).\(standing.rawValue)")
  }

  /// Where a source is put, in the order in which it is tried.
  func places(_ id: String, _ standing: SourceStanding) -> [String] {
    [place(id, standing), keptPlace(id, standing)]
  }

  /// The job's source; nil if it is nowhere.
  /// - Throws: ``FileError``
  public func source(of job: JobRecord) throws(FileError) -> String? {
    // The folder for failed jobs last: the reason may stand there without the source.
    let places = places(job.id, .working) + places(job.id, .done) + [keptPlace(job.id, .failed)]
    for place in places where try FileSystem.exists(place) { return place }
    let dropped = FileSystem.join(incoming, job.name)
    if let inode = job.inode, (try? FileSystem.stamp(of: dropped).stamp.inode) == inode {
      // A file system gives the inode of what was removed to the next directory. A job that is over is not at work on
      // what stands there: if anything in it is another, it is another drop.
      guard job.phase.isOver, let contents = job.contents else { return dropped }
      if (try? DropContents(directory: dropped))?.digest == contents { return dropped }
    }
    let failed = place(job.id, .failed)
    return try FileSystem.exists(failed) ? failed : nil
  }

  /// The job whose source stands in `incoming/` under a name that says so, e.g. `<id>.working`.
  static func job(keptUnder name: String, _ standing: SourceStanding? = nil) -> String? {
    for standing in standing.map({ [$0] }) ?? SourceStanding.allCases
    where name.hasSuffix(".\(standing.rawValue)") {
      let id = String(name.dropLast(standing.rawValue.count + 1))
      if JobName.name(of: id) != id { return id }
    }
    return nil
  }

  /// The drops that are jobs' already, by their names.
  public static func claims(of jobs: [JobRecord]) -> [String: [DropFolder.Claim]] {
    var claims: [String: [DropFolder.Claim]] = [:]
    for job in jobs {
      guard let inode = job.inode else { continue }
      // The source of a job that is over is a new drop as soon as anything in it is another.
      claims[job.name, default: []].append(
        .init(inode: inode, contents: job.phase.isOver ? job.contents : nil))
    }
    return claims
  }
}
