/// `quantease_report.html`: the report as one page for people, which needs no other file and no network.
public struct ReportPage {
  public static let fileName = "quantease_report.html"

  private let report: Report

  public init(report: Report) { self.report = report }

  public var html: String {
    """
    <!doctype html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <title>\(escaped(report.model.name)), quantized</title>
    <style>
    \(pageStyle)
    </style>
    </head>
    <body>
    <main>
    \(headline)
    \(warnings)
    \(evaluations)
    \(tasks)
    \(errors)
    \(experts)
    \(worstLinears)
    \(phases)
    \(runtimes)
    \(settings)
    \(allLinears)
    </main>
    </body>
    </html>

    """
  }

  // MARK: Headline

  private var headline: String {
    let totals = report.totals
    let settings = report.settings
    let saved =
      totals.inputBytes > 0
      ? signed(Double(totals.outputBytes) / Double(totals.inputBytes) - 1) : ""
    return """
      <header>
      <p class="kicker">QuantEase report</p>
      <h1>\(escaped(report.model.name))</h1>
      <p class="lead">\(grouped(totals.linears)) linears, \(grouped(totals.parametersQuantized)) weights, \
      \(gridNote), by \(escaped(settings.solver)).\(origin)</p>
      <div class="cards">
      \(card("Mean relative error", percent(totals.meanRelativeError), "of the linears' outputs"))
      \(card(
        "Size", "\(byteSize(totals.inputBytes)) → \(byteSize(totals.outputBytes))",
        "\(saved)\(saved.isEmpty ? "" : ", ")\(fixed(totals.bitsPerWeight, 2)) bits per quantized weight"))
      \(card("Time", duration(totals.seconds), "\(grouped(totals.tokens)) calibration tokens"))
      \(card("Peak memory", byteSize(totals.peakMemoryBytes), cacheNote))
      </div>
      </header>
      """
  }

  /// Whose figures they are, where the run was another job's.
  private var origin: String {
    report.madeBy.map { " Made by the job <code>\(escaped($0))</code>, which was the same." } ?? ""
  }

  private var warnings: String {
    if report.warnings.isEmpty { return "" }
    let items = report.warnings.map { "<li>\(escaped($0))</li>" }
    return """
      <section>
      <h2>Warnings</h2>
      <ul>
      \(items.joined(separator: "\n"))
      </ul>
      </section>
      """
  }

  private func card(_ title: String, _ value: String, _ note: String) -> String {
    // On a narrow card, a change may break after its arrow and nowhere else.
    let breakable = escaped(value).replacing("→ ", with: "→<wbr> ")
    return """
      <div class="card"><h2>\(escaped(title))</h2><p class="value">\(breakable)</p>\
      <p class="note">\(escaped(note))</p></div>
      """
  }

  private var cacheNote: String {
    let totals = report.totals
    if totals.states == "memory" { return "states included, mapped files aside" }
    guard totals.cacheBytesRaw > 0 else { return "mapped files aside" }
    return "cache \(byteSize(totals.cacheBytesRaw)) → \(byteSize(totals.cacheBytesCompressed))"
  }

  private func signed(_ share: Double) -> String {
    "\(share < 0 ? "−" : "+")\(fixed(abs(share) * 100, 0)) %"
  }

  private func groupNote(_ groupSize: Int) -> String {
    groupSize == -1 ? "one grid per row" : "groups of \(groupSize)"
  }

  // MARK: Evaluations

  private var evaluations: String {
    guard let evaluations = report.evaluations, !evaluations.isEmpty else { return "" }
    let rows = evaluations.map { evaluation in
      let figures = evaluation.figures
      let compared = figures.against.map { against in
        """
        <td>\(fixed(against.referencePerplexity, 2))</td><td>\(fixed(against.perplexityRatio, 4)) ± \
        \(fixed(against.perplexityRatioError, 4))</td><td>\(fixed(against.mean, 4))</td>\
        <td>\(fixed(against.percentile99, 3))</td><td>\(fixed(against.sameChoice * 100, 1)) %</td>
        """
      }
      return """
        <tr><th scope="row">\(escaped(evaluation.text))</th><td>\(grouped(figures.tokens))</td>\
        <td>\(fixed(figures.perplexity, 2))</td>\(compared ?? String(repeating: "<td></td>", count: 5))</tr>
        """
    }
    let references = Set(evaluations.compactMap(\.reference)).sorted().map { "<code>\(escaped($0))</code>" }
    let explanation =
      references.isEmpty
      ? ""
      : """
      <p class="hint">Beside \(references.joined(separator: ", ")): the divergence is Kullback and Leibler's of \
      the next token's distribution, in nats, its mean over all predictions and what 99 of a hundred stay below; the same \
      token says for how many of them both have the same likeliest one.</p>
      """
    return """
      <section>
      <h2>On other text</h2>
      \(explanation)
      <table>
      <thead><tr><th scope="col">Text</th><th scope="col">Tokens</th><th scope="col">Perplexity</th>\
      <th scope="col">Before</th><th scope="col">Ratio</th><th scope="col">Divergence</th>\
      <th scope="col">99 % below</th><th scope="col">Same token</th></tr></thead>
      <tbody>
      \(rows.joined(separator: "\n"))
      </tbody>
      </table>
      </section>
      """
  }

