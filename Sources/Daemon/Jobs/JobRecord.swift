import FoundationEssentials

/// What the state database keeps of a job.
public struct JobRecord: Codable, Sendable, Equatable {
  public enum Phase: String, Codable, Sendable {
    /// Claimed, and waits for its turn.
    case queued
    /// A worker is at it, or was when the daemon ended.
    case running
    /// Complete, and on its way to the output folder.
    case publishing
    case published, failed, cancelled

    public var isOver: Bool { self == .published || self == .failed || self == .cancelled }
  }

  /// Names the job's directories; see ``JobName``.
  public let id: String
  /// The name that the checkpoint was dropped with.
  public let name: String
  public var phase = Phase.queued
  /// The directory's inode, by which it is told from another one under its name; nil in rows of earlier versions.
  public let inode: UInt64?
  /// ``DropContents/digest`` when it was claimed.
  public var contents: String?
  /// Seconds since 1970, as all times here.
  public let arrivedAt: Double
  public var startedAt: Double?
  public var finishedAt: Double?
  /// Workers that were started since the last one that got further by a linear.
  public var attempts = 0
  /// Seconds that workers have been at it, up to ``workedSince``.
  public var secondsWorked = 0.0
  /// While a worker is at it: since when its time is not yet in ``secondsWorked``.
  public var workedSince: Double?
  public var digest: String?
  /// The path of the result, known when it is about to be published.
  public var output: String?
  /// The job whose result does for this one, which was the same.
  public var madeBy: String?
  public var plan: WorkerEvent.Plan?
  public var linears: [WorkerEvent.Linear] = []
  public var secondsRemaining: Double?
  /// Where a worker is that repeats what an earlier one had done.
  public var catchingUp: WorkerEvent.CatchingUp?
  public var step = ""
  public var pausedBecause: String?
  /// When a job that the machine stands in the way of is tried again.
  public var retryAt: Double?
  /// What a full file system would have to have.
  public var shortage: JobFailure.Shortage?
  /// Since when a person holds it back.
  public var heldSince: Double?
  /// The greater before the smaller; nil is 0.
  public var priority: Int?
  /// When it last got anything done.
  public var lastProgressAt: Double?
  /// What its workers ended of since it last got further, the last one last.
  public var breakdowns: [String]?
  public var summary: WorkerEvent.Summary?
  public var failure: JobFailure?
  /// Where Slurm has it; nil where it is the daemon's own.
  public var slurm: SlurmJob?
  /// The number of the last attempt whose directory is gone; nil where none is.
  public var lastAttempt: Int?
  /// Whether the programs that want to hear of its end are still to be told; nil if not.
  var isUntold: Bool?
  /// What looked wrong and did not stop the job; nil as long as nothing did.
  public var warnings: [String]?

  public init(id: String, name: String, inode: UInt64? = nil, contents: String? = nil, arrivedAt: Double) {
    self.id = id
    self.name = name
    self.inode = inode
    self.contents = contents
    self.arrivedAt = arrivedAt
  }

  /// Waits for its turn and nothing else, and a person may hold it back.
  public var isHeld: Bool { heldSince != nil && phase == .queued }

  /// Slurm has it, or is being given it, and its result is wanted.
  var isWithSlurm: Bool { phase == .running && slurm?.isUnwanted == false }

  private static let warningLimit = 100

  /// Notes a warning. A worker that goes on may say again what another has said.
  mutating func warn(_ text: String) {
    let known = warnings ?? []
    if known.count < Self.warningLimit, !known.contains(text) { warnings = known + [text] }
  }

  /// The mean relative error of every layer's linears that are done; nil where none is.
  public var errorPerLayer: [Double?] {
    var sums = [(error: Double, count: Int)](repeating: (0, 0), count: plan?.layerCount ?? 0)
    for linear in linears where sums.indices.contains(linear.layer) {
      sums[linear.layer].error += linear.relativeError
      sums[linear.layer].count += 1
    }
    return sums.map { $0.count > 0 ? $0.error / Double($0.count) : nil }
  }
}

extension [JobRecord] {
  /// In the order in which they are worked on: by priority, then by arrival.
  public var inTurn: [JobRecord] {
    sorted { (-($0.priority ?? 0), $0.arrivedAt, $0.id) < (-($1.priority ?? 0), $1.arrivedAt, $1.id) }
  }
}

/// A job's identifier: when it was claimed, four digits against chance, and the name of the drop.
public enum JobName {
  /// A file's name may have 255 bytes, and an identifier stands in longer ones: that of the lock beside the
  /// activation cache of a job's rank adds 77 bytes to its own 22.
  private static let nameByteLimit = 156

  public static func identifier(for name: String, at time: Date, random: UInt16) -> String {
    let digits = String(random, radix: 16)
    let short = shortened(name, byteLimit: nameByteLimit)
    return "\(stamp(time))-\(String(repeating: "0", count: 4 - digits.count))\(digits)-\(short)"
  }

  /// As much of a name as fits into so many bytes.
  static func shortened(_ name: String, byteLimit: Int) -> String {
    var short = name
    while short.utf8.count > byteLimit { short.removeLast() }
    return short
  }

  /// The drop's name in an identifier; the whole of one that is not of this kind.
  public static func name(of identifier: String) -> String {
    let parts = identifier.split(separator: "-", maxSplits: 2, omittingEmptySubsequences: false)
    return parts.count == 3 && parts[0].count == 16 && parts[1].count == 4 ? String(parts[2]) : identifier
  }

  /// When a job was claimed, by its identifier, in seconds since 1970; nil if that is none.
  static func time(of identifier: String) -> Double? {
    let style = Date.ISO8601FormatStyle().dateSeparator(.omitted).timeSeparator(.omitted)
    return (try? style.parse(String(identifier.prefix(16))))?.timeIntervalSince1970
  }

  /// `20261123T231502Z`
  private static func stamp(_ time: Date) -> String {
    String(time.formatted(.iso8601.dateSeparator(.omitted).timeSeparator(.omitted)))
  }
}
