import ArgumentParser
import Daemon
import Foundation

struct CleanCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "clean",
    abstract: "Removes sources of jobs that are over, as the settings keep-done and keep-failed say.",
    discussion: """
      The daemon does so by itself, every hour; this shows what it would remove (--dry-run), or removes it now. Outputs \
      are never removed, nor what stands in incoming/.

      Example, all but the ten newest sources of published jobs:
        quantease clean --keep-done 10 --dry-run
      """)

  @Option(help: ArgumentHelp("In the place of the setting: all, 7d, 12h, 20 or 500GB.", valueName: "amount"))
  var keepDone: String?

  @Option(help: ArgumentHelp("The same for failed and cancelled jobs.", valueName: "amount"))
  var keepFailed: String?

  @Flag(help: "Only say what would be removed.")
  var dryRun = false

  @OptionGroup(title: "Daemon") var options: SpoolOptions

  func run() throws {
    let settings = [("keep-done", keepDone), ("keep-failed", keepFailed)].compactMap { key, value in
      value.map { (key: key, value: $0) }
    }
    let view = try SpoolView(options, settings: settings)
    let retention = Retention(
      keepDone: view.configuration.keepDone, keepFailed: view.configuration.keepFailed)
    guard retention.isActive else {
      return try Console.line("all sources are kept: set keep-done or keep-failed, or give them here")
    }
    let surplus = try retention.surplus(in: view.spool, jobs: view.jobs)
    for item in surplus {
      if !dryRun { try Retention.remove(item, in: view.spool) }
      let day = Date(timeIntervalSince1970: item.finishedAt).formatted(.iso8601.year().month().day())
      try Console.line(
        "\(dryRun ? "would remove" : "removed") \(item.path), \(Console.bytes(item.byteCount)), over since \(day)"
      )
    }
    let total = surplus.reduce(0) { $0 + $1.byteCount }
    try Console.line("\(surplus.count) sources, \(Console.bytes(total))")
  }
}
