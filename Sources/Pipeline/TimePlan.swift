/// How long a run will take on this machine.
public struct TimePlan: Sendable {
  public enum Phase: String, Sendable, CaseIterable {
    /// The layers on every batch, those of the original model included.
    case forward
    /// Gram matrices, and what moves the targets.
    case gram
    case solver
    /// Hidden states into the activation cache and out of it, or into memory and out of it.
    case cache
    /// Reading the checkpoint and writing the result.
    case files
    /// Finding out whether a rotation helps.
    case trial
    /// Tuning norms.
    case tuning
    /// What several ranks tell one another.
    case network
  }

  public let secondsPerPhase: [Phase: Double]
  /// What was tried to find it out, in words.
  public let basis: String

  public var seconds: Double { secondsPerPhase.values.reduce(0, +) }
}
