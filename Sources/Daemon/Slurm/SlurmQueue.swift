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

  /// A job of Slurm's. A number alone may be another's by now.
  struct Unwanted: Equatable {
    let number: String
    let name: String
  }

  mutating func cancel(_ number: String, named name: String) {
    let entry = Unwanted(number: number, name: name)
    if !unwanted.contains(entry) { unwanted.append(entry) }
  }

  /// By the jobs' identifiers.
  var runs: [String: Run] = [:]
  /// The job that is being handed over.
  var submission: (job: String, command: SlurmCommand)?
  var look: (command: SlurmCommand, since: ContinuousClock.Instant)?
  var cancellation: (entry: Unwanted, command: SlurmCommand)?
  /// What nobody wants any more, in the order in which Slurm is told.
  var unwanted: [Unwanted] = []
  /// Names of what was taken back while it was handed over, so that nobody knows whether Slurm has it, and since when.
  var unwantedNames: [String: ContinuousClock.Instant] = [:]
  var nextLook = ContinuousClock.now
  var nextTail = ContinuousClock.now
  var nextCancellation = ContinuousClock.now
  /// Since when Slurm has not answered, in seconds since 1970.
  var silentSince: Double?

  var descriptors: [Int32] {
    [submission?.command.descriptor, look?.command.descriptor, cancellation?.command.descriptor].compactMap(
      \.self)
  }

  /// Until when nothing is to be done but to wait for what the commands say.
  var timeToNextEvent: Duration {
    var next: [Duration] = [submission?.command, look?.command, cancellation?.command].compactMap {
      $0?.timeLeft
    }
    if !runs.isEmpty { next.append(nextTail - .now) }
    if look == nil, !runs.isEmpty || !unwantedNames.isEmpty { next.append(nextLook - .now) }
    if !unwanted.isEmpty, cancellation == nil { next.append(nextCancellation - .now) }
    return max(.zero, next.min() ?? .seconds(60))
  }
}
