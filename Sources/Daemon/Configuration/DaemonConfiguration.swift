import Calibration
import Devices
import Foundation
import Pipeline
import SystemIO

/// What the daemon is told: by its file, over that by its environment, over that by its command line.
public struct DaemonConfiguration: Sendable {
  /// The file that is read if none is named; it need not exist.
  public static let defaultFile = "/etc/quantease/quanteased.yaml"

  public var spool = "/var/spool/quantease"
  public var stateDirectory = "/var/lib/quantease"
  public var cacheDirectory = "/var/cache/quantease"
  public var threads = ProcessInfo.processInfo.activeProcessorCount
  /// What computes.
  public var device = DeviceChoice.auto
  /// Where states between two stages may stand.
  public var states = StatesChoice.auto
  /// Memory that a job may use, in 10⁹ bytes; nil is what is available when it starts.
  public var memoryGB: Double?
  /// Who has jobs done.
  public var queue = JobQueue.local
  /// Jobs that Slurm has at a time, at most.
  public var parallel = 4
  public var slurm = SlurmSettings()
  public var settleSeconds = 30
  public var scanSeconds = 60
  /// Times that a job is begun before it counts as failed.
  public var attempts = 3
  /// An interpreter with the package tokenizers.
  public var python = "python3"
  /// llama.cpp's converter, which that interpreter runs; nil where there is none.
  public var ggufConverter: String?
  /// When jobs are worked on.
  public var schedule = Schedule()
  /// The sources of published jobs, and of failed ones.
  public var keepDone = Keeping.all
  public var keepFailed = Keeping.all
  /// The folder of programs that are told of events.
  public var hooks = "/etc/quantease/hooks"
  /// How long one of them may take.
  public var hookSeconds = 60
  public var defaults = JobSettings()
  /// Where the values come from that are not built in, by key.
  public private(set) var origins: [String: SettingOrigin] = [:]

  public init() {}

  /// - Parameters:
  ///   - file: the configuration file; nil is the default one, which may be missing
  ///   - environment: variables; those that begin with `QUANTEASED_` are settings
  ///   - arguments: keys with values, as `--set` takes them; a repeated key of a list adds to the list
  /// - Throws: ``ConfigurationError``, exit code 78
  public static func load(
    file: String? = nil, environment: [String: String] = [:], arguments: [(key: String, value: String)] = [],
    defaultFile: String = Self.defaultFile
  ) throws(ConfigurationError) -> DaemonConfiguration {
    var configuration = DaemonConfiguration()
    try configuration.apply(file: file ?? defaultFile, isRequired: file != nil)
    try configuration.apply(environment: environment)
    try configuration.apply(arguments: arguments)
    try configuration.validate()
    return configuration
  }

  /// Every setting in force with its origin: a configuration file that says the same.
  public func describe() -> String {
    func rows(_ settings: [Setting<DaemonConfiguration>], indent: String) -> [(
      setting: String, origin: String
    )] {
      settings.map { setting in
        ("\(indent)\(setting.key): \(setting.show(self))", "\(origins[setting.key] ?? .builtIn)")
      }
    }
    let daemon = rows(SettingTable.daemon, indent: "")
    let job = rows(SettingTable.job.map { $0.lifted(\.defaults) }, indent: "  ")
    let width = min(50, (daemon + job).map(\.setting.count).max() ?? 0)
    func lines(_ rows: [(setting: String, origin: String)]) -> [String] {
      rows.map {
        $0.setting + String(repeating: " ", count: max(0, width - $0.setting.count)) + "  # " + $0.origin
      }
    }
    return (lines(daemon) + ["\(Self.section):"] + lines(job)).joined(separator: "\n")
  }

  /// The keys whose values differ, in the order of the table.
  public func changedKeys(since earlier: DaemonConfiguration) -> [String] {
    SettingTable.all.filter { $0.show(self) != $0.show(earlier) }.map(\.key)
  }

  /// Every key with what it takes and what it means, a line or two each.
  public static var help: String {
    SettingTable.all.map { "\($0.key)  (\($0.expected))\n    \($0.help)" }.joined(separator: "\n")
  }
}

