import Checkpoint
import Foundation
import SystemIO
import TestSupport
import Testing

/// What is quantized that is no checkpoint of plain weights.
struct SourceTests {
  @Test(arguments: ["blocks", "tensor", "channel"])
  func `weights in 8-bit floats come to the bytes that bfloat16 comes to`(_ layout: String) throws {
    func quantize(_ model: String) throws -> (tensors: [String: [UInt8]], configuration: JSONValue) {
      let bench = try Workbench()
      for name in ["config.json", "model.safetensors"] {
        try FileManager.default.removeItem(atPath: "\(bench.model)/\(name)")
        try FileSystem.copyFile("\(model)/\(name)", to: "\(bench.model)/\(name)")
      }
      // Some linears stay as they are, and are written in the type that they stand for.
      bench.options = ["--rule", "down_proj=skip"]
      try bench.report()
      return (try tensors(in: bench.output), try JSONValue(contentsOf: bench.output + "/config.json"))
    }
    let (scaled, dense) = try (quantize(TestFiles.fp8(layout)), quantize(TestFiles.fp8("\(layout)/dense")))
    #expect(scaled.tensors == dense.tensors && scaled.configuration == dense.configuration)
  }

  /// As Kimi's experts are published, and nothing else of it.
  @Test(arguments: [
    ("qwen3-moe", "compressed-tensors", ["--symmetric", "--rule", "self_attn=skip"]),
    ("llama-tied", "compressed-tensors", ["--group-size", "8", "--outliers", "0.02"]),
    ("llama-bf16-sharded", "gptq-v2", []),
  ])
  func `packed weights are quantized as what they stand for, where that is allowed`(
    _ fixture: String, _ format: String, _ options: [String]
  ) throws {
    let bench = try Workbench(fixture)
    let first = bench.directory.file("first")
    bench.options = options + ["--format", format, "--format", "dense"]
    try bench.report(output: first)
    bench.options = ["--bits", "3", "--symmetric", "--precision", "exact"]
    let results = try [format, "dense"].map { source in
      let output = bench.directory.file("of-\(source)")
      let run = try bench.quantize(
        source == "dense" ? [] : ["--allow-requantize"], model: "\(first)/\(source)", output: output)
      #expect(run.status == 0, "\(run.errors)")
      return (try tensors(in: output), try JSONValue(contentsOf: output + "/config.json"))
    }
    // The dense weights of bfloat16 are rounded to it.
    let isExact = fixture != "llama-bf16-sharded"
    #expect(isExact ? results[0].0 == results[1].0 : results[0].0.keys == results[1].0.keys)
    #expect(results[0].1 == results[1].1)
  }

  @Test func `one file is written with its report beside it, which an evaluation adds to`() throws {
    let bench = try Workbench()
    let one = bench.directory.file("one.gguf")
    let run = try bench.quantize(["--gguf-type", "Q4_0"], model: TestFiles.gguf("llama.gguf"), output: one)
    #expect(run.status == 0 && run.output.contains("one.quantease_report.html"), "\(run.errors)")
    let evaluation = try Quantease(["eval", one, "--tokens", bench.calibration, "--report"])
    #expect(evaluation.status == 0, "\(evaluation.errors)")
    let report = try JSONValue(contentsOf: bench.directory.file("one.quantease_report.json"))
    #expect(report["evaluations"]?.array?.count == 1)
    // Nothing else is left, and of another source there is no such file.
    let names = try FileSystem.names(in: bench.directory.path).filter { $0.contains("one") }
    #expect(names == ["one.gguf", "one.quantease_report.html", "one.quantease_report.json"])
    let other = try bench.quantize(
      [], model: TestFiles.model("llama"), output: bench.directory.file("two.gguf"))
    #expect(other.status == 64 && other.errors.contains("GGUF files alone"), "\(other.errors)")
  }

  @Test func `a GGUF file becomes another, which is read again, and not quantized twice unasked`() throws {
    let bench = try Workbench()
    func quantize(_ model: String, _ output: String, _ more: String...) throws -> Quantease {
      try bench.quantize(more, model: model, output: bench.directory.file(output))
    }
    let source = TestFiles.gguf("llama.gguf")
    let named = try quantize(source, "four.gguf", "--resume", bench.directory.file("resume"))
    #expect(named.status == 64 && named.errors.contains("beside its report"), "\(named.errors)")
    let four = try quantize(source, "four", "--gguf-type", "q4_0")
    #expect(four.status == 0 && four.output.contains("gguf: llama.cpp loads it"), "\(four.errors)")
    let file = bench.directory.file("four/llama-Q4_0.gguf")
    #expect(
      try FileSystem.names(in: bench.directory.file("four"))
        == ["llama-Q4_0.gguf", "quantease_report.html", "quantease_report.json"])
    #expect(try quantize(source, "eight", "--gguf-type", "Q8_0").status == 0)
    #expect(try Quantease(["inspect", file]).output.contains("Q4_0"))
    func perplexity(_ file: String) throws -> Double {
      let json = try Quantease.json("eval", file, "--tokens", bench.calibration)
      return try #require(json["perplexity"]?.double)
    }
    let (before, eight) = try (
      perplexity(source), perplexity(bench.directory.file("eight/llama-Q8_0.gguf"))
    )
    #expect(abs(eight / before - 1) < 0.01)
    #expect(try abs(perplexity(file) / before - 1) < 0.2)
    // By itself it is Q4_K_M, whose types the widths that they do not fit fall back from.
    let wide = try quantize(TestFiles.gguf("llama-wide.gguf"), "wide", "--rule", "[.]k_proj=type:Q3_K")
    #expect(wide.status == 0, "\(wide.errors)")
    let mixed = bench.directory.file("wide/llama-wide-Q4_K_M.gguf")
    let reader = try CheckpointReader(gguf: mixed)
    let types = Dictionary(
      uniqueKeysWithValues: try #require(reader.gguf).tensors.map { ($0.name, $0.type.name) })
    #expect(types["blk.0.attn_q.weight"] == "Q4_K" && types["blk.0.attn_k.weight"] == "Q3_K")
    #expect(types["blk.0.attn_output.weight"] == "Q5_0" && types["blk.0.ffn_down.weight"] == "Q6_K")
    #expect(types["token_embd.weight"] == "Q4_K" && types["output.weight"] == "Q6_K")
    #expect(try abs(perplexity(mixed) / perplexity(TestFiles.gguf("llama-wide.gguf")) - 1) < 0.2)
    let again = try quantize(file, "again")
    #expect(again.status == 65 && again.errors.contains("already quantized (Q"), "\(again.errors)")
    #expect(try quantize(file, "asked", "--allow-requantize", "--gguf-type", "Q8_0").status == 0)
    let other = try quantize(source, "other", "--format", "dense")
    #expect(other.status == 65 && other.errors.contains("leave --format out"), "\(other.errors)")
    #expect(
      try quantize(bench.model, "checkpoint", "--format", "gguf").errors.contains("convert_hf_to_gguf.py"))
  }
}
