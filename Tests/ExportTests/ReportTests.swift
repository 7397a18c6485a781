import Testing

@testable import Export

/// A report of a model of `layers` decoder layers with the linears of llama.
func sampleReport(layers: Int, name: String = "SmolLM2-135M-Instruct") -> Report {
  var dice = Dice(state: 3)
  let kinds: [(String, [Int], Double)] = [
    ("self_attn.q_proj", [576, 576], 0.0012), ("self_attn.k_proj", [192, 576], 0.0009),
    ("self_attn.v_proj", [192, 576], 0.0031), ("self_attn.o_proj", [576, 576], 0.0038),
    ("mlp.gate_proj", [1536, 576], 0.0027), ("mlp.up_proj", [1536, 576], 0.0034),
    ("mlp.down_proj", [576, 1536], 0.0096),
  ]
  let linears = (0..<layers).flatMap { layer in
    kinds.map { kind, shape, error in
      let depth = 1 + 1.6 * Double(layer) / Double(max(layers - 1, 1)) + (layer == layers - 1 ? 2 : 0)
      return Report.Linear(
        name: "model.layers.\(layer).\(kind)", shape: shape, bits: 4, groupSize: -1, symmetric: false,
        solver: "quantease", relativeError: error * depth * Double.random(in: 0.6...1.5, using: &dice),
        seconds: Double.random(in: 0.05...0.5, using: &dice), layer: layer,
        bitsPerWeight: 4 + 20 / Double(shape[1]))
    }
  }
  var totals = Report.Totals(of: linears)
  totals.secondsPerPhase = [
    "forward": 38.2, "gram_matrices": 17.9, "solve": 24.4, "cache": 3.1, "export": 1.9, "tokenize": 0.8,
  ]
  totals.seconds = 88.4
  totals.tokens = 16_384
  totals.peakMemoryBytes = 612_000_000
  totals.cacheBytesRaw = 18_874_368
  totals.cacheBytesCompressed = 13_212_057
  totals.inputBytes = 269_060_552
  totals.outputBytes = 110_423_808
  let formats: [OutputFormatName] = [.compressedTensors, .gptqV2]
  let grid = gridFormat(.four, .channel, symmetric: false, for: formats)
  return Report(
    model: .init(name: name, architecture: "LlamaForCausalLM"),
    settings: .init(
      bits: 4, groupSize: -1, symmetric: false, solver: "quantease", target: "original", targetSamples: 8,
      formats: formats,
      calibration: .init(
        samples: 32, sequenceLength: 512, seed: 0, source: "smollm2-calibration-32x512.safetensors")),
    linears: linears, totals: totals,
    loadsIn: formats.flatMap { $0.format.runtimes(for: grid, of: []) })
}

