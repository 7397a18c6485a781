@testable import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

struct ConfigurationTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func load(
    _ text: String? = nil, environment: [String: String] = [:], arguments: [(key: String, value: String)] = []
  ) throws -> DaemonConfiguration {
    let file = directory.file("quanteased.yaml")
    try FileSystem.removeTree(file)
    if let text { try directory.write(text, to: "quanteased.yaml") }
    return try DaemonConfiguration.load(
      environment: environment, arguments: arguments, defaultFile: file)
  }

  /// The error's text after the folder of the file.
  private func failure(
    _ text: String? = nil, environment: [String: String] = [:], arguments: [(key: String, value: String)] = []
  ) throws -> String {
    let error = try #require(throws: ConfigurationError.self) {
      try load(text, environment: environment, arguments: arguments)
    }
    #expect(error.exitCode == 78)
    return error.description.replacing(directory.path + "/", with: "")
  }

  // MARK: Sources

  @Test func `without any source the defaults are in force`() throws {
    let configuration = try load()
    #expect(configuration == DaemonConfiguration())
    #expect(configuration.spool == "/var/spool/quantease")
    #expect(configuration.defaults == JobSettings())
    #expect(configuration.origins.isEmpty)
  }

  @Test func `the environment is stronger than the file, and the command line than both`() throws {
    let configuration = try load(
      "spool: /a\nstate: /a\ncache: /a\nattempts: 7\ndefaults:\n  bits: 3\n",
      environment: [
        "QUANTEASED_STATE": "/b", "QUANTEASED_CACHE": "/b", "QUANTEASED_GROUP_SIZE": "64", "PATH": "/bin",
      ],
      arguments: [("cache", "/c"), ("symmetric", "true")])
    #expect(configuration.spool == "/a")
    #expect(configuration.stateDirectory == "/b")
    #expect(configuration.cacheDirectory == "/c")
    #expect(configuration.attempts == 7)
    #expect(configuration.defaults.settings.bits == 3)
    #expect(configuration.defaults.settings.groupSize == 64)
    #expect(configuration.defaults.settings.symmetric == true)
    #expect(
      configuration.origins["spool"]
        == .file(directory.file("quanteased.yaml"), TextPosition(line: 1, column: 1)))
    #expect(
      configuration.origins["bits"]
        == .file(directory.file("quanteased.yaml"), TextPosition(line: 6, column: 3)))
    #expect(configuration.origins["state"] == .environment)
    #expect(configuration.origins["cache"] == .commandLine)
    #expect(configuration.origins["scan-seconds"] == nil)
  }

  @Test func `every key is taken by all three sources alike`() throws {
    let texts = [
      "spool": "/s", "state": "/t", "cache": "/c", "threads": "3", "memory": "12.5", "settle-seconds": "5",
      "scan-seconds": "6", "attempts": "9", "python": "/opt/python", "calibration": "/x.txt", "bits": "8",
      "group-size": "32", "symmetric": "yes", "solver": "quantease", "preset": "paper", "target": "original",
      "target-share": "0.5", "precision": "exact",
      "passes": "4", "start": "weights", "grid-search": "off", "scale-refit": "no", "pair-moves": "false",
      "outliers": "0.25", "structured-outliers": "on", "rules": "head=skip", "format": "gptq, dense",
      "samples": "5", "sequence-length": "6", "seed": "18446744073709551615",
    ]
    let daemonKeys = [
      "spool", "state", "cache", "threads", "memory", "settle-seconds", "scan-seconds", "attempts", "python",
    ]
    let lines = texts.map { key, text in daemonKeys.contains(key) ? "\(key): \(text)" : "" }
    let jobLines = texts.map { key, text in daemonKeys.contains(key) ? "" : "  \(key): \(text)" }
    let fromFile = try load((lines + ["defaults:"] + jobLines).joined(separator: "\n"))
    #expect(fromFile.memoryGB == 12.5)
    #expect(fromFile.defaults.settings.formats == [.gptq, .dense])
    #expect(fromFile.defaults.settings.rules == ["head=skip"])
    #expect(fromFile.defaults.settings.seed == .max)
    #expect(
      Set(fromFile.changedKeys(since: DaemonConfiguration())) == Set(texts.keys).subtracting(["solver"]))

    let variables = texts.map { ("QUANTEASED_" + $0.key.uppercased().replacing("-", with: "_"), $0.value) }
    #expect(try load(environment: Dictionary(uniqueKeysWithValues: variables)) == fromFile)
    #expect(try load(arguments: texts.map { ($0.key, $0.value) }) == fromFile)
    #expect(fromFile.origins.count == texts.count)
  }

  @Test func `a list on the command line grows by repetition and replaces that of the file`() throws {
    let configuration = try load(
      "defaults:\n  rules: [a=skip, b=skip]\n  format: dense\n",
      arguments: [("rules", "c=bits:3,symmetric"), ("rules", "d=skip"), ("bits", "3"), ("bits", "2")])
    #expect(configuration.defaults.settings.rules == ["c=bits:3,symmetric", "d=skip"])
    #expect(configuration.defaults.settings.formats == [.dense])
    #expect(configuration.defaults.settings.bits == 2)
  }

  @Test func `a file that is named must exist`() throws {
    let error = try #require(throws: ConfigurationError.self) {
      try DaemonConfiguration.load(file: directory.file("absent.yaml"))
    }
    #expect(
      error.description.hasSuffix("absent.yaml: cannot inspect: No such file or directory; check the path")
        || error.description.hasSuffix("absent.yaml: cannot open: No such file or directory; check the path"))
    #expect(error.exitCode == 78)
  }

  @Test(arguments: ["", "# nothing\n", "---\n", "defaults:\n", "defaults: {}\n"])
  func `a file without settings changes nothing`(text: String) throws {
    #expect(try load(text) == DaemonConfiguration())
  }

  // MARK: Errors

  @Test(arguments: [
    ("spoll: /a", "quanteased.yaml:1:1: spoll: unknown setting; did you mean spool?"),
    (
      "spool: /a\n\nscan_seconds: 3",
      "quanteased.yaml:3:1: scan_seconds: unknown setting; did you mean scan-seconds?"
    ),
    ("defaults:\n  bist: 4", "quanteased.yaml:2:3: bist: unknown setting; did you mean bits?"),
    ("bits: 4", "quanteased.yaml:1:1: bits: not possible here; put it under defaults:"),
    (
      "defaults:\n  spool: /a",
      "quanteased.yaml:2:3: spool: not possible here; put it at the top level, outside of defaults:"
    ),
    (
      "default:\n  bits: 4",
      "quanteased.yaml:1:1: default: unknown setting; did you mean defaults?"
    ),
    (
      "attempts: many",
      #"quanteased.yaml:1:1: attempts: "many" is not possible; expected a whole number from 1 to 1000"#
    ),
    (
      "attempts: 0",
      #"quanteased.yaml:1:1: attempts: "0" is not possible; expected a whole number from 1 to 1000"#
    ),
    ("attempts:", "quanteased.yaml:1:1: attempts: no value; expected a whole number from 1 to 1000"),
    (
      "attempts: [1, 2]",
      "quanteased.yaml:1:1: attempts: a list where a value belongs; expected a whole number from 1 to 1000"
    ),
    ("spool: here", #"quanteased.yaml:1:1: spool: "here" is not possible; expected an absolute path"#),
    (
      "memory: -1",
      #"quanteased.yaml:1:1: memory: "-1" is not possible; expected available, or a number of GB above 0"#
    ),
    (
      "memory: nan",
      #"quanteased.yaml:1:1: memory: "nan" is not possible; expected available, or a number of GB above 0"#
    ),
    (
      "python: ./python",
      #"quanteased.yaml:1:1: python: "./python" is not possible; expected a program's name or absolute path"#
    ),
    ("defaults:\n  bits: 7", #"quanteased.yaml:2:3: bits: "7" is not possible; 2 to 6, or 8"#),
    (
      "defaults:\n  symmetric: maybe",
      #"quanteased.yaml:2:3: symmetric: "maybe" is not possible; expected auto, true or false"#
    ),
    (
      "defaults:\n  solver: qptq",
      #"quanteased.yaml:2:3: solver: "qptq" is not possible; expected quantease, gptq or rtn"#
    ),
    (
      "defaults:\n  format: [gptq, exl2]",
      #"quanteased.yaml:2:3: format: "gptq, exl2" is not possible; expected one or more of compressed-tensors, gptq, gptq-v2, awq, dense, gguf"#
    ),
    (
      "defaults:\n  solver: gptq\n  outliers: 0.01",
      #"quanteased.yaml:3:3: outliers: "0.01" is not possible; they go with the solver quantease alone"#
    ),
    (
      "defaults:\n  calibration: ../x",
      #"quanteased.yaml:2:3: calibration: "../x" is not possible; expected an absolute path, or one inside the job's directory, without '..'; or a list of such, each with ':WEIGHT' behind it or not"#
    ),
    ("spool: /a\nattempts: 2\nspool: /b", "quanteased.yaml:1:1: spool: stands twice; keep one of them"),
    ("!a spool: /a\nspool: /b", "quanteased.yaml:2:1: spool: stands twice; keep one of them"),
    ("- spool", "quanteased.yaml:1:1: not a list of settings; write KEY: VALUE, one on each line"),
    ("[a, b]: c", "quanteased.yaml:1:1: a key that is no word; write KEY: VALUE"),
    (
      "defaults:\n  rules: [[a]]",
      "quanteased.yaml:2:11: rules: a list of something other than values; write - VALUE"
    ),
  ])
  func `the file's errors name line, column, key and mend`(text: String, message: String) throws {
    #expect(try failure(text) == message)
  }

  @Test func `text that is no YAML is an error with its place`() throws {
    let message = try failure("spool: /a\n  bits: 4\n")
    #expect(message.hasPrefix("quanteased.yaml:2:7: not YAML: "))
    #expect(try failure("spool: \"/a\n").hasPrefix("quanteased.yaml:2:1: not YAML: "))
    #expect(try failure("---\nspool: /a\n---\nspool: /b\n").hasPrefix("quanteased.yaml:3:1: not YAML: "))
    #expect(try failure("spool: \u{7}\n").hasPrefix("quanteased.yaml: not text: "))
  }

  @Test(arguments: [
    (
      "QUANTEASED_SPOOLS", "/a",
      "environment: QUANTEASED_SPOOLS: unknown setting; did you mean QUANTEASED_SPOOL?"
    ),
    (
      "QUANTEASED_GROUPSIZE", "3",
      "environment: QUANTEASED_GROUPSIZE: unknown setting; did you mean QUANTEASED_GROUP_SIZE?"
    ),
    (
      "QUANTEASED_ATTEMPTS", "x",
      #"environment: QUANTEASED_ATTEMPTS: "x" is not possible; expected a whole number from 1 to 1000"#
    ),
    ("QUANTEASED_BITS", "7", #"environment: QUANTEASED_BITS: "7" is not possible; 2 to 6, or 8"#),
  ])
  func `the environment's errors name the variable`(name: String, value: String, message: String) throws {
    #expect(try failure(environment: [name: value]) == message)
  }

  @Test func `the command line's errors name the key`() throws {
    #expect(
      try failure(arguments: [("sampels", "3")])
        == "command line: sampels: unknown setting; did you mean samples?")
    #expect(
      try failure(arguments: [("threads", "0")])
        == #"command line: threads: "0" is not possible; expected all, or a whole number from 1 to 4096"#)
    #expect(
      try failure(arguments: [("rules", "noequals")]).hasPrefix(
        #"command line: rules: "noequals" is not possible; "#))
  }

  @Test func `an unknown key that resembles none lists those that are known`() throws {
    #expect(
      try failure("xyzzyplugh: 1").hasPrefix(
        "quanteased.yaml:1:1: xyzzyplugh: unknown setting; known are spool, "))
  }

  @Test func `an error stays one short line whatever the file holds`() throws {
    let message = try failure("attempts: \"a\\nb\\e[31m\\u2028\(String(repeating: "x", count: 500))\"")
    #expect(message.hasPrefix(#"quanteased.yaml:1:1: attempts: "a\u{a}b\u{1b}[31m\u{2028}xxx"#))
    #expect(message.count < 200)
    #expect(!message.contains { $0.isNewline })
  }

  // MARK: Listing

  @Test func `the listing shows every value with its origin, and is a file that says the same`() throws {
    let configuration = try load(
      "spool: \"/with space\"\nmemory: 3.5\ndefaults:\n  rules: ['(q|k)_proj$=bits:3', \"a\\\"\\\\b=skip\"]\n",
      environment: ["QUANTEASED_BITS": "3"],
      arguments: [("calibration", "text: # \t1.txt"), ("threads", "2")])
    let listing = configuration.describe()
    #expect(listing.contains("spool: \"/with space\""))
    let lines = listing.split(separator: "\n").map(String.init)
    #expect(lines.contains { $0.hasPrefix("  bits: 3 ") && $0.hasSuffix("# environment") })
    #expect(lines.contains { $0.hasPrefix("threads: 2 ") && $0.hasSuffix("# command line") })
    #expect(lines.contains { $0.hasPrefix("attempts: 3 ") && $0.hasSuffix("# default") })
    #expect(lines.contains { $0.hasPrefix("memory: 3.5 ") && $0.hasSuffix("quanteased.yaml:2:1") })
    let again = try load(listing)
    #expect(again == configuration)
    #expect(again.defaults == configuration.defaults)
    #expect(again.spool == configuration.spool)
  }

  @Test func `what differs between two configurations has names`() throws {
    let changed = try load("attempts: 5\ndefaults:\n  seed: 3\n")
    #expect(changed.changedKeys(since: DaemonConfiguration()) == ["attempts", "seed"])
    #expect(changed != DaemonConfiguration())
  }

  @Test func `the help names every key of the listing`() throws {
    for line in DaemonConfiguration().describe().split(separator: "\n") {
      let key = line.drop(while: \.isWhitespace).prefix { $0 != ":" }
      #expect(key == "defaults" || "\n\(DaemonConfiguration.help)".contains("\n\(key)  ("))
    }
  }

  @Test func `state and cache have to be on a local disk`() throws {
    var configuration = try DaemonConfiguration.load(
      environment: ["QUANTEASED_CACHE": "/tmp/cache"], defaultFile: "/nowhere")
    configuration.stateDirectory = "/tmp/state"
    try configuration.requireLocalPlaces { _ in false }
    let error = try #require(throws: ConfigurationError.self) {
      try configuration.requireLocalPlaces { _ in true }
    }
    #expect(error.key == "state" && error.exitCode == 78)
    configuration.stateDirectory = "/"
    let other = try #require(throws: ConfigurationError.self) {
      try configuration.requireLocalPlaces { $0 != "/" }
    }
    #expect(
      "\(other)"
        == "environment: QUANTEASED_CACHE: /tmp/cache is on a network file system; give a directory on a local disk"
    )
  }
}
