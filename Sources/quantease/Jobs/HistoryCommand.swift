import ArgumentParser
import Daemon
import Foundation

struct HistoryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "history", abstract: "Lists every job that is over, newest first.",
    discussion: """
      Example, what came to nothing in the last week:
        quantease history --outcome failed --since 7d
      """)

  enum Outcome: String, ExpressibleByArgument, CaseIterable { case published, failed, cancelled }

  @Option(help: "Only jobs of this outcome.")
  var outcome: Outcome?

  @Option(help: "Only jobs of this name.")
  var name: String?

  @Option(
    help: ArgumentHelp("Only jobs that were over within this time, such as 12h or 7d.", valueName: "time"))
  var since: String?

  @Option(help: ArgumentHelp("At most so many.", valueName: "count"))
  var limit: Int?

  @Flag(help: "Print JSON.")
  var json = false

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func validate() throws {
    if let since, Keeping.age(since) == nil { throw ValidationError("--since is a time such as 12h or 7d") }
    if let limit, limit < 1 { throw ValidationError("--limit is at least 1") }
  }

  func run() throws {
    let view = try SpoolView(options)
    let earliest = since.flatMap(Keeping.age).map { Date().timeIntervalSince1970 - $0 } ?? 0
    let jobs = view.jobs.filter { job in
      job.phase.isOver && (outcome == nil || job.phase.rawValue == outcome?.rawValue)
        && (name == nil || job.name == name) && (job.finishedAt ?? 0) >= earliest
    }.sorted { ($0.finishedAt ?? 0) > ($1.finishedAt ?? 0) }.prefix(limit ?? .max)
    let finished = jobs.map { StatusSnapshot.Finished($0, in: view.spool) }
    if json { return try Console.json(finished) }
    for job in finished {
      let time = Date(timeIntervalSince1970: job.finishedAt).formatted(.iso8601)
      let words: [String?] =
        switch job.outcome {
        case .published:
          [
            job.meanRelativeError.map { "error \(Console.percent($0))" },
            job.seconds.map { "took \(Console.time($0))" }, job.output,
          ]
        case .failed: [job.failure?.message]
        case .cancelled: []
        }
      let outcome = job.outcome.rawValue.padding(toLength: 9, withPad: " ", startingAt: 0)
      try Console.line(([time, outcome, job.id] + words.compactMap(\.self)).joined(separator: "  "))
    }
  }
}