  private var tasks: String {
    guard let tasks = report.tasks, !tasks.isEmpty else { return "" }
    func percent(_ share: Double?) -> String { share.map { "\(fixed($0 * 100, 1)) %" } ?? "" }
    let rows = tasks.map { evaluation in
      let figures = evaluation.figures
      let before =
        figures.reference.map { "\(percent($0.accuracy)) ± \(fixed($0.accuracyError * 100, 1))" } ?? ""
      let changes =
        figures.lost.flatMap { lost in figures.gained.map { "−\(grouped(lost)), +\(grouped($0))" } } ?? ""
      return """
        <tr><th scope="row">\(escaped(evaluation.task))</th><td>\(grouped(figures.questions))</td>\
        <td>\(percent(figures.model.accuracy)) ± \(fixed(figures.model.accuracyError * 100, 1))</td><td>\(before)</td>\
        <td>\(changes)</td><td>\(percent(figures.model.normalizedAccuracy))</td>\
        <td>\(percent(figures.reference?.normalizedAccuracy))</td></tr>
        """
    }
    return """
      <section>
      <h2>Questions</h2>
      <p class="hint">The share whose right answer is the likeliest one, or of last words those that greedy decoding says, with the
      standard error; by the character: likelihoods divided by the answer's length. Lost and gained are questions that the model
      had right before and has not now, and the other way round.</p>
      <table>
      <thead><tr><th scope="col">Task</th><th scope="col">Questions</th><th scope="col">Right</th>\
      <th scope="col">Before</th><th scope="col">Lost, gained</th><th scope="col">By the character</th>\
      <th scope="col">Before</th></tr></thead>
      <tbody>
      \(rows.joined(separator: "\n"))
      </tbody>
      </table>
      </section>
      """
  }

  // MARK: Errors

  private var errors: String {
    guard let chart = ErrorChart(linears: report.linears) else { return "" }
    let legend = chart.series.enumerated().map { index, series in
      """
      <label class="\(ErrorChart.colourClass(index))"><input type="checkbox" id="show-\(index)" checked>\
      <span class="key"></span>\(escaped(series.kind))</label>
      """
    }
    // A line goes when its box in the legend is cleared: no script is needed for that.
    let switches = chart.series.indices.map { index in
      ".chart:has(#show-\(index):not(:checked)) #series-\(index) { display: none }"
    }
    return """
      <section>
      <h2>Error per layer</h2>
      <p class="hint">‖(W − Ŵ)X‖² / ‖WX‖² of each linear over the calibration set, X being its inputs in \
      the model as quantized so far, W its \(weightsNote) weights. Point at a dot for its name; click a name to hide its line.</p>
      <figure class="chart">
      <style>\(switches.joined(separator: "\n"))</style>
      \(chart.svg)
      <figcaption class="legend">\(legend.joined(separator: "\n"))</figcaption>
      </figure>
      </section>
      """
  }

  private var experts: String {
    guard let map = ExpertMap(linears: report.linears) else { return "" }
    let tokens = map.tokensOfExperts
    let idle =
      map.idleExperts == 0
      ? "" : " \(grouped(map.idleExperts)) of \(grouped(map.cells.count)) were reached by none (red)."
    let pictures = [ExpertMap.Measure.error, .tokens].map { measure in
      let ends = map.ends(measure)
      let shades = (0..<ExpertMap.shades).map { "<span class=\"shade-\($0)\"></span>" }
      return """
        <figure class="chart">
        <h3>\(measure.rawValue)</h3>
        \(map.svg(measure))
        <figcaption class="legend scale">\(escaped(ends.least))<span class="ramp">\(shades.joined())</span>\
        \(escaped(ends.most))</figcaption>
        </figure>
        """
    }
    return """
      <section>
      <h2>Experts</h2>
      <p class="hint">Calibration tokens that reached an expert: \(grouped(tokens.fewest)) at least, \
      \(grouped(tokens.median)) in the middle, \(grouped(tokens.most)) at most.\(idle) An expert is solved \
      for its own tokens and, as far as they are like all others, for what all are like.</p>
      \(pictures.joined(separator: "\n"))
      </section>
      """
  }

