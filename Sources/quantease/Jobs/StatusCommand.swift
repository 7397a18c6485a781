import ArgumentParser
import Daemon
import Foundation
import SystemIO

struct StatusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status",
    abstract: "Says what the daemon is at, what waits, and what has come of the rest.",
    discussion: """
      Asks the daemon; where none runs, it reads the drop folder and the state database, which takes the right to.
      """)

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  @Flag(help: "Print JSON.")
  var json = false

  @Flag(help: "Show it again every two seconds, until Ctrl-C.")
  var watch = false

  func run() throws {
    repeat {
      let view = try SpoolView(options)
      let text =
        json
        ? String(decoding: try view.snapshot.json(), as: UTF8.self)
        : Self.lines(view).map { "\($0)\n" }.joined()
      // The whole screen anew, where there is one.
      try StandardOutput.write((watch && StandardOutput.isTerminal ? "\u{1B}[H\u{1B}[2J" : "") + text)
      if watch { Thread.sleep(forTimeInterval: 2) }
    } while watch
  }

  private static let finishedLimit = 10

  private static func lines(_ view: SpoolView) -> [String] {
    let snapshot = view.snapshot
    let service = snapshot.service == .running ? "running" : "not running: nothing is taken up until it is"
    var lines = ["quanteased is \(service)", snapshot.stateText]
    if let current = snapshot.current {
      lines += ["", current.pausedBecause.map { "paused: \($0)" } ?? "at work"]
      lines.append("  \(current.id)")
      if let retry = current.retryAt { lines.append("  tried again at \(Schedule.clock(retry))") }
      if let shortage = current.shortage { lines.append("  \(shortage.text)") }
      if let progress = current.progress {
        let done = Int((progress * 30).rounded(.down))
        let bar = String(repeating: "█", count: done) + String(repeating: "░", count: 30 - done)
        let left = snapshot.leftText(of: current).map { ", \($0)" } ?? ""
        lines.append("  \(bar) \(current.linearsDone) of \(current.linearCount) linears\(left)")
      }
      if current.pausedBecause == nil { lines.append("  \(current.step)") }
      if let place = current.place, place != current.step { lines.append("  \(place)") }
      if let kernels = current.kernels { lines.append("  by \(kernels)") }
      if let attempt = current.attemptText { lines.append("  \(attempt)") }
      lines += warnings(current.warnings, of: current.id)
    }
    if !snapshot.queue.isEmpty {
      lines += ["", "to come"]
      for item in snapshot.queue {
        let state = item.state.rawValue.padding(toLength: 9, withPad: " ", startingAt: 0)
        lines.append(
          "  \(state)  \(item.id ?? item.name)  \(item.notes(now: snapshot.madeAt).joined(separator: "; "))")
      }
    }
    if !snapshot.finished.isEmpty {
      lines += ["", "over, newest first"]
      for job in snapshot.finished.prefix(finishedLimit) {
        switch job.outcome {
        case .published:
          lines.append(
            "  published  \(job.id)  \(job.output ?? "")"
              + (job.meanRelativeError.map { "  error \(Console.percent($0))" } ?? ""))
        case .failed: lines.append("  failed     \(job.id)  \(job.failure?.message ?? "")")
        case .cancelled: lines.append("  cancelled  \(job.id)")
        }
        lines += warnings(job.warnings, of: job.id)
      }
      let rest = view.jobs.count(where: \.phase.isOver) - finishedLimit
      if rest > 0 {
        lines.append("  and \(rest) more: quantease history\(view.asTyped)")
      }
    }
    return lines
  }

  /// The first warning, and where the others are.
  private static func warnings(_ warnings: [String]?, of job: String) -> [String] {
    guard let warnings, let first = warnings.first else { return [] }
    let rest = warnings.count > 1 ? "; \(warnings.count - 1) more: quantease why \(job)" : ""
    return ["    warning: \(first)\(rest)"]
  }
}

struct WhyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "why",
    abstract: "Says why a job waits or failed, and what to do about it.")

  @Argument(help: ArgumentHelp("A job's identifier, or the name of a drop.", valueName: "job"))
  var job: String

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws {
    let view = try SpoolView(options)
    if let drop = view.drops.first(where: { $0.name == job }) {
      return try Console.line(Self.text(drop, in: view))
    }
    guard let record = view.job(job) else {
      guard try FileSystem.exists(FileSystem.join(view.spool.incoming, job)) else {
        throw SpoolError.unknownJob(job)
      }
      return try Console.line(
        "\(job) is in \(view.spool.incoming), and is looked at at the daemon's next scan")
    }
    try Console.line(Self.text(record, in: view))
    // Where it is may be for others to see.
    if let source = try? view.spool.source(of: record) { try Console.line("  source   \(source)") }
    for breakdown in record.breakdowns ?? [] { try Console.line("  ended    \(breakdown)") }
    for warning in record.warnings ?? [] { try Console.line("  warning  \(warning)") }
  }

  private static func text(_ drop: Drop, in view: SpoolView) -> String {
    let head = "\(drop.name) is in \(view.spool.incoming)"
    switch drop.state {
    case .ready: return "\(head), complete, and is taken up at the daemon's next scan"
    case .waiting(let reasons):
      return "\(head) and waits:\n" + reasons.map { "  \($0)" }.joined(separator: "\n")
        + "\nA file .ready in it, or a rename of the whole directory into the folder, says that it is complete."
    case .refused(let refusal): return "\(head) and is refused: \(refusal.reason)\n  mend     \(refusal.mend)"
    }
  }

  private static func text(_ job: JobRecord, in view: SpoolView) -> String {
    let spool = view.spool
    switch job.phase {
    case .queued:
      if let reason = job.pausedBecause {
        let time = job.retryAt.map { " at \(Schedule.clock($0))" } ?? ""
        return """
          \(job.id) is paused and tried again by itself\(time): \(reason)
            now      quantease retry \(job.id)\(view.asTyped)
          """
      }
      if job.isHeld {
        return "\(job.id) is held back\n  go on    quantease resume \(job.id)\(view.asTyped)"
      }
      return view.snapshot.hold.map { "\(job.id) waits: \($0.text)" } ?? "\(job.id) waits for its turn"
    case .running, .publishing:
      if let reason = job.pausedBecause { return "\(job.id) waits: \(reason)" }
      return
        "\(job.id) is at work: \(job.step), \(job.linears.count) of \(job.plan?.linearCount ?? 0) linears, "
        + "attempt \(max(1, job.attempts))"
    case .published:
      return "\(job.id) is published: \(job.output ?? spool.output)"
        + (job.madeBy.map { ", made by the job \($0), which was the same" } ?? "")
    case .failed:
      return """
        \(job.id) failed: \(job.failure?.message ?? "")
          again    quantease retry \(job.id)\(view.asTyped)
        """
    case .cancelled:
      return "\(job.id) was cancelled; 'quantease retry \(job.id)\(view.asTyped)' takes it up"
    }
  }
}
