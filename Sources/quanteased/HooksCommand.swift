import ArgumentParser
import Daemon
import Foundation
import SystemIO

/// Runs the programs that are told of events; a unit of its own starts it, or the daemon where there is no systemd.
struct HooksCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hooks", abstract: "Tells programs of events; a unit of its own starts it.",
    shouldDisplay: false)

  @OptionGroup var options: ConfigurationOptions

  func run() throws {
    let configuration = try options.readConfiguration()
    try HookRunner(
      spool: Spool(root: configuration.spool), directory: configuration.hooks,
      limit: .seconds(configuration.hookSeconds), environment: ProcessInfo.processInfo.environment, log: Log()
    ).run()
  }
}
