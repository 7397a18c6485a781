import Export
import FoundationEssentials

/// A snapshot as one page for people. It needs no script, no other file and no network, and asks for itself
/// again every ten seconds.
public struct StatusPage: Sendable {
  public static let contentType = "text/html; charset=utf-8"
  /// How many finished jobs are shown.
  static let finishedLimit = 50
  /// How many warnings of one job are shown.
  static let warningLimit = 20
  /// How many jobs of the queue are shown.
  static let queueLimit = 100

  let snapshot: StatusSnapshot

  public init(_ snapshot: StatusSnapshot) { self.snapshot = snapshot }

  public var html: String {
    """
    <!doctype html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <meta http-equiv="refresh" content="10">
    <link rel="icon" href="data:,">
    <title>\(escaped(title))</title>
    <style>
    \(pageStyle)
    \(statusStyle)
    </style>
    </head>
    <body>
    <main>
    \(headline)
    \(current)
    \(queue)
    \(finished)
    \(footer)
    </main>
    </body>
    </html>

    """
  }

  // MARK: Headline

  /// What the page says first; its raw value is the colour's class.
  enum Mood: String { case working, paused, held, idle, stopped }

  var mood: Mood {
    if snapshot.service == .stopped { return .stopped }
    if snapshot.hold != nil { return .held }
    guard let current = snapshot.current else { return .idle }
    return current.pausedBecause == nil ? .working : .paused
  }

  private var title: String {
    guard let current = snapshot.current else { return "QuantEase, \(mood.rawValue)" }
    let share = current.progress.map { "\(wholePercent($0)) % · " } ?? ""
    return "\(share)\(current.name) · QuantEase"
  }

  private var headline: String {
    let heading = snapshot.current.map { name($0.name) } ?? sentence(mood.rawValue)
    let cards = [
      card("Queue", grouped(snapshot.queue.count), queueNote),
      card(
        "Published", grouped(snapshot.counters.published),
        snapshot.counters.failed == 0 ? "none failed" : "\(grouped(snapshot.counters.failed)) failed"),
      card("Free for output", size(snapshot.spoolFreeBytes), "on the spool's disk"),
      card("Activation cache", size(snapshot.cacheBytes), "\(size(snapshot.cacheFreeBytes)) free"),
    ]
    return """
      <header>
      <p class="kicker">QuantEase\(mark)</p>
      <h1>\(heading)</h1>
      <p class="lead">\(escaped(lead))</p>
      <div class="cards">
      \(cards.joined(separator: "\n"))
      </div>
      </header>
      """
  }

  /// Without a job the heading says it already.
  private var mark: String {
    snapshot.current == nil ? "" : "<span class=\"mood \(mood.rawValue)\">\(mood.rawValue)</span>"
  }

  /// With a job the line begins with its name, which stays as it is.
  private var lead: String {
    snapshot.current == nil ? sentence(snapshot.stateText) : snapshot.stateText
  }

  private var queueNote: String {
    snapshot.queue.isEmpty ? "nothing waits" : snapshot.queueLengths { grouped($0) }.joined(separator: ", ")
  }

  private func size(_ bytes: Int?) -> String { bytes.map { byteSize($0) } ?? "unknown" }

  private func card(_ title: String, _ value: String, _ note: String) -> String {
    """
    <div class="card"><h2>\(escaped(title))</h2><p class="value">\(escaped(value))</p>\
    <p class="note">\(escaped(note))</p></div>
    """
  }

  // MARK: The job at work

  private var current: String {
    guard let current = snapshot.current else { return "" }
    let paused = current.pausedBecause.map { reason in
      let retry = current.retryAt.map { " Tried again at \(Schedule.clock($0, now: snapshot.madeAt))." } ?? ""
      let space = current.shortage.map { " \(sentence($0.text))." } ?? ""
      return "<p class=\"notice\"><strong>Paused:</strong> \(escaped(reason + retry + space))</p>"
    }
    let attempt = current.attemptText.map { "<p class=\"notice\">\(escaped(sentence($0)))</p>" }
    return """
      <section>
      <h2>\(escaped(sentence(current.step)))</h2>
      \(paused ?? "")
      \(attempt ?? "")
      \(progress(of: current))
      <dl>
      \(facts(of: current).map { "<div><dt>\($0.0)</dt><dd>\($0.1)</dd></div>" }.joined(separator: "\n"))
      </dl>
      \(warnings(current.warnings))
      </section>
      \(chart(of: current))
      """
  }

  private func progress(of current: StatusSnapshot.Current) -> String {
    let left = current.pausedBecause == nil ? snapshot.leftText(of: current) ?? "" : ""
    guard let share = current.progress else {
      return left.isEmpty ? "" : "<p class=\"hint\">\(escaped(left))</p>"
    }
    let percent = wholePercent(share)
    return """
      <p class="amounts"><strong>\(percent) %</strong><span>\(escaped(left))</span></p>
      <div class="track" role="progressbar" aria-valuenow="\(percent)" aria-valuemin="0" aria-valuemax="100">\
      <span class="\(mood.rawValue)" style="width:\(fixed(share * 100, 2))%"></span></div>
      """
  }

  private func facts(of current: StatusSnapshot.Current) -> [(String, String)] {
    var facts: [(String, String)] = []
    if let place = current.place { facts.append(("Where", escaped(place))) }
    if let layer = current.layer {
      facts.append(
        (
          "Decoder layer",
          current.layerCount.map { "\(grouped(layer + 1)) of \(grouped($0))" } ?? "\(layer + 1)"
        ))
    }
    if let linear = current.linear { facts.append(("Linear", name(linear))) }
    if current.linearCount > 0 {
      facts.append(("Linears done", "\(grouped(current.linearsDone)) of \(grouped(current.linearCount))"))
    }
    if let error = current.meanError { facts.append(("Mean relative error", escaped(percent(error)))) }
    facts.append(("Elapsed", escaped(duration(current.secondsElapsed))))
    if let architecture = current.architecture { facts.append(("Architecture", name(architecture))) }
    if let kernels = current.kernels { facts.append(("Kernels", name(kernels))) }
    facts.append(("Job", "<code>\(name(current.id))</code>"))
    return facts
  }

  private func chart(of current: StatusSnapshot.Current) -> String {
    // A count that no model has would fill the page with ticks.
    let count = min(current.layerCount ?? current.errorPerLayer.count, 10_000)
    guard let chart = ErrorChart(errorPerLayer: current.errorPerLayer, layerCount: count) else { return "" }
    return """
      <section>
      <h2>Error per layer so far</h2>
      <p class="hint">‖(W − Ŵ)X‖² / ‖WX‖² over the calibration set, the mean of each layer’s linears.</p>
      <figure class="chart">
      \(chart.svg)
      </figure>
      </section>
      """
  }

  // MARK: Words

  /// A name from outside: whatever it is made of, it ends where it ends, and breaks where it must.
  func name(_ text: String) -> String {
    "<bdi>\(escaped(text).replacing(".", with: ".<wbr>").replacing("/", with: "/<wbr>"))</bdi>"
  }

  /// Rounded down: 100 % is said when all is done.
  private func wholePercent(_ share: Double) -> Int { Int((share * 100).rounded(.down)) }

  func sentence(_ text: String) -> String { text.prefix(1).uppercased() + text.dropFirst() }

  private var footer: String {
    """
    <footer>
    <p>QuantEase \(escaped(snapshot.version)), as of \(moment(snapshot.madeAt)). \
    For programs: <a href="metrics">metrics</a>, <a href="status.json">status.json</a>.</p>
    </footer>
    """
  }
}
