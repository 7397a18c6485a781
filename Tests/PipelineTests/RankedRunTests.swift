import ActivationCache
import Collective
import Decoder
import Export
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// One job of several ranks, which are threads here: the bytes are those of one process, whatever the number.
struct RankedRunTests {
  static let cases = [
    ResumeCase("llama-bf16-sharded"),
    ResumeCase("llama", "3 bits, target layer") {
      $0.bits = 3
      $0.target = .layer
    },
    ResumeCase("falcon-7b", "all samples as target") { $0.targetShare = 1 },
    ResumeCase("falcon-40b"), ResumeCase("opt-pre"), ResumeCase("bloom"),
    ResumeCase("llama-bf16-sharded", "groups and GPTQ") {
      $0.groupSize = 16
      $0.solver = .gptq
    },
    ResumeCase("llama", "outliers") { $0.outliers = 0.02 },
    ResumeCase("llama-tied", "first tokens") { $0.firstTokenWeight = 3 },
    ResumeCase("llama", "rotated") { $0.rotate = .residual },
    ResumeCase("llama", "rules") { $0.rules = ["down_proj=skip", #"\.0\.mlp\.=bits:8,symmetric"#] },
    ResumeCase("glm4-moe", "rules") { $0.rules = [#"\.1\.mlp\.experts=skip"#, "shared_experts=bits:8"] },
    ResumeCase("mixtral"), ResumeCase("qwen3-moe"), ResumeCase("deepseek-v3"),
    ResumeCase("gpt-oss") { $0.formats = [.dense] },
    ResumeCase("gemma4-moe"), ResumeCase("qwen3-next"),
    ResumeCase("mixtral", "own Gram matrices, exact") { $0.precision = .exact },
    ResumeCase("llama-wide.gguf", "Q4_K_M") { $0.formats = [.gguf] },
  ]

  @Test(arguments: cases) func `any number of ranks comes to the bytes of one process`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let alone = try bench.rankedRun(1)[0].get().result
    for count in [2, 3, 4] {
      for (rank, result) in try bench.rankedRun(count).enumerated() {
        let result = try result.get().result
        #expect(result.rows == alone.rows, "rank \(rank) of \(count)")
        if rank == 0 { #expect(result.files == alone.files, "\(count) ranks") }
      }
    }
  }

  @Test(arguments: [
    ResumeCase("llama-bf16-sharded"), ResumeCase("llama", "outliers") { $0.outliers = 0.02 },
    ResumeCase("falcon-7b"), ResumeCase("mixtral"),
  ]) func `the journal has the same codes, grids and errors, whatever the number of ranks`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let journals = try (1...4).map { count in
      _ = try bench.rankedRun(count, keepingIn: "kept-\(count)")[0].get()
      return try bench.journalled(in: "kept-\(count)")
    }
    for journal in journals { #expect(journal == journals[0] && !journal.isEmpty) }
  }

  @Test(arguments: [
    ResumeCase("llama-bf16-sharded"), ResumeCase("llama", "target layer") { $0.target = .layer },
    ResumeCase("llama", "groups") { $0.groupSize = 16 },
    ResumeCase("falcon-7b", "all samples as target") { $0.targetShare = 1 }, ResumeCase("bloom"),
    ResumeCase("deepseek-v3-dense"), ResumeCase("mixtral"),
  ]) func `ranks send as many bytes as the formulas say`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.runPlan().traffic(backend: bench.backend)
    for count in [2, 3] {
      let sent = try bench.rankedRun(count, panelRows: MemoryPlan.panelRows).map { try $0.get().sent }
      func all(_ kind: MessageLabel.Kind) -> Int { sent.reduce(0) { $0 + ($1[kind] ?? 0) } }
      #expect(all(.input) == (count - 1) * expected.inputs)
      #expect(all(.drift) == (count - 1) * expected.drifts)
      #expect(all(.gram) == (count - 1) * expected.grams)
      #expect(all(.rows) == (count - 1) * expected.rows)
    }
  }

  @Test(arguments: [
    ResumeCase("llama-bf16-sharded"), ResumeCase("llama", "target layer") { $0.target = .layer },
    ResumeCase("llama", "exact") { $0.precision = .exact },
    ResumeCase("falcon-7b", "all samples as target") { $0.targetShare = 1 }, ResumeCase("falcon-40b"),
    ResumeCase("opt-pre"), ResumeCase("bloom"), ResumeCase("deepseek-v3-dense"), ResumeCase("olmo2"),
    ResumeCase("llama", "outliers") { $0.outliers = 0.02 },
    ResumeCase("llama-bf16-sharded", "GPTQ") { $0.solver = .gptq },
  ]) func `ranks multiply as much as the formulas say`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let plan = try bench.runPlan()
    for count in 1...4 {
      let results = try bench.rankedRun(count, panelRows: MemoryPlan.panelRows)
      for (rank, result) in results.enumerated() {
        let found = try result.get().products
        let expected = plan.products(
          of: rank, of: count, batchSamples: ResumeBench.batchSamples, backend: bench.backend)
        let place = "rank \(rank) of \(count)"
        #expect(found[.linear, default: 0] == expected.forward, "\(place)")
        #expect(found[.gram, default: 0] == expected.gram, "\(place)")
        #expect(found[.crossProduct, default: 0] + found[.solution, default: 0] == expected.drift, "\(place)")
        #expect(found[.factor, default: 0] == expected.factors, "\(place)")
      }
    }
  }

  @Test(arguments: [
    ResumeCase("llama-bf16-sharded"), ResumeCase("falcon-7b"), ResumeCase("mixtral"),
    ResumeCase("deepseek-v3"), ResumeCase("mixtral", "exact") { $0.precision = .exact },
  ]) func `a rank that fails ends all, and any number goes on to the same bytes`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.rankedRun(1)[0].get().result
    var linears: Set<Int> = []
    // A rank, and the panels that it begins before it fails.
    for (turn, (rank, panels)) in [(0, 1), (1, 0), (2, 1), (0, 3), (1, 1)].enumerated() {
      let name = "kept-\(turn)"
      let failed = try bench.rankedRun(3, keepingIn: name, failing: (rank, panels))
      for (other, result) in failed.enumerated() {
        let error = #expect(throws: (any Error).self) { try result.get() }
        guard other != rank, let error = error as? RankError else { continue }
        #expect(error.description.contains("Interruption"), "\(error)")
      }
      let count = [1, 2, 4, 3, 2][turn]
      let results = try bench.rankedRun(count, keepingIn: name)
      let chief = try results[0].get()
      #expect(chief.result.files == expected.files && chief.result.rows == expected.rows)
      linears.insert(chief.resumed)
    }
    #expect(linears.count > 1, "nothing was gone on with: \(linears)")
  }

  @Test
  func `states of another job, on a host that was not there when this one began, are not taken for its own`()
    throws
  {
    let bench = try ResumeBench(ResumeCase("llama-bf16-sharded"))
    func change(_ request: inout QuantizationRequest) { request.firstTokenWeight = 3 }
    let expected = try bench.rankedRun(1, changing: change)[0].get().result
    #expect(try expected.files != bench.rankedRun(1)[0].get().result.files)
    // The first job ends when three hosts are far into it, the second when two are; then all three take it up.
    _ = try bench.rankedRun(3, keepingIn: "kept", identity: "one", failing: (0, 5))
    _ = try bench.rankedRun(2, keepingIn: "kept", identity: "two", failing: (0, 6), changing: change)
    let result = try bench.rankedRun(3, keepingIn: "kept", identity: "two", changing: change)[0].get()
    #expect(result.result.files == expected.files && result.resumed > 0)
  }

  @Test(arguments: [true, false]) func `a job goes on without the cache of a rank, lost or damaged`(
    isLost: Bool
  ) throws {
    let bench = try ResumeBench(ResumeCase("llama-bf16-sharded"))
    let expected = try bench.rankedRun(1)[0].get().result
    _ = try bench.rankedRun(3, keepingIn: "kept", failing: (0, 6))
    let cache = try #require(try bench.rankCache(1, in: "kept"))
    if isLost { try FileSystem.removeTree(cache) } else { #expect(ResumeBench.damage(cache) > 0) }
    var results = try bench.rankedRun(3, keepingIn: "kept")
    // What is damaged may end all ranks, and is gone when they are started again.
    if case .failure(let error) = results[1] {
      #expect(!isLost && error is CacheError, "\(error)")
      results = try bench.rankedRun(3, keepingIn: "kept")
    }
    let chief = try results[0].get()
    #expect(chief.result.files == expected.files && chief.resumed > 0)
  }

  @Test(arguments: ["config.json", "model.safetensors"])
  func `a copy of the checkpoint that is another one is refused`(
    file: String
  ) throws {
    let directory = try TemporaryDirectory()
    let source = TestFiles.model("llama")
    for copy in ["one", "other"] {
      try FileSystem.createDirectories(directory.file(copy))
      for name in try FileSystem.names(in: source) {
        var bytes = try FileSystem.contents(of: "\(source)/\(name)", limit: 1 << 26)
        if copy == "other", name == file {
          // An epsilon of another size, or a bit of a weight.
          let text = String(decoding: bytes, as: UTF8.self)
          if file == "config.json" {
            bytes = Array(text.replacing("0.001", with: "0.002").utf8)
          } else {
            bytes[bytes.count - 9] ^= 1
          }
        }
        try directory.write(bytes, to: "\(copy)/\(name)")
      }
    }
    let bench = try ResumeBench(ResumeCase("llama"))
    let results = try bench.rankedRun(2) { request in request.model = directory.file("one") }
    _ = try results[0].get()
    let mixed = try bench.rankedRun(2) { request in
      request.model = directory.file("one")
    } of: { rank, request in
      if rank == 1 { request.model = directory.file("other") }
    }
    for result in mixed {
      let error = #expect(throws: RankError.self) { try result.get() }
      #expect(
        error?.exitCode == 78 && error?.description.contains("checksum") == true,
        "\(String(describing: error))")
    }
  }
}