  private var worstLinears: String {
    guard !report.linears.isEmpty else { return "" }
    let worst = Array(report.linears.sorted { $0.relativeError > $1.relativeError }.prefix(10))
    let largest = worst.map(\.relativeError).filter(\.isFinite).max() ?? 0
    let rows = worst.map { linear in
      let share = largest > 0 ? max(0, min(linear.relativeError / largest, 1)) : 0
      return """
        <tr><th scope="row">\(breakable(linear.name))</th>\
        <td>\(linear.shape.map { "\($0)" }.joined(separator: " × "))</td>\
        <td class="meter"><span style="width:\(fixed(share * 100, 1))%"></span></td>\
        <td>\(escaped(percent(linear.relativeError)))</td></tr>
        """
    }
    return """
      <section>
      <h2>Largest errors</h2>
      <table>
      <thead><tr><th scope="col">Linear</th><th scope="col">Shape</th>\
      <th scope="col" class="meter"></th><th scope="col">Error</th></tr></thead>
      <tbody>
      \(rows.joined(separator: "\n"))
      </tbody>
      </table>
      </section>
      """
  }

  // MARK: Time

  private var phases: String {
    let phases = report.totals.secondsPerPhase.filter { $0.value > 0 }
      .sorted { ($1.value, $0.key) < ($0.value, $1.key) }
    let sum = phases.reduce(0) { $0 + $1.value }
    guard sum > 0 else { return "" }
    let parts = phases.enumerated().map { index, phase in
      """
      <span class="\(ErrorChart.colourClass(index))" style="width:\(fixed(phase.value / sum * 100, 2))%" \
      title="\(escaped(phase.key)): \(duration(phase.value))"></span>
      """
    }
    let rows = phases.enumerated().map { index, phase in
      """
      <tr><th scope="row"><span class="key \(ErrorChart.colourClass(index))"></span>\
      \(escaped(phase.key.replacing("_", with: " ")))</th>\
      <td>\(duration(phase.value))</td><td>\(fixed(phase.value / sum * 100, 1)) %</td></tr>
      """
    }
    return """
      <section>
      <h2>Where the time went</h2>
      <div class="bar">\(parts.joined())</div>
      <table class="narrow"><tbody>
      \(rows.joined(separator: "\n"))
      </tbody></table>
      </section>
      """
  }

  // MARK: Use

  private var runtimes: String {
    guard !report.loadsIn.isEmpty else { return "" }
    let rows = report.loadsIn.map { support in
      """
      <tr><th scope="row">\(escaped(support.runtime))</th><td>\(support.format.rawValue)</td>\
      <td class="\(support.loads ? "yes" : "no")">\(support.loads ? "loads" : "does not load")</td>\
      <td class="wide">\(escaped(support.note))</td></tr>
      """
    }
    return """
      <section>
      <h2>What loads it</h2>
      <table class="texts">
      <thead><tr><th scope="col">Runtime</th><th scope="col">Format</th><th scope="col"></th>\
      <th scope="col"></th></tr></thead>
      <tbody>
      \(rows.joined(separator: "\n"))
      </tbody>
      </table>
      \(snippets)
      </section>
      """
  }

  private var snippets: String {
    func format(for runtime: String) -> OutputFormatName? {
      report.loadsIn.first { $0.runtime == runtime && $0.loads }?.format
    }
    func directory(_ format: OutputFormatName) -> String {
      report.settings.formats.count > 1 ? "./\(format.rawValue)" : "."
    }
    var snippets: [String] = []
    if let format = format(for: "vLLM") {
      snippets.append("<h3>vLLM</h3><pre><code>vllm serve \(directory(format))</code></pre>")
    }
    if let format = format(for: "transformers") {
      let code = """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = "\(directory(format))"
        model = AutoModelForCausalLM.from_pretrained(path, device_map="auto")
        tokenizer = AutoTokenizer.from_pretrained(path)
        """
      snippets.append("<h3>transformers</h3><pre><code>\(escaped(code))</code></pre>")
    }
    if snippets.isEmpty { return "" }
    return "<p class=\"hint\">From the folder of this report:</p>\n" + snippets.joined(separator: "\n")
  }

