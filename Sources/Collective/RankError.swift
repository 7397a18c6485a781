/// What keeps the ranks of a job from working together.
public enum RankError: Error, Sendable, Equatable, CustomStringConvertible {
  /// MPI cannot be had.
  case noLibrary(path: String?, reason: String)
  /// The launcher started another number of ranks than were asked for.
  case wrongCount(asked: Int, found: Int, library: String)
  /// Two ranks would not compute the same.
  case differs(RankName, what: String, value: String, chief: RankName, chiefValue: String)
  case failed(RankName, reason: String, status: Int32)
  case silent(RankName, missing: String, seconds: Int)
  case gone(RankName)
  case unexpected(RankName, expected: String, found: String)
  case transport(operation: String, code: Int)

  public var description: String {
    switch self {
    case .noLibrary(let path?, let reason):
      "\(path): \(reason); --ranks takes MPI through this library: build it with 'tools/build-mpi', by the mpicc of the "
        + "MPI whose mpirun or srun starts the ranks"
    case .noLibrary(nil, let reason):
      "\(reason); --ranks takes MPI through a library of a few kilobytes: build it with 'tools/build-mpi', or say where it "
        + "is by QUANTEASE_MPI"
    case .wrongCount(let asked, let found, let library):
      "--ranks \(asked), but the launcher started \(found) for \(library): start the command by the mpirun of that MPI, or "
        + "by srun with the plug-in that it needs (--mpi=pmix for OpenMPI, --mpi=pmi2 for MPICH)"
    case .differs(let rank, let what, let value, let chief, let chiefValue):
      "\(rank) has \(what) \(value), and \(chief) has \(chiefValue): they would not compute the same; give all ranks one "
        + "version, one kind of processor, or OPENBLAS_CORETYPE, and one checkpoint"
    case .failed(let rank, let reason, _): "\(rank): \(reason)"
    case .silent(let rank, let missing, let seconds):
      "\(rank) has not been heard of for \(seconds) s; \(missing) is missing: look whether its host and the network are "
        + "up, and start the job again"
    case .gone(let rank): "\(rank) is gone; start the job again"
    case .unexpected(let rank, let expected, let found):
      "\(rank) sent \(found), where \(expected) was due: the ranks do not follow one schedule; please report it"
    case .transport(let operation, let code): "MPI: \(operation) failed with code \(code)"
    }
  }

  /// By sysexits(3).
  public var exitCode: Int32 {
    switch self {
    case .noLibrary, .wrongCount, .differs: 78
    case .failed(_, _, let status): status
    case .silent, .gone, .transport: 75
    case .unexpected: 70
    }
  }
}

/// A rank, for messages.
public struct RankName: Sendable, Equatable, Codable, CustomStringConvertible {
  public let rank: Int
  public let host: String

  public init(rank: Int, host: String) {
    self.rank = rank
    self.host = host
  }

  public var description: String { host.isEmpty ? "rank \(rank)" : "rank \(rank) (\(host))" }
}
