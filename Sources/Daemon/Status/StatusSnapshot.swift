import Export
import FoundationEssentials

/// What the daemon is doing, at one moment: `quantease status --json`, the page and the metrics are
/// functions of it. It is made from the spool and the state database, so it can be made without a daemon.
public struct StatusSnapshot: Codable, Sendable, Equatable {
  /// Whether a daemon holds the spool.
  public enum Service: String, Codable, Sendable { case running, stopped }

  public var version: String
  public var service: Service
  /// One line for people: what is being done and how far it is, or what is waited for.
  public var stateText: String
  public var current: Current?
  /// In the order in which they will be taken.
  public var queue: [Queued]
  /// Newest first.
  public var finished: [Finished]
  /// How many jobs are over; ``finished`` has the newest of them. Nil from a daemon of an earlier version.
  public var finishedCount: Int?
  /// Why no job is worked on though a daemon may run.
  public var hold: Hold?
  /// What the activation cache takes on its disk; nil, as with the two below, where whoever asks may not look.
  public var cacheBytes: Int?
  public var cacheFreeBytes: Int?
  public var spoolFreeBytes: Int?
  public var counters: Counters
  /// Seconds since 1970.
  public var madeAt: Double

  public init(
    version: String, service: Service, stateText: String, current: Current? = nil, queue: [Queued] = [],
    finished: [Finished] = [], hold: Hold? = nil, cacheBytes: Int? = nil, cacheFreeBytes: Int? = nil,
    spoolFreeBytes: Int? = nil,
    counters: Counters = Counters(), madeAt: Double
  ) {
    self.version = version
    self.service = service
    self.stateText = stateText
    self.current = current
    self.queue = queue
    self.finished = finished
    self.hold = hold
    self.cacheBytes = cacheBytes
    self.cacheFreeBytes = cacheFreeBytes
    self.spoolFreeBytes = spoolFreeBytes
    self.counters = counters
    self.madeAt = madeAt
  }
}

extension StatusSnapshot {
  /// A time at which no job is worked on, because a person or the schedule wants it so.
  public struct Hold: Codable, Sendable, Equatable {
    public var reason: String
    /// Seconds since 1970; nil if nobody knows.
    public var until: Double?

    /// What a person wants so.
    public static let byHand = Hold(
      reason: "held back by 'quantease pause'; 'quantease resume' lets it go on")

    public init(reason: String, until: Double? = nil) {
      self.reason = reason
      self.until = until
    }

    public var text: String { reason + (until.map { ", until \(Schedule.clock($0))" } ?? "") }
  }

  /// The space that a job waits for.
  public struct Shortage: Codable, Sendable, Equatable {
    public var path: String
    public var neededBytes: Int?
    /// On the path's file system, now.
    public var freeBytes: Int?

    public init(path: String, neededBytes: Int? = nil, freeBytes: Int? = nil) {
      self.path = path
      self.neededBytes = neededBytes
      self.freeBytes = freeBytes
    }
  }

  /// The job that is being worked on.
  public struct Current: Codable, Sendable, Equatable {
    public var id: String
    /// The name that its checkpoint was dropped with.
    public var name: String
    public var architecture: String?
    /// The decoder layer, from 0; nil before the first one.
    public var layer: Int?
    public var layerCount: Int?
    /// The linear within the layer, e.g. `mlp.down_proj`.
    public var linear: String?
    public var linearsDone: Int
    /// 0 while it is not known.
    public var linearCount: Int
    /// For each layer, the mean relative error of those of its linears that are done; nil where none is.
    public var errorPerLayer: [Double?]
    public var secondsElapsed: Double
    public var secondsRemaining: Double?
    /// From 1.
    public var attempt: Int
    /// What is being done, in words.
    public var step: String
    /// Why the work waits, where it does.
    public var pausedBecause: String?
    /// When it is tried again, in seconds since 1970.
    public var retryAt: Double?
    public var shortage: Shortage?
    /// After how many attempts without progress it counts as failed.
    public var attemptLimit: Int?
    /// What the last worker ended of that got no further.
    public var breakdown: String?
    /// Whether an earlier worker's work is repeated; nil if not.
    public var isCatchingUp: Bool?
    /// When the worker last got anything done, in seconds since 1970.
    public var lastProgressAt: Double?
    /// Where it is done, in words, if that is not here.
    public var place: String?
    /// What computes: the library's kernels, or the device.
    public var kernels: String?
    /// What looked wrong and did not stop the job.
    public var warnings: [String]?

    public init(
      id: String, name: String, architecture: String? = nil, layer: Int? = nil, layerCount: Int? = nil,
      linear: String? = nil, linearsDone: Int = 0, linearCount: Int = 0, errorPerLayer: [Double?] = [],
      secondsElapsed: Double = 0, secondsRemaining: Double? = nil, attempt: Int = 1, step: String,
      pausedBecause: String? = nil, warnings: [String]? = nil, kernels: String? = nil
    ) {
      self.id = id
      self.name = name
      self.architecture = architecture
      self.layer = layer
      self.layerCount = layerCount
      self.linear = linear
      self.linearsDone = linearsDone
      self.linearCount = linearCount
      self.errorPerLayer = errorPerLayer
      self.secondsElapsed = secondsElapsed
      self.secondsRemaining = secondsRemaining
      self.attempt = attempt
      self.step = step
      self.pausedBecause = pausedBecause
      self.warnings = warnings
      self.kernels = kernels
    }

