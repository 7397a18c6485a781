import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

struct StatusSnapshotTests {
  @Test func `the JSON reads back and its keys are in snake case and in order`() throws {
    let snapshot = SampleSnapshots.paused
    let json = try snapshot.json()
    #expect(try StatusSnapshot(json: json) == snapshot)
    let text = String(decoding: json, as: UTF8.self)
    let keys = ["cache_bytes", "cache_free_bytes", "counters", "current", "finished", "made_at", "queue"]
    let places = keys.map { key in text.range(of: "\n  \"\(key)\"")?.lowerBound }
    #expect(!places.contains(nil))
    #expect(zip(places, places.dropFirst()).allSatisfy { $0.0 ?? text.endIndex < $0.1 ?? text.startIndex })
    #expect(text.hasSuffix("}\n"))
    for key in ["error_per_layer", "seconds_remaining", "paused_because", "linears_quantized", "state_text"] {
      #expect(text.contains("\"\(key)\""), "\(key)")
    }
  }

  @Test func `numbers that are none do not cost the JSON`() throws {
    let read = try StatusSnapshot(json: SampleSnapshots.hostile.json())
    #expect(read.current?.name == SampleSnapshots.hostileName)
    #expect(read.current?.secondsElapsed == .infinity)
    #expect(read.current?.secondsRemaining?.isNaN == true)
  }
}

struct StatusPageTests {
  @Test(arguments: SampleSnapshots.all.map(\.name))
  func `a page is whole and needs nothing from outside`(name: String) throws {
    let sample = try #require(SampleSnapshots.all.first { $0.name == name })
    let html = StatusPage(sample.snapshot).html
    for reference in ["<script", "http://", "https://", "src=", "@import", "url("] {
      #expect(!html.contains(reference), "\(reference)")
    }
    #expect(html.hasPrefix("<!doctype html>") && html.hasSuffix("</html>\n"))
    #expect(html.contains(#"<meta http-equiv="refresh" content="10">"#))
    for tag in ["section", "ol", "li", "dl", "div", "p", "span", "bdi", "figure", "svg", "code", "strong"] {
      let opened =
        html.components(separatedBy: "<\(tag)>").count + html.components(separatedBy: "<\(tag) ").count
      let closed = html.components(separatedBy: "</\(tag)>").count
      #expect(opened - 2 == closed - 1, "\(tag)")
    }
    // For looking at: the pages of all samples, in a folder.
    if let folder = TestEnvironment.variable("QUANTEASE_STATUS_PAGES") {
      try AtomicFile.write(html, to: FileSystem.join(folder, "\(name).html"))
    }
  }

  @Test func `every name and text from outside is escaped`() {
    let html = StatusPage(SampleSnapshots.hostile).html
    #expect(!html.contains("<script"))
    #expect(!html.contains("('x')"))
    #expect(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"))
  }

  @Test func `a job at work shows how far it is and what it costs`() {
    let html = StatusPage(SampleSnapshots.working).html
    for text in [
      "<title>45 % · falcon-180b · QuantEase</title>", "aria-valuenow=\"45\"", "width:45.94%",
      "4 h 10 min left",
      "37 of 80", "mlp.<wbr>down_proj", "147 of 320", "FalconForCausalLM", "Error per layer so far",
      "working",
    ] { #expect(html.contains(text), "\(text)") }
    #expect(html.components(separatedBy: "<circle").count - 1 == 37)
  }

  @Test func `what waits says why, and what failed says what to do`() {
    let html = StatusPage(SampleSnapshots.working).html
    #expect(html.contains("<li>model-00014-of-00017.safetensors is missing</li>"))
    #expect(html.contains("Get the checkpoint again; its shard"))
    #expect(html.contains("4 min ago") && html.contains("1 h ago") && html.contains("yesterday"))
    #expect(StatusPage(SampleSnapshots.paused).html.contains("<strong>Paused:</strong> the cache"))
  }

  @Test func `a long past is cut, and says so`() {
    let html = StatusPage(SampleSnapshots.failures).html
    #expect(html.components(separatedBy: "<li class=\"job\">").count - 1 == 50)
    #expect(html.contains("And 21 more."))
  }

  @Test func `a layer count that no model has does not fill the page`() {
    var snapshot = SampleSnapshots.working
    snapshot.current?.layerCount = Int.max
    #expect(StatusPage(snapshot).html.utf8.count < 50_000)
  }
}

struct MetricsTests {
  /// name{label="value",…} number
  private static var sample: Regex<(Substring, Substring, Substring?, Substring)> {
    #/(quantease_[a-z_]+)(\{[a-z]+="(?:[^"\\]|\\["\\n])*"(?:,[a-z]+="(?:[^"\\]|\\["\\n])*")*\})? (\S+)/#
  }

