import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// Prometheus' own tool for rules and metrics.
private enum Promtool {
  /// Where it is; nil if nowhere.
  static let path: String? = {
    let places = (TestEnvironment.variable("PATH") ?? "").split(separator: ":").map { "\($0)/promtool" }
    return places.first { FileManager.default.isExecutableFile(atPath: $0) }
  }()

  /// - Returns: its exit status, and what it says
  static func run(_ arguments: String..., input: String = "") throws -> (status: Int32, words: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try #require(path))
    process.arguments = arguments
    let (words, text) = (Pipe(), Pipe())
    (process.standardOutput, process.standardError, process.standardInput) = (words, words, text)
    try process.run()
    try text.fileHandleForWriting.write(contentsOf: Data(input.utf8))
    try text.fileHandleForWriting.close()
    let said = try words.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: said, as: UTF8.self))
  }
}

/// The rules that are installed, on what the daemon says when each of them has a reason to fire.
@Suite(.enabled(if: Promtool.path != nil, "needs promtool, of Debian's package prometheus"))
struct AlertRulesTests {
  private static let rules = TestFiles.repositoryFile("config/quantease.rules.yaml")

  /// What is scraped every minute: for an hour one thing, and then another one, until the rules are looked at. Time
  /// begins in 1970.
  struct Scenario: Sendable, CustomTestStringConvertible {
    /// Whether and which alert fires.
    let alert: String?
    /// Hours after the change.
    let hours: Double
    /// Makes the second state from the first, given the time at which the rules are looked at.
    let change: @Sendable (inout State, Double) -> Void

    var testDescription: String { alert ?? "all is well" }
  }

  /// All that a snapshot is made of.
  struct State: Sendable {
    var jobs: [JobRecord] = []
    var drops: [Drop] = []
    var firstSeen: [String: Double] = [:]
    var counters = StatusSnapshot.Counters(published: 3, failed: 1, linearsQuantized: 9, workerRestarts: 4)
    var service = StatusSnapshot.Service.running
    var hold: StatusSnapshot.Hold?
    var silentSince: Double?
    var freeBytes = 1_000_000_000_000

    func scrape(at time: Double, in spool: Spool) -> String {
      var snapshot = StatusSnapshot(
        jobs: jobs, counters: counters, drops: drops, firstSeen: firstSeen, service: service, hold: hold,
        spool: spool,
        cacheDirectory: spool.root)
      (snapshot.madeAt, snapshot.spoolFreeBytes, snapshot.cacheFreeBytes) = (time, freeBytes, freeBytes)
      if let silentSince { snapshot.current?.lastProgressAt = silentSince }
      return Metrics(snapshot).text
    }
  }

  private static func job(_ phase: JobRecord.Phase, arrivedAt: Double) -> JobRecord {
    var job = JobRecord(
      id: "20261123T231502Z-00a7-\(phase.rawValue)", name: "it's \"\(phase.rawValue)\"", arrivedAt: arrivedAt)
    job.phase = phase
    return job
  }

