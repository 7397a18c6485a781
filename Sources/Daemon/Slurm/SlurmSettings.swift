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
  /// The plug-in of srun by which ranks find one another; nil for PMIx.
  public var mpi: String?
  public var timeLimit = TimeLimit.partition
  /// More options of sbatch, each as one word.
  public var options: [String] = []
  /// `quanteased` on the nodes; where this one stands, if nil.
  public var program: String?

  public init() {}

  public static let standardMPI = "pmix"

  /// When Slurm ends a job, which then goes on in another turn.
  public enum TimeLimit: Sendable, Equatable {
    /// As the partition has it.
    case partition
    /// Some times as long as the job would take on the daemon's host.
    case planned
    case minutes(Int)

    static let expected = "none, plan, or a whole number of minutes from 1"

    init?(_ text: String) {
      switch text {
      case "none": self = .partition
      case "plan": self = .planned
      default:
        guard let minutes = Int(text), (1...10_000_000).contains(minutes) else { return nil }
        self = .minutes(minutes)
      }
    }

    var text: String {
      switch self {
      case .partition: "none"
      case .planned: "plan"
      case .minutes(let minutes): "\(minutes)"
      }
    }
  }

  /// Whether a job with an option of sbatch's is still one that the daemon finds again, and one job.
  static func isPossible(option: String) -> Bool {
    guard option.hasPrefix("-"), !option.contains("\0") else { return false }
    // Of one letter those that take a value: behind it no other option can hide.
    if !option.hasPrefix("--") { return "ABCGLNSpqtwxc".contains(option.dropFirst().first ?? "-") }
    let name = option.dropFirst(2).prefix { $0 != "=" }
    let own = [
      "array", "clusters", "dependency", "job-name", "output", "parsable", "wrap", "no-requeue",
      "wait", "quiet", "test-only", "help", "usage", "version",
    ]
    // Long options may be cut short.
    return name.count > 1 && !own.contains { $0.hasPrefix(name) }
  }

  /// As sbatch takes them.
  var arguments: [String] {
    let named = [
      ("partition", partition), ("account", account), ("qos", qos), ("constraint", constraint),
    ]
    let time = if case .minutes(let minutes) = timeLimit { ["--time=\(minutes)"] } else { [String]() }
    return named.compactMap { name, value in value.map { "--\(name)=\($0)" } } + time + options
  }
}
