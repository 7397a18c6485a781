import ComputeOpenBLAS
import SystemIO
import TestSupport
import Testing

@testable import Pipeline

/// A run that another process began: whatever ended that one, and wherever, the result is the same to the bit.
struct ResumeTests {
  static let cases = [
    ResumeCase("llama"),
    ResumeCase("falcon-40b"),
    ResumeCase("opt-pre"),
    ResumeCase("llama-bf16-sharded") { $0.formats = [.gptq, .dense] },
    ResumeCase("llama-bf16-sharded", "exact") { $0.precision = .exact },
    ResumeCase("gemma4"),
    ResumeCase("qwen3-5"),
    ResumeCase("cohere2"),
    ResumeCase("deepseek-v3-dense"),
    ResumeCase("llama", "layer") { $0.target = .layer },
    ResumeCase("llama", "original, all samples") { $0.targetShare = 1 },
    ResumeCase("falcon-40b", "layer") { $0.target = .layer },
    ResumeCase("llama", "outliers") { $0.outliers = 0.02 },
    ResumeCase("opt-pre", "structured outliers") {
      $0.outliers = 0.1
      $0.structuredOutliers = true
    },
    ResumeCase("llama-wide.gguf", "Q2_K") {
      $0.formats = [.gguf]
      $0.ggufType = .q2_K
    },
    ResumeCase("llama-wide.gguf", "Q6_K, pure") {
      $0.formats = [.gguf]
      $0.ggufType = .q6_K
      $0.ggufPure = true
    },
    ResumeCase("llama-tied", "rotated") { $0.rotate = .residual },
    ResumeCase("llama", "rotated by trial") { $0.rotate = .auto },
    ResumeCase("llama", "rules") {
      $0.rules = ["down_proj=skip", #"\.0\.mlp\.=bits:8,symmetric"#]
      $0.correctHead = false
    },
  ]

  @Test(arguments: cases)
  func `a run with a journal comes to the bytes of one without`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    #expect(bench.batchCount >= 4)
    #expect(try bench.watchedRun().result == bench.uninterrupted())
  }