  // MARK: Settings and everything

  /// Whose quantization the errors are of.
  private var weightsNote: String {
    report.settings.targetSamples == nil ? "own" : "own or, where it adds to the residual stream, corrected"
  }

  private var targetNote: String {
    let settings = report.settings
    guard let samples = settings.targetSamples else { return settings.target }
    return "\(settings.target), on \(grouped(samples)) of \(grouped(settings.calibration.samples)) samples"
  }

  private var settings: String {
    let settings = report.settings
    let calibration = settings.calibration
    let entries =
      [
        ("Architecture", report.model.architecture),
        ("Solver", settings.solver),
        ("Target", targetNote),
      ] + gridEntries + (settings.allocation.map { [("Bits by need", $0.description)] } ?? [])
      + (settings.rotation.map { [("Rotation", $0.description)] } ?? [])
      + (report.correctedHead.map { [("Head", "\($0), corrected for what the layers have lost")] } ?? [])
      + (report.tuning.map { [("Norms", $0.description)] } ?? []) + [
        ("Formats", settings.formats.map(\.rawValue).joined(separator: ", ")),
        ("Computed by", settings.kernels ?? "unknown"),
        ("Calibration", calibration.source),
        (
          "Samples",
          "\(grouped(calibration.samples)) × \(grouped(calibration.sequenceLength)) tokens"
            + (calibration.overlapping.map { ", \(grouped($0)) of them of text that others are cut of" } ?? "")
        ),
        ("Seed", "\(calibration.seed)"),
      ]
    let list = entries.map { "<div><dt>\($0.0)</dt><dd>\(escaped($0.1))</dd></div>" }
    return """
      <section>
      <h2>Settings</h2>
      <dl>
      \(list.joined(separator: "\n"))
      </dl>
      </section>
      """
  }

  private var gridNote: String {
    let settings = report.settings
    if let gguf = settings.gguf { return escaped("\(gguf.file), \(gguf.description)") }
    return
      "\(settings.width)\(settings.allocation == nil ? "" : ",") \(settings.symmetric ? "symmetric" : "asymmetric"), \(groupNote(settings.groupSize))"
  }

  private var gridEntries: [(String, String)] {
    let settings = report.settings
    if let gguf = settings.gguf {
      return [("GGUF file", gguf.file + (gguf.isPure ? ", pure" : "")), ("Types", gguf.description)]
        + (gguf.fallbacks.isEmpty
          ? [] : [("Fallbacks", "\(gguf.fallbacks.count) tensors, whose rows are no whole blocks")])
        + (report.head.map {
          [("Head", "\($0.name) as \($0.type ?? ""), error \(percent($0.relativeError))")]
        } ?? [])
        + (report.rounded.map { [("Rounded without inputs", $0.joined(separator: ", "))] } ?? [])
    }
    return [
      ("Bits", settings.width),
      ("Group size", settings.groupSize == -1 ? "whole row (−1)" : "\(settings.groupSize)"),
      ("Grid", settings.symmetric ? "symmetric" : "asymmetric"),
    ]
  }

  private var allLinears: String {
    guard !report.linears.isEmpty else { return "" }
    let rows = report.linears.map { linear in
      """
      <tr><th scope="row">\(breakable(linear.name))</th>\
      <td>\(linear.shape.map { "\($0)" }.joined(separator: " × "))</td>\
      <td>\(linear.type ?? "\(linear.bits)\(linear.symmetric ? "" : " asym")")</td>\
      <td>\(linear.groupSize == -1 ? "row" : "\(linear.groupSize)")</td>\
      <td>\(fixed(linear.bitsPerWeight, 2))</td>\
      <td>\(escaped(percent(linear.relativeError)))</td><td>\(fixed(linear.seconds, 2))</td></tr>
      """
    }
    return """
      <section>
      <details>
      <summary>All \(grouped(report.linears.count)) linears</summary>
      <div class="scroll">
      <table>
      <thead><tr><th scope="col">Linear</th><th scope="col">Shape</th><th scope="col">Bits</th>\
      <th scope="col">Group</th><th scope="col">Bits per weight</th><th scope="col">Error</th>\
      <th scope="col">Seconds</th></tr></thead>
      <tbody>
      \(rows.joined(separator: "\n"))
      </tbody>
      </table>
      </div>
      </details>
      </section>
      """
  }

  /// A module's name that may break after its dots, so that it fits a narrow screen.
  private func breakable(_ name: String) -> String {
    escaped(name).replacing(".", with: ".<wbr>")
  }
}
