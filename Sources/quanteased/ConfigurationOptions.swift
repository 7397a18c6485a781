import ArgumentParser
import Daemon
import Foundation

/// Where the settings come from.
struct ConfigurationOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "The configuration file. Default: \(DaemonConfiguration.defaultFile).", valueName: "file"),
    completion: .file())
  var config: String?

  @Option(help: ArgumentHelp("The drop folder.", valueName: "dir"), completion: .directory)
  var spool: String?

  @Option(
    help: ArgumentHelp("Where the state of the jobs is kept.", valueName: "dir"), completion: .directory)
  var state: String?

  @Option(help: ArgumentHelp("Where activation caches are made.", valueName: "dir"), completion: .directory)
  var cache: String?

  @Option(
    name: .customLong("set"),
    help: ArgumentHelp("Any setting of the configuration file; may be repeated.", valueName: "key=value"))
  var settings: [String] = []

  func validate() throws {
    for setting in settings where !setting.contains("=") {
      throw ValidationError("--set \(setting): write KEY=VALUE")
    }
  }

  func readConfiguration() throws -> DaemonConfiguration {
    var arguments = settings.map { setting in
      let parts = setting.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      return (key: String(parts[0]), value: String(parts[1]))
    }
    for (key, value) in [("spool", spool), ("state", state), ("cache", cache)] {
      if let value { arguments.append((key, URL(fileURLWithPath: value).path)) }
    }
    return try DaemonConfiguration.load(
      file: config, environment: ProcessInfo.processInfo.environment, arguments: arguments)
  }
}