    /// The share of the linears that are done, 0...1; nil while their number is not known.
    public var progress: Double? {
      linearCount > 0 ? max(0, min(Double(linearsDone) / Double(linearCount), 1)) : nil
    }
  }

  /// What is between a checkpoint and its turn.
  public enum QueueState: String, Codable, Sendable, CaseIterable {
    /// Somebody works on it, beside the one that is shown.
    case working
    /// It waits for its turn and nothing else.
    case queued
    /// The upload is not complete, or not known to be.
    case arriving
    /// It will never be taken like this: somebody has to see to it.
    case refused
    /// The machine stands in the way, and it is tried again by itself.
    case paused
  }

  /// How many of the queue are in a state.
  public func queueLength(_ state: QueueState) -> Int { queue.count { $0.state == state } }

  /// How many are in which state, in words, leaving out states that none is in.
  public func queueLengths(_ number: (Int) -> String = { "\($0)" }) -> [String] {
    QueueState.allCases.compactMap { state in
      let count = queueLength(state)
      return count > 0 ? "\(number(count)) \(state.rawValue)" : nil
    }
  }

  /// A job that is still to come, or a drop that is not yet one.
  public struct Queued: Codable, Sendable, Equatable {
    public var name: String
    /// nil until it is claimed.
    public var id: String?
    public var state: QueueState
    /// Why it waits; empty if it only waits for its turn.
    public var reasons: [String]
    /// Seconds since 1970.
    public var arrivedAt: Double
    /// When a paused one is tried again, in seconds since 1970.
    public var retryAt: Double?
    public var shortage: Shortage?
    /// Where it is not 0.
    public var priority: Int?

    public init(
      name: String, id: String? = nil, state: QueueState, reasons: [String] = [], arrivedAt: Double
    ) {
      self.name = name
      self.id = id
      self.state = state
      self.reasons = reasons
      self.arrivedAt = arrivedAt
    }
  }

  public enum Outcome: String, Codable, Sendable { case published, failed, cancelled }

  /// A job that is over.
  public struct Finished: Codable, Sendable, Equatable {
    public var id: String
    public var name: String
    public var outcome: Outcome
    /// Seconds since 1970.
    public var finishedAt: Double
    /// The path of the quantized checkpoint.
    public var output: String?
    /// Where the checkpoint is that was dropped; nil if nobody has it any more.
    public var source: String?
    /// What it took.
    public var seconds: Double?
    public var meanRelativeError: Double?
    public var bitsPerWeight: Double?
    public var failure: Failure?
    /// What looked wrong and did not stop the job.
    public var warnings: [String]?

    public init(
      id: String, name: String, outcome: Outcome, finishedAt: Double, output: String? = nil,
      source: String? = nil,
      seconds: Double? = nil, meanRelativeError: Double? = nil, bitsPerWeight: Double? = nil,
      failure: Failure? = nil, warnings: [String]? = nil
    ) {
      self.id = id
      self.name = name
      self.outcome = outcome
      self.finishedAt = finishedAt
      self.output = output
      self.source = source
      self.seconds = seconds
      self.meanRelativeError = meanRelativeError
      self.bitsPerWeight = bitsPerWeight
      self.failure = failure
      self.warnings = warnings
    }
  }

  public struct Failure: Codable, Sendable, Equatable {
    public var message: String
    /// What a person can do about it.
    public var mend: String?
    /// After sysexits.h.
    public var code: Int

    public init(message: String, mend: String? = nil, code: Int) {
      self.message = message
      self.mend = mend
      self.code = code
    }
  }

  /// Sums over the daemon's whole life.
  public struct Counters: Codable, Sendable, Equatable {
    public var published: Int
    public var failed: Int
    public var linearsQuantized: Int
    public var workerRestarts: Int

    public init(published: Int = 0, failed: Int = 0, linearsQuantized: Int = 0, workerRestarts: Int = 0) {
      self.published = published
      self.failed = failed
      self.linearsQuantized = linearsQuantized
      self.workerRestarts = workerRestarts
    }
  }
}

extension StatusSnapshot {
  /// The snapshot as JSON, keys in snake_case and in order, with a line feed at its end. A number that is
  /// none is a string, as in the report.
  public func json() throws -> [UInt8] {
    try JSONEncoder.ofReports.lines(self)
  }

  /// Reads what ``json()`` gives.
  public init(json: [UInt8]) throws {
    self = try JSONDecoder.ofReports.decode(StatusSnapshot.self, from: Data(json))
  }
}
