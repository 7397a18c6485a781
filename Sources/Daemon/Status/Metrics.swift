/// A snapshot in the text format of Prometheus, version 0.0.4.
///
/// Every metric has its HELP and TYPE, also where it has no series at the moment. A series is named by what
/// a job is (`job`, its id, and `name`), so no two are alike.
public struct Metrics: Sendable {
  public static let contentType = "text/plain; version=0.0.4; charset=utf-8"

  private let snapshot: StatusSnapshot

  public init(_ snapshot: StatusSnapshot) { self.snapshot = snapshot }

  public var text: String { metrics.map(\.text).joined() }

  private var metrics: [Metric] { service + queue + job + totals }

  // MARK: What is measured

  private var service: [Metric] {
    [
      Metric(
        "quantease_up", .gauge, "Whether a daemon holds the spool.",
        [Series(snapshot.service == .running ? 1 : 0)]),
      Metric(
        "quantease_build_info", .gauge, "Always 1; the label says which version runs.",
        [Series(1, [("version", snapshot.version)])]),
      Metric(
        "quantease_status_timestamp_seconds", .gauge, "When these figures were made, since 1970.",
        [Series(snapshot.madeAt)]),
    ]
  }

  private var queue: [Metric] {
    return [
      Metric(
        "quantease_queue_length", .gauge,
        "Checkpoints that are still to come: queued, arriving, refused (somebody has to see to it), paused.",
        StatusSnapshot.QueueState.allCases.map { state in
          Series(Double(snapshot.queueLength(state)), [("state", state.rawValue)])
        }),
      Metric(
        "quantease_oldest_arrival_timestamp_seconds", .gauge,
        "When the oldest checkpoint in this state arrived, since 1970.",
        StatusSnapshot.QueueState.allCases.compactMap { state in
          snapshot.queue.filter { $0.state == state }.map(\.arrivedAt).min().map {
            Series($0, [("state", state.rawValue)])
          }
        }),
      Metric(
        "quantease_refused", .gauge,
        "1 for every drop that will not be taken as it is: a person has to see to it.",
        snapshot.queue.filter { $0.state == .refused }.map { drop in
          Series(1, [("name", drop.name), ("reason", Self.label(drop.reasons.joined(separator: "; ")))])
        }),
      Metric(
        "quantease_paused", .gauge, "1 for every job that waits for something else than its turn.",
        waits.map { Series(1, $0.labels + [("reason", Self.label($0.reason))]) }),
      Metric(
        "quantease_next_retry_timestamp_seconds", .gauge, "When a paused job is tried again, since 1970.",
        waits.compactMap { wait in wait.retryAt.map { Series($0, wait.labels) } }),
      Metric(
        "quantease_space_needed_bytes", .gauge,
        "Bytes that a job asked a file system for, which has too few.",
        waits.compactMap { wait in
          wait.shortage.flatMap { shortage in
            shortage.neededBytes.map { Series(Double($0), wait.labels + [("path", shortage.path)]) }
          }
        }),
      Metric(
        "quantease_space_free_bytes", .gauge, "Bytes that are free there.",
        waits.compactMap { wait in
          wait.shortage.flatMap { shortage in
            shortage.freeBytes.map { Series(Double($0), wait.labels + [("path", shortage.path)]) }
          }
        }),
      Metric(
        "quantease_held", .gauge, "Whether no job is worked on because a person or the schedule wants it so.",
        [Series(snapshot.hold == nil ? 0 : 1)]),
    ]
  }

  /// A job that does not merely wait for its turn.
  private struct Wait {
    let labels: [(String, String)]
    let reason: String
    let retryAt: Double?
    let shortage: StatusSnapshot.Shortage?
  }

  private var waits: [Wait] {
    let current = snapshot.current.flatMap { current in
      current.pausedBecause.map {
        Wait(
          labels: [("job", current.id), ("name", current.name)], reason: $0, retryAt: current.retryAt,
          shortage: current.shortage)
      }
    }
    return (current.map { [$0] } ?? [])
      + snapshot.queue.filter { $0.state == .paused }.map {
        Wait(
          labels: [("job", $0.id ?? ""), ("name", $0.name)], reason: $0.reasons.joined(separator: "; "),
          retryAt: $0.retryAt, shortage: $0.shortage)
      }
  }

  /// As much of a text as a label should have. Every other figure in it would make another series.
  private static func label(_ text: String) -> String {
    String(text.filter { !$0.isNumber }.prefix(200))
  }

