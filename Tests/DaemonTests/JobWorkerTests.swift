import Calibration
import Decoder
import Export
import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

struct JobWorkerTests {
  private let bench: WorkerBench

  init() throws { bench = try WorkerBench() }

  @Test func `a job tells what it is, what it plans, every linear and its end`() throws {
    let kinds = try bench.work().compactMap { event -> String? in
      switch event {
      case .identity(let digest): digest.count == 64 ? "identity" : nil
      case .planned(let plan): "\(plan.architecture) \(plan.layerCount) \(plan.linearCount)"
      case .linear(let linear, _): linear.layer == 0 ? "first" : "second"
      case .finished: "finished"
      default: nil
      }
    }
    #expect(
      kinds == ["identity", "llama 2 14"] + Array(repeating: "first", count: 7)
        + Array(repeating: "second", count: 7) + ["finished"])
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
    #expect(try FileSystem.names(in: bench.order.cacheDirectory) == [])
  }

  @Test func `the next worker goes on where one ended`() throws {
    try bench.work()
    let expected = try bench.weights()
    try expectResumption(to: expected)
    // And the one after finds it finished.
    let events = try bench.work()
    #expect(!events.contains { if case .linear = $0 { true } else { false } })
    #expect(try bench.weights() == expected)
  }

  /// The job done anew by two workers, the second of which goes on where the first ended.
  private func expectResumption(to expected: [UInt8]) throws {
    try bench.beginAnew()
    try bench.workPartly(linears: 5)
    try bench.work()
    #expect(bench.resumedLinears == 5)
    #expect(try bench.weights() == expected)
  }

  /// Of eight sequences twelve are cut, the same ones by whoever goes on.
  @Test func `a calibration text that is short is told of, and no reason to fail in the night`() throws {
    bench.order.settings.samples = 12
    let warnings = try bench.work().compactMap { event -> String? in
      if case .warning(let text) = event { text } else { nil }
    }
    #expect(warnings.contains { $0.contains("12 sequences of 16 tokens are drawn of") }, "\(warnings)")
    let expected = try bench.weights()
    try expectResumption(to: expected)
    #expect(try Report(directory: bench.files.result).settings.calibration.overlapping == 4)
  }

  @Test func `a checkpoint that is to become a GGUF file is converted first, and once`() throws {
    let calls = bench.directory.file("calls")
    bench.order.ggufConverter = try bench.directory.write(
      "echo called >> \(calls)\ncp \(TestFiles.gguf("llama.gguf")) \"$5\"\n", to: "convert.sh")
    bench.order.python = "/bin/sh"
    bench.order.settings.formats = [.gguf]
    try bench.workPartly(linears: 5)
    try bench.work()
    #expect(bench.resumedLinears == 5)
    #expect(try FileSystem.contents(of: calls, limit: 100) == Array("called\n".utf8))
    let names = try FileSystem.names(in: bench.files.result)
    #expect(names.contains("working-Q4_K_M.gguf") && !names.contains("config.json"))
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
    #expect(try !FileSystem.exists(bench.files.convertedDirectory))
  }

  @Test func `a worker that repeats layers says so, and where new work begins`() throws {
    func catchingUp(_ events: [WorkerEvent]) -> [[Int]] {
      events.compactMap { if case .catchingUp(let at) = $0 { [at.layer, at.until] } else { nil } }
    }
    // All but the last linear, which leaves the first layer and a part of the second one.
    try bench.workPartly(linears: 13)
    try FileSystem.removeTree(bench.order.cacheDirectory)
    #expect(catchingUp(try bench.work()) == [[0, 1], [1, 1]])
    #expect(catchingUp(try bench.work()) == [])
  }

  @Test func `what a worker that was killed had begun to write is no part of the result`() throws {
    try bench.work()
    let expected = try FileSystem.names(in: bench.files.result)
    try FileSystem.move(bench.files.result, to: bench.files.staged)
    // As if it had been in the middle of any of the last files.
    try FileSystem.removeTree(bench.files.staged + "/SHA256SUMS")
    for name in ["quantease_report.json", "quantease_report.html", "SHA256SUMS"] {
      try bench.directory.write("half", to: "half")
      try FileSystem.move(bench.directory.file("half"), to: bench.files.staged + "/.\(name).1a2b.tmp")
    }
    try bench.work()
    #expect(try FileSystem.names(in: bench.files.result) == expected)
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
  }

  @Test func `the result says whose it is`() throws {
    bench.order.name = "dropped"
    try bench.work()
    let report = try Report(directory: bench.files.result)
    #expect(report.model.name == "dropped")
    #expect(report.job == bench.order.id && report.identity == bench.identity && report.identity != nil)
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
  }

  @Test func `a job that is tried again with other settings begins anew`() throws {
    try bench.workPartly(linears: 5)
    try bench.prepareRetry()
    bench.order.settings.bits = 3
    try bench.work()
    #expect(bench.resumedLinears == nil)
    let (mixed, identity) = (try bench.weights(), bench.identity)
    try bench.beginAnew()
    try bench.work()
    #expect(try bench.weights() == mixed)
    #expect(bench.identity == identity)
  }

  @Test func `a job that is tried again as it was goes on`() throws {
    try bench.workPartly(linears: 5)
    try bench.prepareRetry()
    try bench.work()
    #expect(bench.resumedLinears == 5)
  }

  @Test func `sequences of another length are drawn anew`() throws {
    try bench.workPartly(linears: 5)
    try bench.prepareRetry()
    (bench.order.settings.sequenceLength, bench.order.settings.samples) = (12, 3)
    try bench.work()
    #expect(bench.resumedLinears == nil)
    #expect(try FileSystem.fileSize(bench.files.tokens) == (3 * 12 + 1) * 4)
  }

  @Test func `a job whose checkpoint was mended before it is tried again begins anew`() throws {
    try bench.workPartly(linears: 5)
    try bench.prepareRetry()
    let before = bench.identity
    try bench.flip(bench.order.model + "/model.safetensors", at: 100_000)
    try bench.work()
    #expect(bench.resumedLinears == nil)
    #expect(bench.identity != before)
  }

  @Test func `what is about the drop does not change what a job is`() throws {
    try bench.work()
    let identity = try #require(bench.identity)
    let other = try WorkerBench(id: "other")
    for name in ["quantease.yaml", ".ready", "SHA256SUMS"] {
      try AtomicFile.write("# \(name)", to: "\(other.order.model)/\(name)")
    }
    try other.work()
    #expect(other.identity == identity)
    let third = try WorkerBench(id: "third")
    try AtomicFile.write("{}", to: "\(third.order.model)/generation_config.json")
    try third.work()
    #expect(third.identity != identity)
  }

  @Test func `a result that is not what was written is not published`() throws {
    let failure = try #require(throws: JobFailure.self) {
      try bench.work { event in
        guard event == .step("verifying the result") else { return }
        try bench.flip(bench.files.staged + "/model.safetensors", at: 30_000)
      }
    }
    #expect(failure.kind == .broken)
    #expect(failure.message.contains("model.safetensors is not what was written"))
    #expect(try !FileSystem.exists(bench.files.result))
    // Its journal is sound: the next worker has little to do.
    try bench.work()
    #expect(bench.resumedLinears == 14)
  }

  /// A person has moved a result away, and another job's has got its name.
  @Test(arguments: ["model", "other"])
  func `what stands where the same job's result stood is looked at before it is taken`(_ name: String) throws
  {
    try bench.work()
    let identity = try #require(bench.identity)
    let output = bench.directory.file("output/model")
    try FileSystem.createDirectories(bench.directory.file("output"))
    try bench.beginAnew()
    bench.order.settings.bits = 3
    try bench.work()
    try FileSystem.move(bench.files.result, to: output)
    try bench.beginAnew()
    bench.order.settings.bits = 4
    bench.order.name = name
    bench.order.results = [.init(job: "earlier", identity: identity, output: output)]
    let events = try bench.work()
    #expect(bench.identity == identity)
    #expect(!events.contains { if case .reused = $0 { true } else { false } })
    #expect(try Report(directory: bench.files.result).settings.width.contains("4"))
  }

  @Test func `a checkpoint that changes while it is converted is not quantized`() throws {
    bench.order.ggufConverter = try bench.directory.write(
      "cp \(TestFiles.gguf("llama.gguf")) \"$5\"\nprintf x >> \"$1/model.safetensors\"\n", to: "convert.sh")
    bench.order.python = "/bin/sh"
    bench.order.settings.formats = [.gguf]
    bench.order.source = try SourceFiles(of: bench.order.model, symlinks: .refuse)
    let change = try #require(throws: SourceChange.self) { try bench.work() }
    #expect(change.path.hasSuffix("model.safetensors"))
    #expect(try !FileSystem.exists(bench.files.converted("working")))
  }

  @Test func `another converter makes another job`() throws {
    var identities: Set<String> = []
    for text in ["one", "another"] {
      bench.order.settings.formats = [.gguf]
      bench.order.ggufConverter = try bench.directory.write(text, to: "\(text).py")
      identities.insert(
        try JobIdentity.digest(
          of: bench.order, contents: "", tokens: CalibrationSet(sequenceLength: 2, tokens: [1, 2])))
    }
    #expect(identities.count == 2)
  }

  @Test func `token ids of another model's tokenizer are refused, drawn or not`() throws {
    var rows = [[Int64]](repeating: (0..<16).map { $0 * 3 }, count: 64)
    rows[40][3] = 9_000
    let path = try bench.directory.write(tokens: rows, to: "foreign.safetensors")
    bench.order.calibration = CalibrationSources([.init(path: path)])
    #expect(throws: DecoderError.tokenOutsideVocabulary(token: 9_000, vocabulary: 64)) { try bench.work() }
    #expect(try !FileSystem.exists(bench.files.tokens))
  }

  @Test func `a source on the network is read again at the end, whatever its times say`() throws {
    bench.isNetworked = true
    try bench.work()
    #expect(
      bench.events.contains { if case .step(let text) = $0 { text.contains("once more") } else { false } })
    try bench.beginAnew()
    var isChanged = false
    let failure = try #require(throws: JobFailure.self) {
      try bench.work { event in
        // After all weights were read, which no check of theirs can see.
        guard case .step(let text) = event, text.contains("once more") else { return }
        isChanged = true
        try bench.flip(bench.order.model + "/model.safetensors", at: 100_000)
      }
    }
    #expect(isChanged && failure.kind == .job && failure.message.contains(bench.order.model))
    #expect(try !FileSystem.exists(bench.files.result))
  }

  @Test func `what another version of the algorithm has begun is begun anew`() throws {
    let undisturbed = try WorkerBench()
    try undisturbed.work()
    try bench.workPartly(linears: 5)
    // Another digest, as other versions come to, in a file named as they name it.
    let other = bench.order.directory + "/identity"
    if bench.files.identity != other { try FileSystem.move(bench.files.identity, to: other) }
    try bench.flip(other, at: 3)
    try bench.work()
    #expect(bench.identity == undisturbed.identity)
  }

  @Test func `a worker that was ended before it read the checkpoint again leaves that to the next`() throws {
    bench.isNetworked = true
    let step = "reading the checkpoint once more, as it is on a network file system"
    let kept = bench.directory.file("kept-job")
    try bench.work { event in
      guard event == .step(step) else { return }
      try FileManager.default.copyItem(atPath: self.bench.order.directory, toPath: kept)
    }
    try FileSystem.removeTree(bench.order.directory)
    try FileSystem.move(kept, to: bench.order.directory)
    try bench.flip(bench.order.model + "/model.safetensors", at: 100_000)
    let failure = try #require(throws: JobFailure.self) { try bench.work() }
    #expect(failure.kind == .job && failure.message.contains(bench.order.model))
    #expect(try !FileSystem.exists(bench.files.result))
  }

  @Test func `caches of ranks are removed where their jobs are over, and those of others stay`() throws {
    let bench = try WorkerBench()
    let order = bench.order
    let jobs = FileSystem.parent(of: order.directory)
    // A job's name may have dots.
    try FileSystem.createDirectories(FileSystem.join(jobs, "llama-3.1.at-work"))
    try FileSystem.createDirectories(order.cacheDirectory)
    let stems = ["llama-3.1.at-work", "llama-3.1.over"].map { JobWorker.followersCache(of: $0, order) }
    let names =
      stems.flatMap {
        ["\($0).4f0c-1a2b.rank1.activations.mdb", "\($0)7-4711.4f0c-1a2b.rank2.activations.mdb-lock"]
      }
      + ["another.ranks-zzzz-.4f0c-1a2b.rank1.activations.mdb"]
    for name in names {
      try AtomicFile.write("", to: FileSystem.join(order.cacheDirectory, name))
    }
    try JobWorker.removeAbandonedCaches(order)
    #expect(
      try FileSystem.names(in: order.cacheDirectory).sorted()
        == names.filter { $0.contains("at-work") || $0.contains("zzzz") }.sorted())
  }

  @Test func `a cache of an earlier start of the machine is not used`() throws {
    try FileSystem.createDirectories(bench.order.cacheDirectory)
    let names = ["job.0000.activations.mdb", "job.0000.activations.mdb-lock", "job-2.0000.activations.mdb"]
    for name in names { try AtomicFile.write("", to: "\(bench.order.cacheDirectory)/\(name)") }
    try bench.work()
    #expect(try FileSystem.names(in: bench.order.cacheDirectory) == ["job-2.0000.activations.mdb"])
  }

  @Test func `a job of the longest name can be done`() throws {
    let id = JobName.identifier(for: String(repeating: "n", count: 255), at: Date(), random: 1)
    let bench = try WorkerBench(id: id)
    try bench.work()
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
  }

  @Test func `files that are copied along may have any name`() throws {
    try AtomicFile.write("{}", to: bench.order.model + "/line\nfeed.json")
    try bench.work()
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
  }

  @Test func `what is not verified yet does not stand where a result does`() throws {
    var seen: [Bool] = []
    try bench.work { event in
      if case .step(let text) = event, ["writing checksums", "verifying the result"].contains(text) {
        seen.append(try FileSystem.exists(bench.files.result))
      }
    }
    #expect(seen == [false, false])
    #expect(try OutputVerification.problems(of: bench.files.result) == [])
  }

  @Test func `an attempt leaves the caches of other spools' jobs alone`() throws {
    bench.order.isShared = true
    try FileSystem.createDirectories(bench.order.cacheDirectory)
    let other = try WorkerBench(id: "other")
    other.order.isShared = true
    other.order.cacheDirectory = bench.order.cacheDirectory
    var isSeen = false
    try other.work(attempt: JobAttempt.begin(in: other.order.directory)) { event in
      guard case .linear = event, !isSeen else { return }
      isSeen = true
      let before = try FileSystem.names(in: bench.order.cacheDirectory)
      #expect(!before.isEmpty)
      try bench.work(attempt: JobAttempt.begin(in: bench.order.directory)) { event in
        guard case .linear = event else { return }
        let now = try FileSystem.names(in: bench.order.cacheDirectory)
        #expect(Set(now).isSuperset(of: before), "\(now)")
      }
    }
    #expect(isSeen)
  }

  @Test func `a node whose cache is on a network file system takes no job`() throws {
    bench.order.isShared = true
    bench.isNetworked = true
    let attempt = try JobAttempt.begin(in: bench.order.directory)
    let error = #expect(throws: JobFailure.self) { try bench.work(attempt: attempt) }
    #expect(error?.code == 78 && error?.kind == .blocked)
    #expect(error?.message.contains(bench.order.cacheDirectory) == true)
  }

  @Test(arguments: [nil, true])
  func `a cache that may be what breaks workers is left alone by the next one`(_ forgets: Bool?) throws {
    bench.order.isShared = true
    try bench.workPartly(linears: 13, attempt: JobAttempt.begin(in: bench.order.directory))
    bench.order.forgetsCache = forgets
    let events = try bench.work(attempt: JobAttempt.begin(in: bench.order.directory))
    let isRepeated = events.contains { if case .catchingUp(let at) = $0 { at.layer == 0 } else { false } }
    #expect(isRepeated == (forgets == true), "\(events)")
  }
}

