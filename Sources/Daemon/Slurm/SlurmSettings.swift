/// Who has jobs done.
public enum JobQueue: String, Sendable, CaseIterable {
  /// The daemon itself, one after the other on this machine.
  case local
  /// Slurm, each on a host that it chooses.
  case slurm
}

/// What Slurm is told of every job, beside what the job needs.
public struct SlurmSettings: Sendable, Equatable {
  /// nil where Slurm's own choice is right.
  public var partition: String?
  public var account: String?
  public var qos: String?
  public var constraint: String?
  /// Minutes after which a job is ended, which then goes on in another turn.
  public var minutes: Int?
  /// More options of sbatch, each as one word.
  public var options: [String] = []
  /// `quanteased` on the nodes; where this one stands, if nil.
  public var program: String?

  public init() {}

  /// As sbatch takes them.
  var arguments: [String] {
    let named = [
      ("partition", partition), ("account", account), ("qos", qos), ("constraint", constraint),
      ("time", minutes.map(String.init)),
    ]
    return named.compactMap { name, value in value.map { "--\(name)=\($0)" } } + options
  }
}
