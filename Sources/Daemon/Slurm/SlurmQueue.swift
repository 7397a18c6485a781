import FoundationEssentials
import SystemIO

/// What the daemon knows of the jobs that Slurm has, and what it is asking Slurm now.
struct SlurmQueue {
  /// A job that Slurm has, or is being given.
  struct Run {
    /// Up to when its time has been added to the job's; nil while nobody is at it.
    var lapStart: ContinuousClock.Instant?
    var lastEventAt = ContinuousClock.now
    /// Since when Slurm says that it is over or unknown, and how often it has.
    var missing: (since: ContinuousClock.Instant, looks: Int)?
    /// Whether it is not known if Slurm has it; with what handing it over ended of.
    var doubt: Doubt?

    /// The seconds since the last call, or since somebody has been at it.
    mutating func lap() -> Double {
      let now = ContinuousClock.now
      defer { lapStart = now }
      return lapStart.map { (now - $0).seconds } ?? 0
    }
  }

  /// Nobody heard whether Slurm took a job: a look at its list tells.
  struct Doubt {
    /// nil where the daemon ended in between.
    var failure: JobFailure?
    /// A look has to be younger.
    var since = ContinuousClock.now
  }

  /// A job of Slurm's of which nothing is to come.
  struct Unwanted {
    /// A number alone may be another's by now.
    let name: String
    /// nil where nobody knows whether Slurm has got it: whatever it has by that name.
    let number: String?
    let since = ContinuousClock.now
    /// When Slurm was last told.
    var toldAt: ContinuousClock.Instant?

    fileprivate var turn: (Int, ContinuousClock.Instant) { (toldAt == nil ? 0 : 1, toldAt ?? since) }
  }

  /// Has a job cancelled, until Slurm's list says that it is over.
  mutating func cancel(_ number: String?, named name: String) {
    if isUnwanted(number, named: name) { return }
    unwanted.append(Unwanted(name: name, number: number))
    nextCancellation = .now
  }

  func isUnwanted(_ number: String?, named name: String) -> Bool {
    unwanted.contains { $0.name == name && $0.number == number }
  }

  /// What Slurm is to be told next: what it has not been told yet, then what has been told the longest ago.
  func nextCancellation(every pause: Duration) -> Int? {
    let now = ContinuousClock.now
    return unwanted.indices.filter { index in
      unwanted[index].number != nil && unwanted[index].toldAt.map { now - $0 >= pause } ?? true
    }
    .min { unwanted[$0].turn < unwanted[$1].turn }
  }

  /// By the jobs' identifiers.
  var runs: [String: Run] = [:]
  /// The job that is being handed over.
  var submission: (job: String, command: SlurmCommand)?
  var look: (command: SlurmCommand, since: ContinuousClock.Instant)?
  /// Tells Slurm of one that nobody wants.
  var cancellation: SlurmCommand?
  var unwanted: [Unwanted] = []
  /// Commands that were ended, and are not gone yet.
  var ended: [SlurmCommand] = []
  var nextLook = ContinuousClock.now
  var nextTail = ContinuousClock.now
  var nextCancellation = ContinuousClock.now
  /// Since when Slurm has not answered, in seconds since 1970.
  var silentSince: Double?

  private var commands: [SlurmCommand] {
    [submission?.command, look?.command, cancellation].compactMap(\.self) + ended
  }

  var descriptors: [Int32] { commands.map(\.descriptor) }

  /// Whether there is anything that a look at Slurm's list would tell of.
  var isLooking: Bool { !runs.isEmpty || !unwanted.isEmpty }

  /// Until when nothing is to be done but to wait for what the commands say.
  var timeToNextEvent: Duration {
    var next = commands.map(\.timeLeft)
    if !runs.isEmpty { next.append(nextTail - .now) }
    if isLooking, look == nil { next.append(nextLook - .now) }
    if !unwanted.isEmpty, cancellation == nil { next.append(nextCancellation - .now) }
    return max(.zero, next.min() ?? .seconds(60))
  }
}