  private static func number(_ text: Substring) -> Double? {
    switch text {
    case "NaN": .nan
    case "+Inf": .infinity
    case "-Inf": -.infinity
    default: Double(text)
    }
  }

  /// The series of an exposition, by name and labels; nil where a line is not of the format.
  private func parse(_ text: String) -> [(series: String, value: Double)]? {
    guard text.hasSuffix("\n") else { return nil }
    var typed: Set<String> = []
    var result: [(String, Double)] = []
    // By line feed alone, as the format has it.
    for line in text.utf8.split(separator: 0x0A).map({ String(Substring($0)) }) {
      if line.hasPrefix("# HELP ") { continue }
      if line.hasPrefix("# TYPE ") {
        let words = line.split(separator: " ")
        guard words.count == 4, ["gauge", "counter"].contains(words[3]) else { return nil }
        guard typed.insert(String(words[2])).inserted else { return nil }
        if (words[3] == "counter") != words[2].hasSuffix("_total") { return nil }
        continue
      }
      guard let match = line.wholeMatch(of: Self.sample), typed.contains(String(match.1)),
        let value = Self.number(match.3)
      else { return nil }
      result.append((String(match.1) + (match.2.map(String.init) ?? ""), value))
    }
    return result
  }

  @Test(arguments: SampleSnapshots.all.map(\.name))
  func `the text is of the format and no series comes twice`(name: String) throws {
    let sample = try #require(SampleSnapshots.all.first { $0.name == name })
    let series = try #require(parse(Metrics(sample.snapshot).text)).map(\.series)
    #expect(series.count >= 12)
    #expect(Set(series).count == series.count)
  }

  @Test func `the figures are the snapshot's`() throws {
    let series = try #require(parse(Metrics(SampleSnapshots.working).text))
    let values = Dictionary(uniqueKeysWithValues: series.map { ($0.series, $0.value) })
    let job = #"{job="9f31c07be2a4",name="falcon-180b"}"#
    #expect(values["quantease_up"] == 1)
    #expect(values[#"quantease_build_info{version="0.4.0"}"#] == 1)
    #expect(values["quantease_jobs_published_total"] == 41)
    #expect(values["quantease_jobs_failed_total"] == 2)
    #expect(values["quantease_linears_quantized_total"] == 11_204)
    #expect(values["quantease_worker_restarts_total"] == 1)
    #expect(values[#"quantease_queue_length{state="queued"}"#] == 1)
    #expect(values[#"quantease_queue_length{state="arriving"}"#] == 1)
    #expect(values["quantease_job_progress_ratio" + job] == 147.0 / 320)
    #expect(values["quantease_job_layer" + job] == 36)
    #expect(values["quantease_job_seconds_remaining" + job] == 15_010)
    #expect(values["quantease_job_paused" + job] == 0)
    let error = try #require(values["quantease_job_relative_error" + job])
    #expect(error > 0.0005 && error < 0.002)
    #expect(values["quantease_cache_bytes"] == 5_130_000_000)
    #expect(values[#"quantease_free_bytes{where="cache"}"#] == 1_814_000_000_000)
    #expect(values[#"quantease_free_bytes{where="spool"}"#] == 3_110_000_000_000)
    #expect(values[#"quantease_last_job_timestamp_seconds{outcome="published"}"#] == 1_789_986_000)
  }

  @Test func `a daemon without a job has no series of a job`() {
    let text = Metrics(SampleSnapshots.stopped).text
    #expect(!text.contains("{job="))
    #expect(text.contains("# TYPE quantease_job_layer gauge\n"))
    #expect(text.contains("\nquantease_up 0\n") || text.hasPrefix("quantease_up 0\n"))
  }

  @Test func `a name cannot end its label nor its line`() {
    let text = Metrics(SampleSnapshots.hostile).text
    #expect(text.contains(#"</script>\"&Donau"#))
    #expect(text.contains(#"\n# TYPE evil counter\\""#))
    #expect(!text.contains("\n# TYPE evil"))
  }
}