  static let scenarios = [
    Scenario(alert: nil, hours: 1) { state, time in
      state.jobs = [job(.running, arrivedAt: time - 9_000), job(.queued, arrivedAt: time - 80_000)]
      state.silentSince = time - 60
      state.counters.linearsQuantized += 5
      state.counters.published += 1
    },
    Scenario(alert: "QuanteaseDown", hours: 0.25) { state, _ in state.service = .stopped },
    Scenario(alert: "QuanteaseJobFailed", hours: 0.1) { state, _ in state.counters.failed += 1 },
    Scenario(alert: "QuanteaseRefused", hours: 0.02) { state, time in
      state.drops = [
        Drop(name: "link", state: .refused(.init(reason: "it is a link", mend: "take a file")), arrival: 0)
      ]
      state.firstSeen = ["link": time - 60]
    },
    Scenario(alert: "QuanteaseStaysInArrival", hours: 7) { state, time in
      state.drops = [
        Drop(name: "half", state: .waiting(reasons: ["model.safetensors is missing"]), arrival: 0)
      ]
      state.firstSeen = ["half": time - 6.5 * 3_600]
    },
    Scenario(alert: "QuanteasePaused", hours: 0.6) { state, time in
      var job = job(.queued, arrivedAt: time)
      job.pausedBecause = "no space: 12 GB"
      job.retryAt = time + 60
      job.shortage = .init(path: "/", neededBytes: 12_000_000_000)
      state.jobs = [job]
    },
    Scenario(alert: "QuanteaseStands", hours: 1) { state, time in
      state.jobs = [job(.running, arrivedAt: time)]
      state.silentSince = time - 2_000
    },
    Scenario(alert: "QuanteaseWorkerDies", hours: 0.2) { state, _ in state.counters.workerRestarts += 3 },
    Scenario(alert: "QuanteaseQueueWaits", hours: 49) { state, time in
      state.jobs = [job(.running, arrivedAt: 0), job(.queued, arrivedAt: time - 48.5 * 3_600)]
      state.silentSince = time
    },
    Scenario(alert: "QuanteaseHeld", hours: 25) { state, time in
      // What waits for that alone is no pause of the machine's making.
      var job = job(.queued, arrivedAt: time)
      job.startedAt = time
      (state.jobs, state.hold) = ([job], .init(reason: "held back"))
    },
    Scenario(alert: "QuanteaseDiskNearlyFull", hours: 0.2) { state, _ in state.freeBytes = 49_000_000_000 },
  ]

  /// The values of a scrape by their series.
  private func series(_ scrape: String) -> [String: String] {
    Dictionary(
      uniqueKeysWithValues: scrape.split(separator: "\n").filter { !$0.hasPrefix("#") }.map { line in
        let space = line.lastIndex(of: " ") ?? line.endIndex
        return (String(line[..<space]), String(line[line.index(after: space)...]))
      })
  }

  @Test func `the rules are rules, and the scenarios are about all of them`() throws {
    let check = try Promtool.run("check", "rules", Self.rules)
    #expect(check.status == 0 && !check.words.contains("WARN"), "\(check.words)")
    let text = try String(contentsOfFile: Self.rules, encoding: .utf8)
    let alerts = text.matches(of: /alert: (\w+)/).map { String($0.1) }
    #expect(Set(alerts) == Set(Self.scenarios.compactMap(\.alert)))
  }

  @Test(arguments: scenarios)
  func `an alert fires when it has to, and no other one`(_ scenario: Scenario) throws {
    let fixture = try LedgerFixture()
    let minutes = Int(scenario.hours * 60)
    let time = Double(60 + minutes) * 60
    var state = State()
    let before = series(state.scrape(at: 0, in: fixture.spool))
    scenario.change(&state, time)
    let scrape = state.scrape(at: time, in: fixture.spool)
    let metrics = try Promtool.run("check", "metrics", input: scrape)
    #expect(metrics.status == 0, "\(metrics.words)")
    let after = series(scrape)
    let input = Set(before.keys).union(after.keys).sorted().map { name in
      """
            - series: '\(name.replacing("'", with: "''"))'
              values: '\(before[name] ?? "_")x59 \(after[name] ?? "_")x\(minutes + 1)'
      """
    }
    let expected = scenario.alert.map {
      """

              - labels: '{alertname="\($0)"}'
                value: 1
      """
    }
    let test = """
      rule_files: [\(Self.rules)]
      evaluation_interval: 1m
      tests:
        - interval: 1m
          input_series:
      \(input.joined(separator: "\n"))
          promql_expr_test:
            - expr: count by (alertname) (ALERTS{alertstate="firing"})
              eval_time: \(60 + minutes)m
              exp_samples: \(expected ?? "[]")
      """
    let path = try fixture.directory.write(test, to: "test.yaml")
    let run = try Promtool.run("test", "rules", path)
    #expect(run.status == 0, "\(run.words)\n\(test)")
  }
}
