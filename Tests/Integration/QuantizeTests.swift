import Checkpoint
import ComputeOpenBLAS
import Foundation
import SystemIO
import TestSupport
import Testing

/// `quantize`, `eval` and `inspect` end to end, on a tiny llama.
struct QuantizeTests {
  private static let formats = ["compressed-tensors", "gptq", "gptq-v2", "dense"]
  private static var formatOptions: [String] { formats.flatMap { ["--format", $0] } }

  @Test(arguments: [
    ["--bits", "4"],
    ["--bits", "4", "--group-size", "32", "--symmetric"],
    ["--bits", "8", "--group-size", "32"],
    ["--bits", "3", "--symmetric"],
    ["--bits", "2", "--group-size", "32"],
    ["--bits", "3", "--outliers", "0.02"],
    ["--bits", "3", "--outliers", "0.05", "--structured-outliers", "--preset", "paper"],
    ["--bits", "3", "--target", "original"],
  ])
  func `every format is the same model`(_ options: [String]) throws {
    let bench = try Workbench()
    bench.options = options + Self.formatOptions
    try bench.report()
    let tokens = try bench.directory.write(
      randomTokens: 6, of: 48, vocabulary: 64, seed: 2, to: "test.safetensors")
    let perplexities = try Self.formats.map { format in
      try #require(
        Quantease.json("eval", "\(bench.output)/\(format)", "--tokens", tokens)["perplexity"]?.double)
    }
    for (format, perplexity) in zip(Self.formats, perplexities) {
      // The dense weights are fp32, as the source's are: they hold every grid point but for its last bit.
      #expect(abs(perplexity / perplexities[0] - 1) < 1e-5, "\(format): \(perplexities)")
    }
    let source = try #require(Quantease.json("eval", bench.model, "--tokens", tokens)["perplexity"]?.double)
    #expect(perplexities[0] != source)
    if options.contains("8") { #expect(abs(perplexities[0] / source - 1) < 0.02) }
  }

  @Test func `rows that are all zero, as after a download that died, are a warning by name`() throws {
    let bench = try Workbench()
    let name = "model.layers.1.mlp.gate_proj.weight"
    var file = try TensorFile(bench.model + "/model.safetensors")
    let bytes = file.offsets(of: name)
    for byte in bytes.dropFirst(bytes.count / 2) { file.data[byte] = 0 }
    try file.write()
    let run = try bench.quantize()
    #expect(run.status == 0)
    let note = "\(name): rows 48 to 95 hold nothing but zeros"
    #expect(run.errors.contains("warning: \(note)"), "\(run.errors)")
    let report = try JSONValue(contentsOf: bench.output + "/quantease_report.json")
    #expect(report["linears"]?.array?.count { $0["warnings"] != nil } == 1)
    let page = try String(contentsOfFile: bench.output + "/quantease_report.html", encoding: .utf8)
    #expect(page.contains("<h2>Warnings</h2>") && page.contains(note))
  }