  private var job: [Metric] {
    let current = snapshot.current
    func gauge(_ name: String, _ help: String, _ value: (StatusSnapshot.Current) -> Double?) -> Metric {
      guard let current, let value = value(current) else { return Metric(name, .gauge, help, []) }
      return Metric(name, .gauge, help, [Series(value, [("job", current.id), ("name", current.name)])])
    }
    return [
      gauge("quantease_job_progress_ratio", "Share of the job's linears that are done.") { $0.progress },
      gauge("quantease_job_linears_done", "Linears of the job that are done.") { Double($0.linearsDone) },
      gauge("quantease_job_linears", "Linears that the job has to quantize.") { Double($0.linearCount) },
      gauge("quantease_job_layer", "Decoder layer at work, from 0.") { $0.layer.map(Double.init) },
      gauge("quantease_job_layers", "Decoder layers of the job.") { $0.layerCount.map(Double.init) },
      gauge("quantease_job_relative_error", "Mean relative error of the job's layers so far.") {
        $0.meanError
      },
      gauge("quantease_job_seconds_elapsed", "Time that the job has taken.") { $0.secondsElapsed },
      gauge("quantease_job_seconds_remaining", "Time that the job is expected to take still.") {
        $0.secondsRemaining
      },
      gauge("quantease_job_attempt", "How often the job was begun.") { Double($0.attempt) },
      gauge(
        "quantease_last_progress_timestamp_seconds", "When the worker last got anything done, since 1970."
      ) { $0.lastProgressAt },
      gauge("quantease_job_paused", "Whether the job waits, for space as a rule.") {
        $0.pausedBecause == nil ? 0 : 1
      },
    ]
  }

  private var totals: [Metric] {
    let counters = snapshot.counters
    var last: [(outcome: StatusSnapshot.Outcome, at: Double)] = []
    for job in snapshot.finished {
      if let index = last.firstIndex(where: { $0.outcome == job.outcome }) {
        last[index].at = max(last[index].at, job.finishedAt)
      } else {
        last.append((job.outcome, job.finishedAt))
      }
    }
    return [
      Metric(
        "quantease_jobs_published_total", .counter, "Jobs whose checkpoint was published.",
        [Series(Double(counters.published))]),
      Metric(
        "quantease_jobs_failed_total", .counter, "Jobs that failed.", [Series(Double(counters.failed))]),
      Metric(
        "quantease_last_job_timestamp_seconds", .gauge,
        "When a job last ended with this outcome, since 1970.",
        last.map { Series($0.at, [("outcome", $0.outcome.rawValue)]) }),
      Metric(
        "quantease_linears_quantized_total", .counter, "Linears that were quantized.",
        [Series(Double(counters.linearsQuantized))]),
      Metric(
        "quantease_worker_restarts_total", .counter, "Times that the process that works was started again.",
        [Series(Double(counters.workerRestarts))]),
      Metric(
        "quantease_cache_bytes", .gauge, "Size of the activation cache on its disk.",
        series(snapshot.cacheBytes)),
      Metric(
        "quantease_free_bytes", .gauge, "Bytes that may still be written to a file system.",
        series(snapshot.cacheFreeBytes, [("where", "cache")])
          + series(snapshot.spoolFreeBytes, [("where", "spool")])),
    ]
  }

  /// Nothing where the figure is not known.
  private func series(_ bytes: Int?, _ labels: [(String, String)] = []) -> [Series] {
    bytes.map { [Series(Double($0), labels)] } ?? []
  }
}

extension StatusSnapshot.Current {
  /// The mean over the layers that have an error; nil while none has.
  var meanError: Double? {
    let errors = errorPerLayer.compactMap { $0 }
    return errors.isEmpty ? nil : errors.reduce(0, +) / Double(errors.count)
  }
}

// MARK: Format

private struct Metric {
  enum Kind: String { case gauge, counter }

  let name: String
  let kind: Kind
  let help: String
  let series: [Series]

  init(_ name: String, _ kind: Kind, _ help: String, _ series: [Series]) {
    self.name = name
    self.kind = kind
    self.help = help
    self.series = series
  }

  var text: String {
    let lines = series.map { "\(name)\($0.labelText) \(Metric.number($0.value))\n" }
    return "# HELP \(name) \(help)\n# TYPE \(name) \(kind.rawValue)\n" + lines.joined()
  }

  /// Whole numbers without a point, so that byte counts keep all their digits.
  static func number(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value > 0 ? "+Inf" : "-Inf" }
    return Int(exactly: value).map(String.init) ?? "\(value)"
  }
}

private struct Series {
  let value: Double
  let labels: [(name: String, value: String)]

  init(_ value: Double, _ labels: [(String, String)] = []) {
    self.value = value
    self.labels = labels
  }

  var labelText: String {
    if labels.isEmpty { return "" }
    return "{" + labels.map { "\($0.name)=\"\(Self.escaped($0.value))\"" }.joined(separator: ",") + "}"
  }

  private static func escaped(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\\": result += "\\\\"
      case "\"": result += "\\\""
      case "\n": result += "\\n"
      // The format has no name for it, and some readers end a line at it.
      case "\r": result += "\u{FFFD}"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }
}
