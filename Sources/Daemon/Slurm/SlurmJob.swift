import SystemIO

/// A job of this daemon as Slurm has it, and as the state database remembers it.
public struct SlurmJob: Codable, Sendable, Equatable {
  /// By which it is found again where its number was never heard.
  public let name: String
  /// Slurm's number; nil until it is known.
  public var number: String?
  /// What Slurm said last: `PENDING`, `RUNNING`.
  public var state: String?
  /// Why it waits, in Slurm's words.
  public var reason: String?
  /// Where it runs.
  public var node: String?
  /// Whether nothing is to come of it any more, and Slurm is still to be told so.
  public var isUnwanted = false
  /// The last attempt that was there before: what that says does not count.
  public let earlierAttempts: Int
  /// The attempt that was heard last, and how much of what it says.
  public var heardAttempt: Int
  public var heardBytes = 0

  /// - Parameters:
  ///   - id: the job's
  ///   - spool: the daemon's, as others may have jobs of the same user
  ///   - earlierAttempts: the number of the last attempt so far
  init(of id: String, spool: String, earlierAttempts: Int) {
    (self.earlierAttempts, heardAttempt) = (earlierAttempts, earlierAttempts)
    // Of an identifier its time and chance; the rest may hold what Slurm's lists cannot.
    let stem = id.prefix(21).filter { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-") }
    var digest = SHA256Digest()
    digest.update("\(spool)\n\(id)")
    name = "quantease-\(stem)-\(digest.finish().prefix(8))"
  }

  /// Where it is, in words.
  var text: String {
    let place = number.map { "in Slurm as job \($0)" } ?? "on its way to Slurm"
    guard let state else { return place }
    if let node, state == "RUNNING" { return "on \(node), \(place)" }
    return "\(place): \(state.lowercased())" + (reason.map { ", \($0)" } ?? "")
  }
}

/// What `squeue` lists, a job each.
struct SlurmListing: Sendable, Equatable {
  struct Entry: Sendable, Equatable {
    let number: String
    let state: String
    /// nil where there is none.
    let reason: String?
    let node: String?
    let name: String

    /// Slurm will not start it any more. States that are not known here may pass.
    var isOver: Bool { Self.lastStates.contains(state) }

    private static let lastStates: Set = [
      "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
      "REVOKED", "TIMEOUT",
    ]

    /// Those that no job's end and no time mend. Limits on what all of a user's or an account's jobs take at once pass.
    private static let lastReasons: Set = [
      "AccountNotAllowed", "AssociationTimeLimit", "BadConstraints", "InvalidAccount", "InvalidQOS",
      "MaxMemPerLimit",
      "PartitionConfig", "PartitionDown", "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit",
      "QOSMinCpuNotSatisfied", "QOSMinGRES", "QOSMinMemory", "QOSMinNode", "QOSNotAllowed", "QOSTimeLimit",
    ]

    /// What keeps it from ever starting, and what mends that; nil where it only waits.
    var obstacle: String? {
      guard state == "PENDING", let reason else { return nil }
      let held = ["held", "JobHeldUser", "JobHeldAdmin"]
      if held.contains(where: { reason.hasSuffix($0) }) || reason == "job requeued in held state" {
        return "Slurm holds job \(number) (\(reason)): 'scontrol release \(number)' lets it go on"
      }
      guard Self.lastReasons.contains(reason) || reason.contains("PerJob") else { return nil }
      return
        "Slurm will not start job \(number) as things are (\(reason)): 'scontrol show job \(number)' says what it asks "
        + "for, slurm-partition, slurm-minutes, threads and memory decide that, and 'quantease retry' gives it anew"
    }
  }

  let entries: [Entry]

  /// Of `squeue`. A job's name is last, since a reason may hold anything but bars, and the name of another's anything.
  static let arguments = ["--me", "--states=all", "--noheader", "--format=%i|%T|%r|%N|%j"]

  init(_ output: String) {
    entries = output.split(separator: "\n").compactMap { line in
      let parts = line.split(separator: "|", maxSplits: 4, omittingEmptySubsequences: false).map(String.init)
      guard parts.count == 5, Int(parts[0]) != nil else { return nil }
      return Entry(
        number: parts[0], state: parts[1], reason: parts[2] == "None" || parts[2].isEmpty ? nil : parts[2],
        node: parts[3].isEmpty ? nil : parts[3], name: parts[4])
    }
  }

  /// Those of a name that may still run, the first one first.
  func active(named name: String) -> [Entry] {
    entries.filter { $0.name == name && !$0.isOver }
      .sorted { (Int($0.number) ?? 0) < (Int($1.number) ?? 0) }
  }
}