struct OutputVerificationTests {
  private let bench: WorkerBench
  private var output: String { bench.files.result }

  init() throws {
    bench = try WorkerBench()
    bench.order.settings.formats = [.gptq, .dense]
    try bench.work()
  }

  private var problems: [String] { get throws { try OutputVerification.problems(of: output) } }

  /// Writes the manifest anew, so that bytes are no longer what is wrong.
  private func sign() throws { try ChecksumManifest.write(into: output) }

  @Test func `a finished output has no problems, and every file is looked at`() throws {
    var count = 0
    #expect(try OutputVerification.problems(of: output) { count += 1 } == [])
    let files = try #require(FileManager.default.enumerator(atPath: output)).compactMap { $0 as? String }
    // All but the two directories and the manifest.
    #expect(count == files.count - 3)
  }

  @Test func `a checkpoint that does not open is a problem, whatever its digest`() throws {
    try FileSystem.removeTree(output + "/gptq/model.safetensors")
    try sign()
    let problem = try #require(problems.first)
    #expect(problem.contains(output + "/gptq"))
    #expect(try problems.count == 1)
  }

  @Test func `a report that cannot be read is a problem`() throws {
    try AtomicFile.write("{", to: output + "/quantease_report.json")
    try sign()
    #expect(try problems.count == 1)
    #expect(try problems[0].hasPrefix("quantease_report.json: "))
  }

  @Test func `an output without a manifest is not complete`() throws {
    try FileSystem.removeTree(output + "/SHA256SUMS")
    #expect(try problems == ["SHA256SUMS is missing: the daemon writes it when an output is complete"])
    #expect(try OutputVerification.problems(of: output + "/nothing") == ["\(output)/nothing is no directory"])
  }
}