struct ReportTests {
  @Test func `the JSON reads back and its keys are in snake case`() throws {
    let report = sampleReport(layers: 2)
    let json = try report.json()
    #expect(try Report(json: json) == report)
    let text = String(decoding: json, as: UTF8.self)
    for key in [
      "model", "settings", "group_size", "relative_error", "bits_per_weight", "seconds_per_phase",
      "gram_matrices", "parameters_quantized", "mean_relative_error", "peak_memory_bytes",
      "cache_bytes_raw", "cache_bytes_compressed", "input_bytes", "output_bytes", "loads_in",
      "sequence_length", "target", "target_samples",
    ] { #expect(text.contains("\"\(key)\" :") || text.contains("\"\(key)\":"), "\(key)") }
  }

  @Test func `an error that is not a number does not cost the report`() throws {
    var report = sampleReport(layers: 1)
    report.linears[0].relativeError = .nan
    report.linears[1].relativeError = .infinity
    report.linears[2].relativeError = 0
    let read = try Report(json: report.json())
    #expect(read.linears[0].relativeError.isNaN && read.linears[1].relativeError == .infinity)
    #expect(ReportPage(report: report).html.contains("<svg"))
  }

  @Test func `totals count and weigh by parameters`() {
    let linears = sampleReport(layers: 3).linears
    let totals = Report.Totals(of: linears)
    #expect(totals.linears == 21)
    #expect(totals.parametersQuantized == 3 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576))
    #expect(totals.bitsPerWeight > 4.01 && totals.bitsPerWeight < 4.04)
    #expect(Report.Totals(of: []).meanRelativeError == 0)
  }

  @Test func `the page escapes every name that comes from outside`() {
    let hostile = "<script>alert('x')</script>\"&"
    var report = sampleReport(layers: 1, name: hostile)
    report.model.architecture = hostile
    report.settings.solver = hostile
    report.settings.calibration.source = hostile
    report.linears[0].name = "model.\(hostile).q\(hostile)"
    report.totals.secondsPerPhase[hostile] = 1
    report.loadsIn[0].runtime = hostile
    report.loadsIn[0].note = hostile
    let html = ReportPage(report: report).html
    #expect(!html.contains("<script"))
    #expect(!html.contains("('x')"))
    #expect(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"))
  }

  @Test func `the page needs nothing from outside and shows every linear`() {
    let report = sampleReport(layers: 4)
    let html = ReportPage(report: report).html
    for reference in ["http://", "https://", "src=", "<link", "@import", "url("] {
      #expect(!html.contains(reference), "\(reference)")
    }
    #expect(html.split(separator: "<circle").count - 1 == report.linears.count)
    #expect(html.split(separator: "<title>model.").count - 1 == report.linears.count)
  }

  @Test func `experts are a map of layers and experts, those that no token reached apart`() throws {
    var report = sampleReport(layers: 2)
    let plain = report.linears
    report.linears += plain.flatMap { linear in
      (0..<5).map { expert in
        var other = linear
        other.name = "model.layers.\(linear.layer).mlp.experts.\(expert).up_proj"
        (other.expert, other.tokens) = (expert, expert * 100)
        return other
      }
    }
    #expect(try Report(json: report.json()) == report)
    let map = try #require(ExpertMap(linears: report.linears))
    #expect(map.cells.count == 10 && map.idleExperts == 2)
    #expect(map.tokensOfExperts == (0, 200, 400))
    let html = ReportPage(report: report).html
    #expect(html.contains("layer 1, expert 3: 300 tokens"))
    #expect(html.components(separatedBy: "class=\"idle\"").count == 5)
    // One line of a kind for all experts.
    #expect(html.contains("up_proj of experts"))
    #expect(ExpertMap(linears: plain) == nil)
  }

  @Test func `a report without linears still gives a page`() {
    var report = sampleReport(layers: 1)
    report.linears = []
    report.totals = Report.Totals()
    report.loadsIn = []
    #expect(ReportPage(report: report).html.contains("</html>"))
  }

  @Test(arguments: [
    ([0.0012, 0.0341], 0.001, 0.05), ([0.002], 0.002, 0.005), ([1e-7, 0.5], 1e-7, 1),
    ([0.9, 3.0], 0.5, 5), ([0.01, 0.1], 0.01, 0.1),
  ])
  func `the axis ends at round numbers that enclose the values`(
    values: [Double], first: Double, last: Double
  ) throws {
    let axis = try #require(LogarithmicAxis(covering: values))
    #expect(abs(try #require(axis.ticks.first) / first - 1) < 1e-9)
    #expect(abs(try #require(axis.ticks.last) / last - 1) < 1e-9)
    #expect(axis.position(first) == 0 && abs(axis.position(last) - 1) < 1e-9)
  }

  @Test func `numbers are written for people`() {
    #expect(fixed(1234.567, 1) == "1,234.6" && fixed(-0.04, 1) == "0.0" && fixed(-2, 0) == "−2")
    #expect(percent(0.0045) == "0.450 %" && percent(0.123) == "12.3 %" && percent(1e-7) == "< 0.001 %")
    #expect(byteSize(999) == "999 B" && byteSize(269_060_552) == "269 MB" && byteSize(1_500) == "1.5 kB")
    #expect(duration(0.4) == "0.40 s" && duration(185) == "3 min 05 s" && duration(7_800) == "2 h 10 min")
  }
}
