import Export
import FoundationEssentials

// The jobs to come and those that are over, and when.
extension StatusPage {
  // MARK: Queue

  var queue: String {
    if snapshot.queue.isEmpty {
      return """
        <section>
        <h2>Queue</h2>
        <p class="hint last">Nothing waits. Put a checkpoint’s folder into the drop folder.</p>
        </section>
        """
    }
    let items = snapshot.queue.prefix(Self.queueLimit).map { job in
      let reasons = job.notes(now: snapshot.madeAt).map { "<li>\(escaped($0))</li>" }.joined()
      return """
        <li class="job">
        <p class="top"><strong>\(name(job.name))</strong>\
        <span class="tag \(job.state.rawValue)">\(job.state.rawValue)</span></p>
        <p class="facts">arrived \(age(job.arrivedAt))</p>
        \(reasons.isEmpty ? "" : "<ul class=\"reasons\">\(reasons)</ul>")
        </li>
        """
    }
    return """
      <section>
      <h2>Queue</h2>
      <ol class="jobs">
      \(items.joined(separator: "\n"))
      </ol>
      \(more(snapshot.queue.count - items.count))
      </section>
      """
  }

  // MARK: Finished

  var finished: String {
    if snapshot.finished.isEmpty { return "" }
    let items = snapshot.finished.prefix(Self.finishedLimit).map { job in
      """
      <li class="job">
      <p class="top"><strong>\(name(job.name))</strong>\
      <span class="tag \(job.outcome.rawValue)">\(job.outcome.rawValue)</span></p>
      <p class="facts">\(facts(of: job).joined(separator: " · "))</p>
      \(job.output.map { "<p class=\"path\"><code>\(name($0))</code></p>" } ?? "")
      \(job.failure.map(failure) ?? "")
      \(warnings(job.warnings))
      </li>
      """
    }
    return """
      <section>
      <h2>Finished</h2>
      <ol class="jobs">
      \(items.joined(separator: "\n"))
      </ol>
      \(more((snapshot.finishedCount ?? snapshot.finished.count) - items.count))
      </section>
      """
  }

  private func facts(of job: StatusSnapshot.Finished) -> [String] {
    [
      age(job.finishedAt),
      job.seconds.map { "took \(escaped(duration($0)))" },
      job.meanRelativeError.map { "error \(escaped(percent($0)))" },
      job.bitsPerWeight.map { "\(fixed($0, 2)) bits per weight" },
      "<span class=\"id\">\(name(job.id))</span>",
    ].compactMap { $0 }
  }

  private func failure(_ failure: StatusSnapshot.Failure) -> String {
    let mend = failure.mend.map { "<p class=\"mend\">\(escaped(sentence($0)))</p>" } ?? ""
    return """
      <div class="failure"><p>\(escaped(failure.message)) \
      <span class="code" title="exit status, after sysexits.h">\(failure.code)</span></p>\(mend)</div>
      """
  }

  func warnings(_ warnings: [String]?) -> String {
    guard let warnings, !warnings.isEmpty else { return "" }
    let shown = warnings.prefix(Self.warningLimit).map { "<li>\(escaped($0))</li>" }.joined()
    return "<ul class=\"reasons\">\(shown)</ul>\(more(warnings.count - Self.warningLimit))"
  }

  private func more(_ count: Int) -> String {
    count > 0 ? "<p class=\"hint last\">And \(grouped(count)) more.</p>" : ""
  }

  // MARK: Time

  /// How long ago something was, as a person says it; the moment itself stands behind it.
  private func age(_ seconds: Double) -> String {
    let age = snapshot.madeAt - seconds
    // A clock that was set back is no reason to speak of the future.
    let words =
      switch age {
      case ..<60: "just now"
      case ..<3600: "\(Int(age / 60)) min ago"
      case ..<86_400: "\(Int(age / 3600)) h ago"
      case ..<1e12: age < 172_800 ? "yesterday" : "\(grouped(Int(age / 86_400))) days ago"
      default: "at an unknown time"
      }
    return "<time title=\"\(utc(seconds))\">\(words)</time>"
  }

  func moment(_ seconds: Double) -> String { "<time>\(utc(seconds))</time>" }

  private func utc(_ seconds: Double) -> String {
    // Beyond these a calendar is of no use, and a number that is none has no date.
    guard seconds.isFinite, abs(seconds) < 1e11 else { return "an unknown time" }
    let text = Date(timeIntervalSince1970: seconds.rounded(.down)).formatted(.iso8601)
    return text.replacing("T", with: " ").replacing("Z", with: " UTC")
  }
}