extension DaemonConfiguration: Equatable {
  /// The same values; where they come from does not matter.
  public static func == (first: DaemonConfiguration, second: DaemonConfiguration) -> Bool {
    first.changedKeys(since: second).isEmpty
  }
}

// MARK: Sources

extension DaemonConfiguration {
  /// The section of the file for what a job may set as well.
  static let section = "defaults"

  private mutating func apply(file path: String, isRequired: Bool) throws(ConfigurationError) {
    guard let file = try SettingsFile(path: path, symlinks: .follow, isRequired: isRequired) else { return }
    let (top, sections) = try file.entries(sections: [Self.section])
    let (daemonKeys, jobKeys) = (SettingTable.daemon.map(\.key), SettingTable.job.map(\.key))
    for entry in top {
      guard daemonKeys.contains(entry.key) else {
        throw entry.unknown(
          known: daemonKeys + [Self.section],
          elsewhere: jobKeys.contains(entry.key) ? "put it under \(Self.section):" : nil)
      }
      try apply(entry)
    }
    for entry in sections[Self.section] ?? [] {
      guard jobKeys.contains(entry.key) else {
        throw entry.unknown(
          known: jobKeys,
          elsewhere: daemonKeys.contains(entry.key)
            ? "put it at the top level, outside of \(Self.section):" : nil)
      }
      try apply(entry)
    }
  }

  private mutating func apply(environment: [String: String]) throws(ConfigurationError) {
    let keys = Dictionary(
      uniqueKeysWithValues: SettingTable.all.map { (SettingTable.variable($0.key), $0.key) })
    // The name that the command knows, too.
    if let python = environment[Tokenizer.variable] {
      try apply(
        SettingEntry(key: "python", name: Tokenizer.variable, value: .text(python), origin: .environment))
    }
    for (name, text) in environment.sorted(by: { $0.key < $1.key })
    where name.hasPrefix(SettingTable.variablePrefix) {
      let entry = SettingEntry(key: keys[name] ?? name, name: name, value: .text(text), origin: .environment)
      guard keys[name] != nil else { throw entry.unknown(known: keys.keys.sorted()) }
      try apply(entry)
    }
  }

  private mutating func apply(arguments: [(key: String, value: String)]) throws(ConfigurationError) {
    var lists: [String: [String]] = [:]
    for (key, text) in arguments {
      var value = SettingEntry.Value.text(text)
      if let separator = SettingTable.all.first(where: { $0.key == key })?.separator {
        lists[key, default: []] += SettingEntry.elements(of: text, separator: separator)
        value = .list(lists[key, default: []])
      }
      try apply(SettingEntry(key: key, value: value, origin: .commandLine))
    }
  }

  private mutating func apply(_ entry: SettingEntry) throws(ConfigurationError) {
    guard let setting = SettingTable.all.first(where: { $0.key == entry.key }) else {
      throw entry.unknown(known: SettingTable.all.map(\.key))
    }
    try entry.apply(setting, to: &self)
    origins[entry.key] = entry.origin
  }

  /// Refuses places that LMDB's files must not be in: it maps them, and two machines would not see each other's locks.
  /// - Parameter isNetworked: whether a directory is on a file system that other machines write to
  func requireLocalPlaces(
    isNetworked: (String) throws(FileError) -> Bool = FileSystem.isNetworked
  ) throws {
    for (key, path) in [("state", stateDirectory), ("cache", cacheDirectory)]
    where try isNetworked(FileSystem.nearestExisting(path)) {
      let origin = origins[key] ?? .builtIn
      throw ConfigurationError(
        origin, key: origin == .environment ? SettingTable.variable(key) : key,
        problem: "\(path) is on a network file system", mend: "give a directory on a local disk")
    }
  }

  private func validate() throws(ConfigurationError) {
    do { try defaults.settings.validate() } catch {
      let key = SettingEntry.key(of: error)
      let origin = origins[key] ?? .builtIn
      throw ConfigurationError(
        origin, key: origin == .environment ? SettingTable.variable(key) : key,
        problem: "\(Excerpt.quoted(error.value)) is not possible", mend: error.mend)
    }
  }
}