  @Test(arguments: cases)
  func `a process that ends anywhere leaves enough to go on where it was`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    // Within stages too, where some of the linears that share an input are done and others are not.
    let linearCount = expected.rows.count
    #expect(Set(moments.map(\.linears)) == Set(0...linearCount))
    for moment in moments {
      let run = try bench.goOn(from: moment)
      #expect(run.result == expected, "\(moment)")
      #expect(run.resumedLinears == moment.linears, "\(moment)")
      // Nothing is computed that was computed before.
      #expect(run.batchesComputed == bench.batches(after: moment.linears), "\(moment)")
    }
  }

  @Test(arguments: cases)
  func `the journal alone is enough`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for var moment in try bench.watchedRun().moments where moment.isAfterLinear {
      moment.cache = nil
      let run = try bench.goOn(from: moment)
      #expect(run.result == expected, "\(moment)")
      #expect(run.resumedLinears == moment.linears)
      let isDone = moment.linears == expected.rows.count && !bench.hasHeadWork
      #expect(run.batchesComputed == (isDone ? bench.outsideCount : bench.batches(after: 0)), "\(moment)")
    }
  }

  /// How far a process was among stages without linears to quantize is in the cache alone.
  @Test func `a process that ends on the way to the head goes on with what it left`() throws {
    let bench = try ResumeBench(ResumeCase("llama", "no last linears") { $0.rules = [#"\.1\."# + "=skip"] })
    let expected = try bench.uninterrupted()
    var batches: Set<Int> = []
    for moment in try bench.watchedRun().moments where moment.linears == expected.rows.count {
      let run = try bench.goOn(from: moment)
      #expect(run.result == expected, "\(moment)")
      batches.insert(run.batchesComputed)
    }
    #expect(batches.count > 1 && (batches.min() ?? 0) < bench.batchCount, "\(batches)")
  }

  @Test(arguments: cases)
  func `states in memory come to the same bytes, and a later process goes on where their layer began`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    let run = try bench.watchedRunInMemory()
    #expect(run.states == .memory)
    #expect(run.result == expected)
    let linearCount = expected.rows.count
    for (number, moment) in run.moments.enumerated() {
      // Memory may be scarce by then, and states go to the cache.
      let states: StatesChoice = number % 3 == 0 ? .cache : .auto
      let later = try bench.goOn(from: moment, memoryBudgetBytes: 1 << 40, states: states)
      #expect(later.result == expected, "\(moment)")
      #expect(later.resumedLinears == moment.linears, "\(moment)")
      let before = bench.linearsBeforeLayer(after: moment.linears)
      if moment.isAfterLinear, moment.linears < linearCount, before < moment.linears {
        // What the second stage is solved for comes of what the layer begins with.
        let possible = [before, moment.linears].map(bench.batches)
        #expect(possible.contains(later.batchesComputed), "\(moment)")
      }
    }
  }

  @Test(arguments: cases)
  func `what was left in the cache is gone on with in memory`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for moment in try bench.watchedRun().moments {
      let run = try bench.goOn(from: moment, memoryBudgetBytes: 1 << 40, states: .auto)
      #expect(run.states == .memory)
      #expect(run.result == expected, "\(moment)")
      #expect(run.batchesComputed == bench.batches(after: moment.linears), "\(moment)")
    }
  }

  @Test func `a record that was cut off is not there`() throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let expected = try bench.uninterrupted()
    let last = try #require(try bench.watchedRun().moments.last)
    let records = journalRecords(in: last.journal)
    #expect(records.count == 15)
    for (number, record) in records.enumerated() {
      for end in [record.lowerBound, record.lowerBound + 8, record.lowerBound + 24, record.upperBound - 1] {
        var moment = last
        moment.journal = Array(last.journal[..<end])
        let run = try bench.goOn(from: moment)
        #expect(run.result == expected, "cut at byte \(end), in record \(number)")
        #expect(run.resumedLinears == max(0, number - 1))
      }
    }
  }

  @Test func `a flipped bit in the journal loses that record and those after it`() throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let expected = try bench.uninterrupted()
    let last = try #require(try bench.watchedRun().moments.last)
    for (number, record) in journalRecords(in: last.journal).enumerated() {
      for offset in [
        record.lowerBound, record.lowerBound + 17, record.lowerBound + 40, record.upperBound - 1,
      ] {
        var moment = last
        moment.journal[offset] ^= 4
        let run = try bench.goOn(from: moment)
        #expect(run.result == expected, "byte \(offset), in record \(number)")
        #expect(run.resumedLinears == max(0, number - 1))
      }
    }
  }

  @Test func `what a journal had behind a damaged record does not come back`() throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let expected = try bench.uninterrupted()
    var moment = try #require(try bench.watchedRun().moments.last)
    moment.journal[journalRecords(in: moment.journal)[5].lowerBound + 40] ^= 1
    for again in try bench.watchedRun(from: moment).moments where again.isAfterLinear {
      let run = try bench.goOn(from: again)
      #expect(run.result == expected)
      #expect(Set(run.result.rows.map(\.name)).count == run.result.rows.count)
    }
  }

  @Test func `a journal of another job is emptied, and nothing of its cache is used`() throws {
    let other = try ResumeBench(ResumeCase("llama") { $0.bits = 3 })
    let left = try other.watchedRun(identity: "other").moments
    let bench = try ResumeBench(ResumeCase("llama"))
    let expected = try bench.uninterrupted()
    // Left far on: its states stand where this job's come to stand much later.
    for moment in [left[left.count / 2], left[left.count - 2]] {
      let run = try bench.watchedRun(from: moment)
      #expect(run.resumedLinears == 0)
      #expect(run.result == expected)
      for again in run.moments {
        #expect(try bench.goOn(from: again).result == expected, "\(again)")
      }
    }
  }

  @Test func `a journal of another version is emptied`() throws {
    let bench = try ResumeBench(ResumeCase("opt-pre"))
    let head = ResumeJournal.Head(
      version: 1, identity: "job", batchSamples: 2, panelRows: 256, kernels: "some")
    let path = bench.directory.file("other-version")
    let place = ResumePlace(journal: path, cache: "", identity: "job")
    try ResumeJournal(place).begin(head, for: [])
    #expect(try ResumeJournal(place).head == nil)
    #expect(try FileSystem.fileSize(path) == 0)
  }

  @Test func `sizes are those that the job began with`() throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    // With all the memory there is, a new run would take all samples at once.
    let run = try bench.goOn(from: moments[moments.count / 2], memoryBudgetBytes: 1 << 40)
    #expect(run.result == expected)
    #expect(run.batchesComputed == bench.batches(after: moments[moments.count / 2].linears))
    #expect(throws: PipelineError.self) {
      try bench.goOn(from: moments[moments.count / 2], memoryBudgetBytes: 1_000_000)
    }
  }

  @Test func `with less memory than it began with, a job goes on in smaller batches to the same bytes`()
    throws
  {
    let bench = try ResumeBench(ResumeCase("llama") { $0.target = .original }, memoryBudgetBytes: 1 << 40)
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    let moment = moments[moments.count / 2]
    let least = try ResumeBench.plan(
      ResumeCase("llama") { $0.target = .original }, on: OpenBLASBackend(threads: 2))
    let run = try bench.goOn(from: moment, memoryBudgetBytes: least.peakBytes)
    #expect(run.result == expected && run.resumedLinears == moment.linears)
  }

  @Test func `kernels that another process had are named, and the work goes on`() throws {
    let bench = try ResumeBench(ResumeCase("llama-bf16-sharded"))
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    let moment = try #require(moments.last { $0.linears == expected.rows.count / 2 })
    let run = try bench.goOn(
      from: moment, memoryBudgetBytes: 1 << 40, by: OpenBLASBackend(threads: 2))
    #expect(run.resumedLinears == moment.linears)
    #expect(run.result.rows.prefix(moment.linears) == expected.rows.prefix(moment.linears))
    #expect(run.result.rows.map(\.name) == expected.rows.map(\.name))
    let warning = try #require(run.warnings.first { $0.hasPrefix("going on by OpenBLAS") })
    #expect(warning.contains("the \(moment.linears) linears before were computed by OpenBLAS"))
    #expect(warning.contains(", bfloat16 products by "))
    // The same kernels are nothing to tell of.
    #expect(try bench.goOn(from: moment).warnings.isEmpty)
  }

  // MARK: Cache

  @Test(arguments: [QuantizationSettings.TargetChoice.layer, .original])
  func `a flipped bit in the kept cache is noticed`(_ target: QuantizationSettings.TargetChoice) throws {
    let bench = try ResumeBench(ResumeCase("llama") { $0.target = target })
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    for part in [1, 2, 3] {
      var moment = moments[moments.count * part / 4]
      let bytes = try #require(moment.cache)
      let places = valueBytes(inDatabase: bytes)
      #expect(!places.isEmpty)
      for place in places { moment.cache?[place] ^= 16 }
      let run = try bench.goOn(from: moment)
      #expect(run.result == expected)
      #expect(run.warnings.contains { $0.contains("damaged") }, "\(run.warnings)")
    }
  }

  @Test(arguments: cases)
  func `a cache that is damaged at any moment of the work changes no byte of the result`(_ test: ResumeCase)
    throws
  {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments
    // In the first process, and in one that goes on from the middle: what it has finished itself counts as well.
    for start in [nil, moments[moments.count / 2]] {
      var number = 1
      var noticed = 0
      while let run = try bench.run(damagingCacheAt: number, from: start) {
        #expect(run.result == expected, "damaged at event \(number) \(start.map { "from \($0)" } ?? "")")
        noticed += run.warnings.count { $0.contains("damaged") }
        number += 1
      }
      // Small values share a page, and none of those was touched.
      #expect(noticed > 0, "none of \(number) was noticed")
    }
  }

  @Test(arguments: [0, 1, 4_095, 4_096, 8_192, 12_288, -4_096, -1])
  func `a cache that lost its end is made anew`(_ length: Int) throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let moments = try bench.watchedRun().moments
    var moment = moments[moments.count / 2]
    let bytes = try #require(moment.cache)
    moment.cache = Array(bytes[..<(length < 0 ? bytes.count + length : length)])
    let run = try bench.goOn(from: moment)
    #expect(try run.result == bench.uninterrupted())
    #expect(run.resumedLinears == moment.linears)
  }

  @Test func `a file that is none of LMDB's in the cache's place is no hindrance`() throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let moments = try bench.watchedRun().moments
    var moment = moments[moments.count / 2]
    moment.cache = [UInt8](repeating: 0x5A, count: 100_000)
    #expect(try bench.goOn(from: moment).result == bench.uninterrupted())
  }

  // MARK: Ends

  @Test(arguments: [0, 1, 4, 13])
  func `a run that fails keeps journal and cache, and nothing of its output`(_ linears: Int) throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    #expect(throws: Interruption.self) { try bench.failingRun(after: linears) }
    #expect(try FileSystem.names(in: bench.directory.file("failing")) == ["cache", "cache-lock", "journal"])
    let moment = Moment(
      linears: linears, isAfterLinear: true,
      journal: try FileSystem.contents(of: bench.directory.file("failing/journal"), limit: 1 << 30),
      cache: try FileSystem.contents(of: bench.directory.file("failing/cache"), limit: 1 << 30))
    let run = try bench.goOn(from: moment)
    #expect(try run.result == bench.uninterrupted())
    #expect(run.resumedLinears == linears)
    #expect(run.batchesComputed == bench.batches(after: linears))
  }

  @Test func `a run that came to its end removes its cache and keeps the journal`() throws {
    let bench = try ResumeBench(ResumeCase("llama"))
    let run = try bench.watchedRun()
    #expect(try FileSystem.names(in: run.directory) == ["journal", "output"])
  }
}