  @Test func `files in sub-folders are copied, and the report says what was and what was not`() throws {
    let bench = try Workbench()
    try FileSystem.createDirectories(bench.model + "/additional_chat_templates")
    try FileSystem.createDirectories(bench.model + "/.cache/x")
    for name in ["additional_chat_templates/tools.jinja", "LICENSE", "pytorch_model.bin", ".cache/x/lock"] {
      try AtomicFile.write("text", to: "\(bench.model)/\(name)")
    }
    try FileManager.default.createSymbolicLink(
      atPath: bench.model + "/nowhere.txt", withDestinationPath: "/absent/file")
    let report = try bench.report()
    #expect(
      report["files_copied"]?.array?.compactMap(\.string) == [
        "LICENSE", "additional_chat_templates/tools.jinja",
      ])
    #expect(report["files_left_out"]?.array?.compactMap(\.string) == ["nowhere.txt", "pytorch_model.bin"])
    #expect(try FileSystem.names(in: bench.output + "/additional_chat_templates") == ["tools.jinja"])
    #expect(try !FileSystem.names(in: bench.output).contains(".cache"))
  }

  @Test func `what Python reads in config.json is read, and what no layer reads may hold anything`() throws {
    let bench = try Workbench()
    let path = bench.model + "/config.json"
    let text = String(decoding: try FileSystem.contents(of: path, limit: 1 << 20), as: UTF8.self)
    try AtomicFile.write(
      "\u{FEFF}" + text.replacing("{\n", with: "{\n\"limits\": [-Infinity, NaN],\n", maxReplacements: 1),
      to: path)
    try bench.damage { file in
      let end = file.data.count
      file.data += littleEndian([(-Float.infinity).bitPattern])
      file.header["model.masked_bias"] = ["dtype": "F32", "shape": []]
      file.place("model.masked_bias", at: end..<end + 4)
    }
    try bench.report()
    #expect(
      try JSONValue(contentsOf: bench.output + "/config.json")["limits"]?.array?.first?.double == -.infinity)
  }

  @Test func `a rule's solver keeps its own damping, whatever the standard recipe's is`() throws {
    let bench = try Workbench()
    // Fewer tokens than the inputs have features: without a ridge Σ has no Cholesky factor.
    bench.options = [
      "--preset", "paper", "--passes", "2", "--samples", "1", "--rule", "down_proj=solver:gptq",
    ]
    let report = try bench.report()
    #expect(report["linears"]?.array?.count { $0["solver"]?.string == "gptq" } == 2)
  }

  @Test func `an output below a directory that is a link is published there`() throws {
    let bench = try Workbench()
    try FileManager.default.createSymbolicLink(
      atPath: bench.directory.file("link"), withDestinationPath: bench.directory.file("results"))
    try bench.report(output: bench.directory.file("link/output"))
    #expect(try bench.results == ["output"])
  }

  @Test func `the report has what every linear and the whole run cost`() throws {
    let bench = try Workbench()
    let report = try bench.report(
      "--bits", "3", "--group-size", "32", "--symmetric", "--solver", "gptq", "--states", "cache")
    let linears = try #require(report["linears"]?.array)
    let shapes = [
      "q": [64, 32], "k": [32, 32], "v": [32, 32], "o": [32, 64], "gate": [96, 32], "up": [96, 32],
      "down": [32, 96],
    ]
    #expect(linears.count == 14)
    for (index, layer) in [(0, 0), (7, 1)] {
      #expect(
        linears[index..<index + 7].map { $0["name"]?.string }
          == [
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj",
          ].map { "model.layers.\(layer).\($0)" })
    }
    for linear in linears {
      let name = try #require(linear["name"]?.string?.split(separator: ".").last?.split(separator: "_").first)
      #expect(linear["shape"]?.array?.compactMap(\.int) == shapes[String(name)])
      #expect(linear["bits"]?.int == 3)
      #expect(linear["group_size"]?.int == 32)
      #expect(linear["symmetric"]?.bool == true)
      #expect(linear["solver"]?.string == "gptq")
      #expect(try (0.0001..<0.5).contains(#require(linear["relative_error"]?.double)))
      #expect(try #require(linear["seconds"]?.double) >= 0)
    }
    let totals = try #require(report["totals"])
    #expect(totals["tokens"]?.int == 8 * 32)
    #expect(totals["linears"]?.int == 14)
    #expect(totals["states"]?.string == "cache")
    for key in ["seconds", "peak_memory_bytes", "cache_bytes_raw", "cache_bytes_compressed", "output_bytes"] {
      #expect(try #require(totals[key]?.double) > 0, "\(key)")
    }
    let phases = try #require(totals["seconds_per_phase"]?.object)
    #expect(Set(phases.keys).isSuperset(of: ["forward", "gram", "solver", "cache", "export"]))
    // Two layers; each writes the context, the residual stream twice and the intermediate activations. The
    // last stages of the last layer need not be run.
    let written = try #require(totals["cache_bytes_raw"]?.int)
    #expect(written % (8 * 32 * 4) == 0)
  }

  @Test func `with memory enough states stay in it, and the result is the same`() throws {
    let (bench, other) = (try Workbench(), try Workbench())
    let totals = try #require(bench.report()["totals"])
    #expect(totals["states"]?.string == "memory")
    #expect(totals["cache_bytes_raw"]?.int == 0)
    try other.report("--states", "cache")
    let files = try [bench, other].map {
      try FileSystem.contents(of: $0.output + "/model.safetensors", limit: 1 << 30)
    }
    #expect(files[0] == files[1])
  }

  @Test func `one format stands in the output directory itself, with the source's other files`() throws {
    let bench = try Workbench()
    try "terms".write(toFile: bench.model + "/LICENSE", atomically: true, encoding: .utf8)
    try "{}".write(toFile: bench.model + "/generation_config.json", atomically: true, encoding: .utf8)
    try "pickle".write(toFile: bench.model + "/pytorch_model.bin", atomically: true, encoding: .utf8)
    try bench.report()
    let names = try FileManager.default.contentsOfDirectory(atPath: bench.output)
    #expect(
      Set(names) == [
        "LICENSE", "config.json", "generation_config.json", "model.safetensors", "quantease_report.html",
        "quantease_report.json",
      ])
    #expect(try bench.results == ["output"])
    let configuration = try JSONValue(contentsOf: bench.output + "/config.json")
    #expect(configuration["quantization_config"]?["quant_method"]?.string == "compressed-tensors")
    #expect(configuration["model_type"]?.string == "llama")
  }

  @Test(arguments: ["zip", "legacy", "sharded"])
  func `weights of torch come to the bytes that safetensors come to`(_ layout: String) throws {
    func quantize(_ prepare: (Workbench) throws -> Void) throws -> [String: [UInt8]] {
      let bench = try Workbench("opt-pre")
      try prepare(bench)
      bench.options = ["--format", "dense"]
      try bench.report()
      return try tensors(in: bench.output)
    }
    let expected = try quantize { _ in }
    var torch = try quantize { bench in
      try FileManager.default.removeItem(atPath: bench.model + "/model.safetensors")
      for name in try FileSystem.names(in: TestFiles.torch(layout)) {
        try FileSystem.copyFile(TestFiles.torch("\(layout)/\(name)"), to: bench.model + "/\(name)")
      }
    }
    // The head's second name for the embeddings, which the tied model does without.
    torch["lm_head.weight"] = nil
    #expect(torch == expected)
  }

  @Test func `linears that stay as they are stand in GPTQ's dynamic, and the result is read`() throws {
    let bench = try Workbench("llama-bf16-sharded")
    bench.options = ["--format", "gptq-v2", "--format", "dense", "--rule", "down_proj=skip", "--symmetric"]
    try bench.report()
    let configuration = try JSONValue(contentsOf: bench.output + "/gptq-v2/config.json")
    let rules = try #require(configuration["quantization_config"]?["dynamic"]?.object)
    #expect(rules.keys.count == 2 && rules.keys.allSatisfy { $0.hasPrefix("-:") && $0.contains("down_proj") })
    let perplexities = try ["gptq-v2", "dense"].map { format in
      try Quantease.json("eval", "\(bench.output)/\(format)", "--tokens", bench.calibration)["perplexity"]?
        .double
    }
    // The dense one is rounded to bfloat16.
    let (packed, dense) = (try #require(perplexities[0]), try #require(perplexities[1]))
    #expect(abs(packed / dense - 1) < 0.02)
  }

  @Test func `what stands beside the text model is copied, and said to be left alone`() throws {
    let bench = try Workbench("gemma3-vision")
    // A layer that config.json does not count, as those that predict further tokens.
    var expected = try tensors(in: bench.model).filter {
      $0.key.hasPrefix("vision_tower.") || $0.key.hasPrefix("multi_modal")
    }
    #expect(expected.count > 10)
    let extra = "language_model.model.layers.4.eh_proj.weight"
    expected[extra] = [UInt8](repeating: 1, count: 8)
    let bytes = tensorFile(
      header: #"{"\#(extra)":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#,
      data: [UInt8](repeating: 1, count: 8))
    try FileManager.default.moveItem(
      atPath: bench.model + "/model.safetensors", toPath: bench.model + "/model-00001-of-00002.safetensors")
    try Data(bytes).write(to: URL(fileURLWithPath: bench.model + "/model-00002-of-00002.safetensors"))
    try bench.report()
    let result = try tensors(in: bench.output)
    #expect(result.filter { expected[$0.key] != nil } == expected)
    #expect(result["language_model.model.layers.0.self_attn.q_proj.weight_packed"] != nil)
    let ignored = try JSONValue(contentsOf: bench.output + "/config.json")["quantization_config"]?["ignore"]
    #expect(
      ignored == [
        "lm_head", #"re:(.*\.)?language_model\.model\.layers\.4\.eh_proj$"#, #"re:(.*\.)?vision_tower\..*"#,
      ])
  }

  @Test func `a tensor of a type that is not known is copied`() throws {
    let bench = try Workbench()
    let bytes: [UInt8] = [7, 1, 250]
    try bench.damage { file in
      let end = file.data.count
      file.data += bytes
      file.header["towers.scales"] = [
        "dtype": "F99", "shape": [2, 5], "data_offsets": [.integer(end), .integer(end + 3)],
      ]
    }
    try bench.report()
    let output = try TensorFile(bench.output + "/model.safetensors")
    #expect(output.header["towers.scales"]?["dtype"]?.string == "F99")
    #expect(Array(output.data[output.offsets(of: "towers.scales")]) == bytes)
  }

  @Test func `several formats stand in directories of their names, the report above them`() throws {
    let bench = try Workbench()
    bench.options = ["--format", "gptq", "--format", "dense"]
    try bench.report()
    let names = try FileManager.default.contentsOfDirectory(atPath: bench.output)
    #expect(Set(names) == ["dense", "gptq", "quantease_report.html", "quantease_report.json"])
    let dense = try JSONValue(contentsOf: bench.output + "/dense/config.json")
    #expect(dense["quantization_config"] == nil)
  }

  @Test func `neither the number of threads nor a second run changes a byte`() throws {
    let bench = try Workbench("llama-bf16-sharded")
    bench.options = ["--bits", "3"] + Self.formatOptions
    let outputs = try [("1", "one"), ("2", "two"), ("3", "three"), ("2", "again")].map { threads, name in
      let output = bench.directory.file(name)
      try bench.report("--threads", threads, output: output)
      return try Self.formats.map { format in
        try Data(contentsOf: URL(fileURLWithPath: "\(output)/\(format)/model.safetensors"))
      }
    }
    for output in outputs.dropFirst() { #expect(output == outputs[0]) }
  }

  @Test func `another seed draws other sequences`() throws {
    let bench = try Workbench()
    func errors(_ seed: String) throws -> [Double] {
      let report = try bench.report("--seed", seed, output: bench.directory.file("seed-\(seed)"))
      return try #require(report["linears"]?.array).compactMap { $0["relative_error"]?.double }
    }
    #expect(try errors("1") != errors("2"))
  }

  @Test func `every solver gives its own result, and descent the best`() throws {
    let bench = try Workbench()
    func firstError(_ options: String...) throws -> Double {
      bench.options = ["--bits", "3"] + options
      let report = try bench.report(output: bench.directory.file(options.joined()))
      return try #require(report["linears"]?.array?.first?["relative_error"]?.double)
    }
    // The first linear: from there on each solver has inputs of its own.
    let rounding = try firstError("--solver", "rtn")
    let gptq = try firstError("--solver", "gptq")
    let paper = try firstError("--solver", "quantease", "--preset", "paper")
    let standard = try firstError("--solver", "quantease")
    #expect(standard < paper && paper < rounding)
    #expect(standard < gptq && gptq < rounding)
  }

  @Test func `rules exempt some linears and treat others their own way`() throws {
    let bench = try Workbench()
    bench.options = ["--rule", "down_proj=skip", "--rule", "layers\\.1\\..*o_proj=bits:8,symmetric"]
    let report = try bench.report()
    let linears = try #require(report["linears"]?.array)
    #expect(linears.count == 12)
    #expect(!linears.contains { $0["name"]?.string?.hasSuffix("down_proj") ?? true })
    let special = linears.filter { $0["bits"]?.int == 8 }
    #expect(special.map { $0["name"]?.string } == ["model.layers.1.self_attn.o_proj"])
    #expect(special.first?["symmetric"]?.bool == true)
    let source = try TensorFile(bench.model + "/model.safetensors")
    let output = try TensorFile(bench.output + "/model.safetensors")
    let exempt = "model.layers.1.mlp.down_proj.weight"
    #expect(output.data[output.offsets(of: exempt)] == source.data[source.offsets(of: exempt)])
    #expect(
      try #require(Quantease.json("eval", bench.output, "--tokens", bench.calibration)["perplexity"]?.double)
        > 1)
  }

  @Test(arguments: [
    "opt-pre", "opt-post-350m", "bloom", "falcon-7b", "falcon-40b", "falcon-rw", "qwen3", "gptj", "gpt2",
    "mpt-clip",
    "apertus", "stablelm-qk-norm",
  ])
  func `every kind of layer goes through`(_ fixture: String) throws {
    let bench = try Workbench(fixture)
    bench.options = ["--bits", "8", "--format", "dense"]
    let report = try bench.report()
    let errors = try #require(report["linears"]?.array).compactMap { $0["relative_error"]?.double }
    #expect(errors.allSatisfy { (0..<0.001).contains($0) }, "\(errors)")
    let source = try #require(
      Quantease.json("eval", bench.model, "--tokens", bench.calibration)["perplexity"]?.double)
    let dense = try #require(
      Quantease.json("eval", bench.output, "--tokens", bench.calibration)["perplexity"]?.double)
    #expect(abs(dense / source - 1) < 0.02)
  }

  @Test func `inspect says what a checkpoint holds`() throws {
    let result = try Quantease.json("inspect", TestFiles.model("llama-bf16-sharded"))
    #expect(result["architecture"]?.string == "llama")
    #expect(result["layers"]?.int == 2)
    #expect(result["hidden_size"]?.int == 32)
    #expect(result["vocabulary_size"]?.int == 64)
    #expect(result["linears"]?.int == 14)
    #expect(result["dtypes"]?.array?.compactMap(\.string) == ["BF16"])
    #expect(try #require(result["memory_bytes"]?.int) > 0)
  }

  @Test func `inspect names the method of a quantized checkpoint`() throws {
    let bench = try Workbench()
    try bench.report("--format", "gptq")
    #expect(try Quantease.json("inspect", bench.output)["quantization"]?.string == "gptq")
  }

  @Test func `the cache goes where it is told to, and is gone at the end`() throws {
    let bench = try Workbench()
    let cache = bench.directory.file("scratch/cache")
    try bench.report("--cache-dir", cache)
    #expect(try FileManager.default.contentsOfDirectory(atPath: cache) == [])
  }

  @Test func `a plan tells of memory, space and time, of mixtures too`() throws {
    let json = try Quantease.json(
      "plan", TestFiles.model("llama"), "--samples", "4", "--sequence-length", "32")
    #expect(json["architecture"]?.string == "llama" && json["linears"]?.int == 14)
    #expect(json["memory_bytes"]?.int ?? 0 > 0 && json["seconds"]?.double ?? 0 > 0)
    #expect(json["basis"]?.string?.contains("a layer with weights by chance") == true)
    #expect(json["output_space"]?["free_bytes"]?.int ?? 0 > 0 && json["journal_space"] == nil)
    let mixture = try Quantease([
      "plan", TestFiles.model("qwen3-moe"), "--samples", "4", "--sequence-length", "32",
    ])
    #expect(mixture.status == 0 && mixture.output.contains("time     about"), "\(mixture)")
    let tight = try Quantease([
      "plan", TestFiles.model("llama"), "--samples", "4", "--sequence-length", "32", "--memory", "0.001",
    ])
    #expect(tight.status == 0 && tight.output.contains("memory   too little now"), "\(tight)")
    #expect(try Quantease(["plan", TestFiles.model("llama"), "--bits", "7"]).status == 64)
  }

  @Test func `experts are on symmetric grids by default, and others are warned about before the work`() throws
  {
    let directory = try TemporaryDirectory()
    let tokens = try directory.write(randomTokens: 4, of: 32, vocabulary: 64, seed: 1)
    let common = [
      "quantize", TestFiles.model("qwen3-moe"), "--calibration", tokens, "--samples", "4",
      "--sequence-length", "32",
    ]
    let asymmetric = try Quantease(common + ["--output", directory.file("a"), "--asymmetric"])
    #expect(asymmetric.status == 0)
    #expect(
      asymmetric.errors.contains("mixtures of experts only with symmetric grids"), "\(asymmetric.errors)")
    let symmetric = try Quantease(common + ["--output", directory.file("b")])
    #expect(symmetric.status == 0 && !symmetric.errors.contains("mixtures"), "\(symmetric.errors)")
    #expect(symmetric.output.contains("transformers loads it"))
    let ignored = try JSONValue(contentsOf: directory.file("b") + "/config.json")["quantization_config"]?[
      "ignore"]?.array?
      .compactMap(\.string)
    #expect(
      ignored?.contains { $0.contains("mlp") && $0.contains("gate") && !$0.contains("experts") } == true)
  }

  @Test(.enabled(if: Python.hasTokenizers, "needs a Python with tokenizers; set QUANTEASE_PYTHON"))
  func `a text goes through the model's tokenizer`() throws {
    let bench = try Workbench()
    let words = (0..<64).map { "\"w\($0)\":\($0)" }.joined(separator: ",")
    let tokenizer = """
      {"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
      "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
      "model":{"type":"WordLevel","vocab":{\(words)},"unk_token":"w0"}}
      """
    try tokenizer.write(toFile: bench.model + "/tokenizer.json", atomically: true, encoding: .utf8)
    let ids = (0..<400).map { ($0 * $0 + 7 * $0) % 61 }
    bench.calibration = try bench.directory.write(ids.map { "w\($0)" }.joined(separator: " "), to: "text.txt")
    let fromText = try bench.report()
    let text = try Data(contentsOf: URL(fileURLWithPath: bench.output + "/model.safetensors"))
    #expect(try String(contentsOfFile: bench.output + "/tokenizer.json", encoding: .utf8) == tokenizer)
    #expect(fromText["totals"]?["tokens"]?.int == 8 * 32)

    let perplexity = try Quantease.json(
      "eval", bench.model, "--text", bench.calibration, "--sequence-length", "32")
    #expect(perplexity["windows"]?.int == 400 / 32)

    bench.calibration = try bench.directory.write(tokens: [ids.map(Int64.init)], to: "ids.safetensors")
    let output = bench.directory.file("from-tokens")
    try bench.report(output: output)
    #expect(try Data(contentsOf: URL(fileURLWithPath: output + "/model.safetensors")) == text)
  }
}

enum Python {
  /// Whether the interpreter that the program would take has the package tokenizers.
  static let hasTokenizers: Bool = {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [
      TestEnvironment.variable("QUANTEASE_PYTHON") ?? "python3", "-c", "import tokenizers",
    ]
    process.standardError = FileHandle.nullDevice
    guard (try? process.run()) != nil else { return false }
    process.waitUntilExit()
    return process.terminationStatus == 0
  }()
}
