import Foundation
import SystemIO
import TestSupport
import Testing

@testable import ActivationCache
@testable import Pipeline

/// A run that goes on takes every batch that the cache has, and computes those alone that it lacks.
struct RecoveryByBatchTests {
  static let cases = [
    ResumeCase("llama", "half of the original") { $0.targetShare = 0.5 },
    ResumeCase("llama-bf16-sharded"),
    ResumeCase("opt-pre", "all of the original") { $0.targetShare = 1 },
    ResumeCase("falcon-40b", "layer") { $0.target = .layer },
    ResumeCase("deepseek-v3-dense", "an eighth of the original") { $0.targetShare = 0.125 },
    ResumeCase("qwen3-5"),
  ]

  /// What a cache may lose.
  struct Loss: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let isLost: @Sendable (HiddenStatesKey) -> Bool
  }

  static let losses = [
    Loss(testDescription: "a batch") { $0.stream == 0 && $0.batch == 1 },
    Loss(testDescription: "a batch of the original stream") { $0.stream == 1 && $0.batch == 0 },
    Loss(testDescription: "both streams' last batch") { $0.batch == ($0.stream == 0 ? 3 : 1) },
    Loss(testDescription: "all batches but one") { $0.batch != 2 },
  ]

  /// After a linear and on the way to the next stage, at most a dozen.
  private func moments(of run: WatchedRun) -> [Moment] {
    let moments = run.moments.filter { $0.linears > 0 && $0.linears < run.result.rows.count }
    return stride(from: 0, to: moments.count, by: max(1, moments.count / 12)).map { moments[$0] }
  }

  @Test(arguments: cases, losses)
  func `of a cache that lost some batches those alone are computed again`(
    _ test: ResumeCase, _ loss: Loss
  ) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for moment in moments(of: try bench.watchedRun()) {
      let cache = try CacheContents(of: moment)
      let run = try bench.goOn(from: cache.losing(loss.isLost))
      #expect(run.result == expected, "\(moment)")
      #expect(run.resumedLinears == moment.linears, "\(moment)")
      let steps = cache.batches(loss.isLost) * bench.stagesBefore(moment.linears).count
      #expect(run.batchesComputed == bench.batches(after: moment.linears) + steps, "\(moment)")
    }
  }

  @Test(arguments: cases)
  func `a batch that lost one of its values is computed again`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    var recovered = 0
    for moment in moments(of: try bench.watchedRun()) {
      let cache = try CacheContents(of: moment)
      for key in cache.keys.filter({ $0.batch == 1 }) {
        let run = try bench.goOn(from: cache.losing { $0 == key })
        #expect(run.result == expected, "\(moment), without \(key)")
        let steps = run.batchesComputed - bench.batches(after: moment.linears)
        // What the stage at hand has written besides can be had from what it read, if that is still there.
        #expect([0, bench.stagesBefore(moment.linears).count].contains(steps), "\(moment), without \(key)")
        if steps > 0 { recovered += 1 }
      }
    }
    #expect(recovered > 0)
  }

  @Test(arguments: cases)
  func `a cache that lost all batches is computed from the embedding`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for moment in moments(of: try bench.watchedRun()) {
      let run = try bench.goOn(from: CacheContents(of: moment).losing { _ in true })
      #expect(run.result == expected, "\(moment)")
      #expect(run.batchesComputed == bench.batches(after: 0), "\(moment)")
    }
  }

  @Test(arguments: cases)
  func `of a value that proves damaged its batch alone is computed again`(_ test: ResumeCase) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for moment in moments(of: try bench.watchedRun()) {
      let cache = try CacheContents(of: moment)
      for key in cache.keys.filter({ $0.batch == 2 }) {
        let run = try bench.goOn(from: cache.damaging(key))
        #expect(run.result == expected, "\(moment), \(key) damaged")
        // A slot that the next stage does not read may be replaced unread.
        let warnings = run.warnings.filter { $0.contains("damaged") }
        let isNoticed = !warnings.isEmpty
        #expect(warnings.allSatisfy { $0.contains("the value of \(key) is damaged") }, "\(run.warnings)")
        // Until it is noticed, a stage or more may have been run.
        let most = bench.stagesBefore(moment.linears).count + (isNoticed ? 2 * bench.batchCount : 0)
        #expect(run.batchesComputed <= bench.batches(after: moment.linears) + most, "\(moment), \(key)")
      }
    }
  }

  @Test(arguments: cases)
  func `of the states that a layer began with those alone are computed again that are lost`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    let watched = try bench.watchedRunInMemory()
    #expect(watched.states == .memory)
    var recovered = 0
    for moment in moments(of: watched) {
      let lost = try CacheContents(of: moment).losing { $0.stream == 0 && $0.batch == 1 }
      for states in [StatesChoice.cache, .auto] {
        func goOn(from moment: Moment) throws -> WatchedRun {
          try bench.goOn(from: moment, memoryBudgetBytes: 1 << 40, states: states)
        }
        let run = try goOn(from: lost)
        #expect(run.result == expected, "\(moment)")
        // Of what the layer began with, or of what the next one does.
        let before = try goOn(from: moment).batchesComputed
        #expect(run.batchesComputed > before || before == bench.batches(after: 0), "\(moment)")
        #expect(run.batchesComputed <= before + bench.stagesBefore(moment.linears).count, "\(moment)")
        if run.batchesComputed > before { recovered += 1 }
      }
    }
    #expect(recovered > 0)
  }

  // MARK: Mixtures

  @Test(arguments: MixtureTests.cases + [ResumeCase("deepseek-v3")])
  func `behind a mixture whose products depend on each other all batches are computed again`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for var moment in moments(of: try bench.watchedRun()) where moment.isAfterLinear {
      let cache = try CacheContents(of: moment)
      let run = try bench.goOn(from: cache.losing { $0.batch == 1 })
      let damaged = try bench.goOn(from: cache.damaging(#require(cache.keys.first { $0.batch == 1 })))
      #expect(run.result == expected, "\(moment)")
      #expect(damaged.result == expected, "\(moment)")
      moment.cache = nil
      let replay = try bench.goOn(from: moment).batchesComputed
      let stages = bench.stagesBefore(moment.linears)
      let isReplayed = stages.isEmpty || stages.contains { !$0.experts.isEmpty }
      #expect(isReplayed ? run.batchesComputed == replay : run.batchesComputed < replay, "\(moment)")
    }
  }

  @Test(arguments: ["qwen2-moe", "mixtral", "deepseek-v3", "gemma4-moe", "llama4"])
  func `behind a mixture of bfloat16 only those batches are that are lost`(_ fixture: String) throws {
    let directory = try TemporaryDirectory(isInMemory: true)
    let test = ResumeCase(try directory.writeBFloat16(of: fixture)) { $0.targetShare = 0.5 }
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    for moment in moments(of: try bench.watchedRun()) where moment.isAfterLinear {
      let cache = try CacheContents(of: moment)
      let before = try bench.goOn(from: moment).batchesComputed
      for (streams, loss) in [(1, Self.losses[0]), (bench.streamCount, Self.losses[2])] {
        let run = try bench.goOn(from: cache.losing(loss.isLost))
        #expect(run.result == expected, "\(moment), \(loss)")
        let stages = bench.stagesBefore(moment.linears)
        let passed = stages.dropLast()
        let batches = cache.batches(loss.isLost)
        // To route a batch counts as well, and so does every expert.
        let mixtures = passed.count { !$0.experts.isEmpty }
        let experts = passed.reduce(0) { $0 + $1.experts.count }
        let steps = batches * (stages.count + mixtures) + streams * experts
        // A mixture before the stage at hand may have routed the batch, which is then done once more, or is to do so yet.
        let isMixed = stages.last?.experts.isEmpty == false
        let possible = [steps, isMixed ? steps + batches : steps]
        #expect(possible.contains(run.batchesComputed - before), "\(moment), \(loss)")
      }
    }
  }

  @Test(arguments: MixtureTests.cases)
  func `a process that ends on the way through a mixture's batches leaves enough to come to the same bytes`(
    _ test: ResumeCase
  ) throws {
    let bench = try ResumeBench(test)
    let expected = try bench.uninterrupted()
    let moments = try bench.watchedRun().moments.filter { !$0.isAfterLinear && $0.linears > 0 }
    for index in stride(from: 0, to: moments.count, by: 3) {
      #expect(try bench.goOn(from: moments[index]).result == expected, "\(moments[index])")
    }
  }

  // MARK: Leftovers

  @Test func `what another job left of the same places is not taken for this one's`() throws {
    func skipping(_ settings: inout QuantizationSettings) { settings.rules = [#"\.0\.=skip"#] }
    let other = try ResumeBench(
      ResumeCase("llama-tied") {
        skipping(&$0)
        $0.rotate = .residual
      })
    let bench = try ResumeBench(ResumeCase("llama-tied", "", skipping))
    let expected = try bench.uninterrupted()
    for moment in try other.watchedRun(identity: "other").moments where moment.linears < 2 {
      #expect(try bench.watchedRun(from: moment).result == expected, "\(moment)")
    }
  }
}

/// What stands in a cache that a process has left.
private struct CacheContents {
  private let moment: Moment
  let keys: [HiddenStatesKey]

  init(of moment: Moment) throws {
    self.moment = moment
    let (store, _) = try Self.copy(of: moment)
    keys = try (0..<2).flatMap { stream in
      try (0..<400).flatMap { stage in
        try (0..<8).map { HiddenStatesKey(stream: stream, stage: stage, batch: $0) }.filter(store.contains)
      }
    }
  }

  /// A store of its own, which goes with the directory.
  private static func copy(of moment: Moment) throws -> (HiddenStatesStore, TemporaryDirectory) {
    let directory = try TemporaryDirectory(isInMemory: true)
    let path = try directory.write(#require(moment.cache), to: "cache")
    return (try HiddenStatesStore(path: path, elementType: .float32, threads: 1, isKept: true), directory)
  }

  /// Batches of all streams that have such a value.
  func batches(_ isChosen: (HiddenStatesKey) -> Bool) -> Int {
    Set(keys.filter(isChosen).map { [$0.stream, $0.batch] }).count
  }

  /// The moment with a cache that lacks some values.
  func losing(_ isLost: (HiddenStatesKey) -> Bool) throws -> Moment {
    try changing { (transaction) throws(CacheError) in
      for key in keys where isLost(key) { try transaction.delete(key) }
    }
  }

  /// The moment with a cache in which a bit of a value is flipped.
  func damaging(_ key: HiddenStatesKey) throws -> Moment {
    let (store, _) = try Self.copy(of: moment)
    var bytes = try unsafe store.environment.withValue(of: key) { unsafe $0.map(Array.init) ?? [] }
    bytes[bytes.count / 2] ^= 16
    return try changing { [bytes] (transaction) throws(CacheError) in
      try unsafe transaction.put(key, count: bytes.count) { unsafe $0.copyBytes(from: bytes) }
    }
  }

  private func changing(
    _ change: (borrowing WriteTransaction) throws(CacheError) -> Void
  ) throws -> Moment {
    let (store, directory) = try Self.copy(of: moment)
    try store.environment.write(change)
    var changed = moment
    changed.cache = try FileSystem.contents(of: directory.file("cache"), limit: 1 << 30)
    return changed
  }
}

extension TemporaryDirectory {
  /// Writes a fixture with weights of bfloat16 and gives its path.
  fileprivate func writeBFloat16(of fixture: String) throws -> String {
    let source = TestFiles.model(fixture)
    let file = try FileSystem.contents(of: FileSystem.join(source, "model.safetensors"), limit: 1 << 30)
    let start = 8 + file[..<8].reversed().reduce(0) { $0 << 8 | Int($1) }
    var header = try #require(
      JSONSerialization.jsonObject(with: Data(file[8..<start])) as? [String: [String: Any]])
    var data: [UInt8] = []
    for (name, tensor) in header where name != "__metadata__" {
      let range = try #require(tensor["data_offsets"] as? [Int])
      let first = data.count
      // Of a float's four bytes the last two.
      data += (start + range[0]..<start + range[1]).filter { ($0 - start) % 4 >= 2 }.map { file[$0] }
      header[name]?.merge(["dtype": "BF16", "data_offsets": [first, data.count]]) { $1 }
    }
    let json = String(decoding: try JSONSerialization.data(withJSONObject: header), as: UTF8.self)
    try write(tensorFile(header: json, data: data), to: "model.safetensors")
    let configuration = FileSystem.join(source, "config.json")
    try write(FileSystem.contents(of: configuration, limit: 1 << 20), to: "config.json")
    return path
  }
}
