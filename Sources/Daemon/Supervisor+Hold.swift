import FoundationEssentials
import SystemIO

/// Times at which no job is worked on: a person wants it so, or the schedule.
extension Supervisor {
  /// Whether nothing is worked on.
  var isHeld: Bool {
    ledger.heldSince != nil
      || !configuration.schedule.isOpen(at: Schedule.LocalTime(Date().timeIntervalSince1970))
  }

  /// Why nothing is worked on, and until when; nil if it may be.
  var hold: StatusSnapshot.Hold? {
    Self.hold(heldSince: ledger.heldSince, configuration.schedule)
  }

  /// - Parameter heldSince: since when a person wants it so
  public static func hold(heldSince: Double?, _ schedule: Schedule) -> StatusSnapshot.Hold? {
    if heldSince != nil { return .byHand }
    let now = Date().timeIntervalSince1970
    if schedule.isOpen(at: Schedule.LocalTime(now)) { return nil }
    return .init(reason: "outside of the schedule", until: schedule.nextOpening(after: now))
  }

  /// Ends the worker where it has no business, and says once what has come of it.
  func keepHold() {
    let hold = hold
    if let hold {
      attempt { try endWorker(saying: "waits where it is") }
      for id in slurm.runs.keys.sorted() { attempt { try withdraw(id, saying: "waits where it is") } }
      if !saidHold { log.notice("no job is worked on: \(hold.text)") }
    } else if saidHold {
      log.notice("jobs are worked on again")
    }
    saidHold = hold != nil
  }
}
