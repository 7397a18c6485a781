/// Where a run keeps what it has done, so that another process can go on with it.
public struct ResumePlace: Sendable, Equatable {
  /// The file that the quantized linears are written to, one after the other.
  public var journal: String
  /// The journals of other runs of the same job, which are read and not written to: theirs may not have ended.
  public var earlierJournals: [String]
  /// The activation cache's file, which stays when the run ends early. It is worth keeping while the machine is up:
  /// nobody waits until it is on the disk.
  public var cache: String
  /// What makes the job this one and no other: a digest of checkpoint, settings and tokens.
  public var identity: String

  public init(journal: String, earlierJournals: [String] = [], cache: String, identity: String) {
    self.journal = journal
    self.earlierJournals = earlierJournals
    self.cache = cache
    self.identity = identity
  }

  /// The kernels that the run was begun with, by ``ComputeBackend/kernels(for:)``: others would come to other bits.
  /// - Returns: nil where nothing is begun
  /// - Throws: ``FileError``
  public var kernels: String? {
    get throws { try ResumeJournal.head(of: self)?.kernels }
  }
}
