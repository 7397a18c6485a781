import Checkpoint
import Daemon
import Foundation
import SystemIO
import TestSupport
import Testing

/// The daemon end to end, as a process: what is dropped, and what has to survive.
@Suite(.serialized) struct DaemonTests {
  @Test func `systemd is told when it is ready, what it does, and that it ends`() throws {
    let bench = try DaemonBench()
    let manager = try DatagramSocket(
      boundTo: .path(bench.directory.file("notify")), timeoutMilliseconds: 20_000)
    /// Every message up to one that has `text` in it.
    func messages(upTo text: String) throws -> [String] {
      var messages: [String] = []
      while messages.last?.contains(text) != true {
        messages.append(String(decoding: try #require(try manager.receive(), "\(bench.log)"), as: UTF8.self))
      }
      return messages
    }
    try bench.start(environment: ["NOTIFY_SOCKET": bench.directory.file("notify")], isAwaited: false)
    let first = try #require(try messages(upTo: "READY=1").last)
    #expect(first.contains("\nSTATUS=idle, waiting for a checkpoint in \(bench.spool.incoming)"))
    try bench.drop("tiny")
    // How far it is may never be told: so small a job can be over before the daemon looks again.
    _ = try messages(upTo: "STATUS=tiny")
    _ = try messages(upTo: "STATUS=idle")
    bench.signal(SIGTERM)
    #expect(try messages(upTo: "STOPPING=1").count >= 1)
    #expect(try bench.stop() == 0)
  }

  @Test func `a drop is published, verified, and told of`() throws {
    let bench = try DaemonBench()
    try bench.start()
    try bench.drop("tiny", recipe: "bits: 3\nformat: [gptq-v2, compressed-tensors]\n") { path in
      try "terms".write(toFile: path + "/LICENSE", atomically: true, encoding: .utf8)
    }
    try bench.waitForOutput("tiny")
    let output = "\(bench.spool.output)/tiny"
    let verification = try Quantease(["verify", output])
    #expect(verification.output.contains("loads    compressed-tensors: "))
    #expect(verification.status == 0, "\(verification.errors)")
    let report = try JSONValue(contentsOf: output + "/quantease_report.json")
    #expect(report["linears"]?.array?.allSatisfy { $0["bits"]?.int == 3 } == true)
    #expect(
      try FileSystem.names(in: output) == [
        "SHA256SUMS", "compressed-tensors", "gptq-v2", "quantease_job.log", "quantease_report.html",
        "quantease_report.json",
      ])
    let log = try String(contentsOfFile: output + "/quantease_job.log", encoding: .utf8)
    #expect(log.contains("Z queued name=tiny") && log.contains("Z quantized layer=1"))
    #expect(try FileSystem.names(in: output + "/gptq-v2").contains("LICENSE"))
    #expect(try !FileSystem.names(in: output + "/gptq-v2").contains("quantease.yaml"))
    #expect(try FileSystem.names(in: bench.spool.done).count == 1)
    #expect(try FileSystem.names(in: bench.spool.incoming) == [])
    #expect(try FileSystem.names(in: bench.spool.partial) == [])
    #expect(try FileSystem.names(in: bench.directory.file("cache")) == [])

    let status = try bench.snapshot
    #expect(status.service == .running && status.current == nil && status.queue == [])
    #expect(status.counters == .init(published: 1, linearsQuantized: 14))
    let job = try #require(status.finished.first)
    #expect(job.output == output)
    #expect(try #require(job.bitsPerWeight) > 3)
    #expect(job.meanRelativeError == report["totals"]?["mean_relative_error"]?.double)
    let json = try Quantease.json("status", "--config", bench.configuration)
    for key in [
      "service", "state_text", "queue", "finished", "counters", "spool_free_bytes", "version", "made_at",
    ] {
      #expect(json[key] != nil, "\(key)")
    }

    // A byte that is not what it was.
    let path = output + "/gptq-v2/model.safetensors"
    var bytes = try FileSystem.contents(of: path, limit: 1 << 24)
    bytes[bytes.count - 7] ^= 1
    try AtomicFile.write(bytes, to: path)
    let second = try Quantease(["verify", output])
    #expect(second.status == 65)
    #expect(second.errors.contains("gptq-v2/model.safetensors is not what was written"))
    #expect(try bench.stop() == 0)
  }

  @Test func `a GGUF file that is copied into the folder comes out as one, the same as the command's`() throws
  {
    let bench = try DaemonBench()
    try bench.start()
    try FileManager.default.copyItem(
      atPath: TestFiles.gguf("llama-wide.gguf"), toPath: "\(bench.spool.incoming)/wide-bf16.gguf")
    let result = "\(bench.spool.output)/wide-bf16"
    try bench.wait("the result") { try FileSystem.exists("\(result)/SHA256SUMS") }
    let file = "\(result)/wide-Q4_K_M.gguf"
    #expect(try FileSystem.exists(file) && FileSystem.exists("\(result)/quantease_report.html"))
    let own = bench.directory.file("own")
    let command = try Quantease([
      "quantize", TestFiles.gguf("llama-wide.gguf"), "--output", own, "--samples", "8", "--sequence-length",
      "128",
      "--calibration", bench.directory.file("tokens.safetensors"),
    ])
    #expect(command.status == 0, "\(command.errors)")
    #expect(
      FileManager.default.contentsEqual(atPath: file, andPath: "\(own)/llama-wide-Q4_K_M.gguf"))
    try bench.wait("the source's place") {
      try FileSystem.names(in: bench.spool.done).count == 1
    }
    // Two parts, and a recipe beside them in their directory.
    let submitted = try Quantease([
      "submit", TestFiles.gguf("llama-wide.gguf"), "--name", "again", "--config", bench.configuration,
      "--wait",
    ])
    #expect(submitted.status == 0, "\(submitted.errors)")
    #expect(try FileSystem.exists("\(bench.spool.output)/again/llama-wide-Q4_K_M.gguf"))
  }

  @Test func `of several drops the broken ones fail, each with its reason, and the others are published`()
    throws
  {
    let bench = try DaemonBench()
    try bench.drop("good-1")
    try bench.drop("no-number") { path in
      var file = try TensorFile(path + "/model.safetensors")
      file.set("model.layers.1.self_attn.o_proj.weight", at: 77, to: .nan)
      try file.write()
    }
    try bench.drop("unknown") { try edit($0 + "/config.json", ["model_type": "mamba"]) }
    try bench.drop("bad-recipe", recipe: "# mine\nbits: 4\ngroup-size: twelve\n")
    try bench.drop("good-2", fixture: "opt-pre")
    for name in ["good-1", "no-number", "unknown", "bad-recipe", "good-2"] {
      try AtomicFile.write("", to: "\(bench.spool.incoming)/\(name)/.ready")
    }
    try bench.start()
    try bench.waitForOutput("good-1")
    try bench.waitForOutput("good-2")
    for name in ["no-number", "unknown", "bad-recipe"] { try bench.waitForFailure(name) }

    let number = try bench.message(of: "no-number")
    #expect(
      number.contains("model.layers.1.self_attn.o_proj.weight") && number.lowercased().contains("nan"),
      "\(number)")
    let unknown = try bench.message(of: "unknown")
    for family in ["mamba", "llama", "falcon", "opt", "qwen2", "mistral", "bloom"] {
      #expect(unknown.contains(family), "\(unknown)")
    }
    let recipe = try bench.message(of: "bad-recipe")
    #expect(recipe.contains("quantease.yaml:3:") && recipe.contains("group-size"), "\(recipe)")
    #expect(try bench.reason(of: "bad-recipe")?["code"]?.int == 65)

    let status = try bench.snapshot
    #expect(bench.isRunning && status.service == .running && status.current == nil)
    #expect(status.counters.published == 2 && status.counters.failed == 3)
    let why = try bench.quantease("why", "unknown")
    #expect(why.output.contains("mamba") && why.output.contains("retry"), "\(why.output)")
  }

  @Test func `the same job is not computed twice, and every drop has a result of its name`() throws {
    let bench = try DaemonBench()
    try bench.start()
    try bench.drop("first")
    try bench.waitForOutput("first")
    let first = try #require(try bench.snapshot.finished.first).id
    try bench.drop("second")
    try bench.waitForOutput("second")
    // With other settings it is another job.
    try bench.drop("third", recipe: "bits: 8")
    try bench.waitForOutput("third")
    // Under its own name it is there already.
    try bench.drop("first")
    try bench.wait("the first again") { try bench.snapshot.finished.count == 4 }
    let status = try bench.snapshot
    #expect(status.counters.linearsQuantized == 28)
    #expect(status.finished.map { $0.output.map(FileSystem.name) } == ["first", "third", "second", "first"])
    #expect(try FileSystem.names(in: bench.spool.output) == [".partial", "first", "second", "third"])
    let second = "\(bench.spool.output)/second"
    #expect(try Quantease(["verify", second]).status == 0)
    #expect(try bench.weights("second") == bench.weights("first"))
    let report = try JSONValue(contentsOf: second + "/quantease_report.json")
    #expect(report["made_by"]?.string == first)
    #expect(try String(contentsOfFile: second + "/quantease_report.html", encoding: .utf8).contains(first))
    #expect(try bench.quantease("why", "second").output.contains("made by the job \(first)"))
  }

  @Test func `a result that is no longer what was written is not published again, but made anew`() throws {
    let bench = try DaemonBench()
    try bench.start()
    try bench.drop("first")
    try bench.waitForOutput("first")
    let path = "\(bench.spool.output)/first/model.safetensors"
    let file = try #require(FileHandle(forUpdatingAtPath: path))
    try file.seek(toOffset: 20_000)
    try file.write(contentsOf: [1, 2, 3, 4])
    try file.close()
    for name in ["second", "first"] {
      try bench.drop(name)
      try bench.wait("\(name)") { try bench.snapshot.finished.first?.name == name }
      #expect(bench.log.contains("\(bench.spool.output)/first is not what was written (model.safetensors"))
    }
    #expect(try bench.snapshot.counters.linearsQuantized == 28)
    for name in ["second", "first-2"] {
      #expect(try Quantease(["verify", "\(bench.spool.output)/\(name)"]).status == 0)
      #expect(try bench.weights(name) == bench.expectedWeights())
      try FileSystem.removeTree(bench.directory.file("expected"))
    }
  }

  @Test func `a second daemon ends and names the first`() throws {
    let bench = try DaemonBench()
    try bench.start()
    let first = bench.log
    let second = try Quantease(["--config", bench.configuration], program: DaemonBench.binary)
    #expect(second.status == 69)
    #expect(second.errors.contains("\(bench.spool.lock) is locked by process "), "\(second.errors)")
    #expect(second.errors.contains("quanteased"))
    #expect(bench.isRunning && bench.log == first)
  }

  @Test func `a configuration is checked`() throws {
    let bench = try DaemonBench()
    func check() throws -> Quantease {
      try Quantease(["--check-config", "--config", bench.configuration], program: DaemonBench.binary)
    }
    let good = try check()
    #expect(good.status == 0)
    #expect(good.output.contains("spool: \(bench.spool.root)"), "\(good.output)")
    try bench.configure("  bitz: 4")
    let bad = try check()
    #expect(bad.status == 78)
    #expect(bad.errors.contains("quanteased.yaml:10:") && bad.errors.contains("bitz"), "\(bad.errors)")
    #expect(try !FileSystem.exists(bench.spool.root))
  }

  @Test func `SIGHUP takes a new configuration, and keeps the old one where that is broken`() throws {
    let bench = try DaemonBench()
    try bench.start()
    try bench.configure("  bits: many")
    bench.signal(SIGHUP)
    try bench.wait("the fault") { bench.log.contains("the configuration stays as it was: ") }
    #expect(bench.log.contains("quanteased.yaml:10:"))
    try bench.configure("  bits: 8", "  samples: 4")
    bench.signal(SIGHUP)
    try bench.wait("the change") { bench.log.contains("configuration read anew") }
    try bench.drop("tiny")
    try bench.waitForOutput("tiny")
    let report = try JSONValue(contentsOf: "\(bench.spool.output)/tiny/quantease_report.json")
    #expect(report["settings"]?["bits"]?.int == 8)
  }

  // MARK: What must survive

  @Test func `a daemon that is killed again and again comes to the same bytes`() throws {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("tiny")
    for linears in [1, 3, 2] {
      try bench.wait("linear \(linears)") { bench.linearsLogged >= linears }
      try bench.stop(SIGKILL)
      try #require(try FileSystem.names(in: bench.spool.output) == [".partial"], "it was faster")
      try bench.start()
      try bench.wait("the rest") { bench.log.contains("goes on job=") }
    }
    try bench.waitForOutput("tiny")
    #expect(bench.linearsLogged < 14)
    #expect(try bench.weights("tiny") == bench.expectedWeights())
    #expect(try bench.snapshot.counters.published == 1)
  }

  /// Of sequences that no layer is solved for, which the worker writes down beside the others.
  @Test func `tuned norms are the command's, by a daemon that was killed, too`() throws {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("tiny", recipe: "bits: 2\nsamples: 500\ntune-norms: true\n")
    try bench.wait("three linears") { bench.linearsLogged >= 3 }
    try bench.stop(SIGKILL)
    try bench.start()
    try bench.waitForOutput("tiny")
    let expected = try bench.expectedWeights("--bits", "2", "--samples", "500", "--tune-norms")
    #expect(try bench.weights("tiny") == expected)
    let report = try JSONValue(contentsOf: "\(bench.spool.output)/tiny/quantease_report.json")
    #expect(report["tuning"]?["tensors"]?.int ?? 0 > 0)
  }

  @Test func `defaults that change while a daemon is down are for the jobs that come`() throws {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("tiny")
    try bench.wait("three linears") { bench.linearsLogged >= 3 }
    try bench.stop(SIGKILL)
    try bench.configure("  bits: 3", "  samples: 600")
    try bench.start()
    try bench.waitForOutput("tiny")
    #expect(try bench.weights("tiny") == bench.expectedWeights())
    try bench.drop("next", recipe: "samples: 8")
    try bench.waitForOutput("next")
    let report = try JSONValue(contentsOf: "\(bench.spool.output)/next/quantease_report.json")
    #expect(report["settings"]?["bits"]?.int == 3)
  }

  @Test func `a job that an earlier version began is begun anew`() throws {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("tiny")
    try bench.wait("three linears") { bench.linearsLogged >= 3 }
    try bench.stop(SIGKILL)
    let id = try #require(try FileSystem.names(in: bench.spool.partial).first { $0.hasSuffix("-tiny") })
    let path = "\(bench.spool.partial)/\(id)/order.json"
    let order = try String(contentsOfFile: path, encoding: .utf8)
    try #require(order.contains("\"passes\""))
    try order.replacing("\"passes\"", with: "\"ofAnotherVersion\"")
      .write(toFile: path, atomically: true, encoding: .utf8)
    try bench.start()
    try bench.waitForOutput("tiny")
    #expect(bench.linearsLogged == 14)
    #expect(try bench.weights("tiny") == bench.expectedWeights())
  }

  @Test func `SIGTERM ends it soon, and cancel and retry do without it`() throws {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("tiny")
    try bench.wait("a linear") { bench.linearsLogged >= 1 }
    let start = ContinuousClock.now
    #expect(try bench.stop() == 0)
    #expect(ContinuousClock.now - start < .seconds(10))
    let stopped = try bench.snapshot
    #expect(stopped.service == .stopped && stopped.queue.map(\.name) == ["tiny"])

    let cancelled = try bench.quantease("cancel", "tiny")
    #expect(cancelled.status == 0 && cancelled.output.contains("not running"), "\(cancelled)")
    #expect(try bench.reason(of: "tiny")?["outcome"]?.string == "cancelled")
    #expect(try bench.quantease("cancel", "tiny").status == 65)
    #expect(try bench.quantease("cancel", "nothing").status == 66)
    #expect(try bench.quantease("retry", "tiny").status == 0)
    try bench.start()
    try bench.waitForOutput("tiny")
    #expect(try bench.weights("tiny") == bench.expectedWeights())
  }

  @Test func `a paused job is tried at once when a person asks for it`() throws {
    let bench = try DaemonBench()
    // Nobody has this program: the job waits for the machine to mend.
    let text = "A text that nobody can cut into tokens.\n"
    try bench.directory.write(text, to: "prose.txt")
    try bench.drop("tiny", recipe: "calibration: \(bench.directory.file("prose.txt"))\n")
    try bench.start(environment: ["QUANTEASE_PYTHON": bench.directory.file("python")])
    try bench.wait("the pause") { try bench.snapshot.current?.pausedBecause != nil }
    let why = try bench.quantease("why", "tiny")
    #expect(why.output.contains("now      quantease retry "), "\(why.output)")
    #expect(why.output.contains(" --config '\(bench.configuration)'"), "\(why.output)")
    let attempts = bench.log.components(separatedBy: "begun job=").count
    #expect(try bench.quantease("retry", "tiny").status == 0)
    try bench.wait("another attempt", seconds: 5) {
      bench.log.components(separatedBy: "begun job=").count > attempts
    }
    #expect(try bench.stop() == 0)
  }

  @Test func `what is no job yet can be neither cancelled nor tried again, and it is said why`() throws {
    let bench = try DaemonBench()
    try bench.start()
    try bench.drop("half") { try FileSystem.removeTree($0 + "/model.safetensors") }
    for command in ["cancel", "retry"] {
      let run = try bench.quantease(command, "half")
      #expect(run.status == 66 && run.errors.contains("half is no job yet"), "\(run.errors)")
    }
    #expect(try bench.quantease("cancel", "nothing").errors.contains("neither a job nor in the drop folder"))
    #expect(try bench.stop() == 0)
  }

  @Test func `cancel and retry reach a running daemon`() throws {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("tiny")
    try bench.wait("a linear") { bench.linearsLogged >= 1 }
    let cancelled = try bench.quantease("cancel", "tiny")
    #expect(cancelled.status == 0 && cancelled.output.contains("cancel done"), "\(cancelled)")
    #expect(try bench.reason(of: "tiny")?["outcome"]?.string == "cancelled")
    #expect(try bench.snapshot.finished.map(\.outcome) == [.cancelled])
    #expect(try FileSystem.names(in: bench.spool.partial) == [])
    #expect(try FileSystem.names(in: bench.directory.file("cache")) == [])
    #expect(try bench.quantease("retry", "tiny").status == 0)
    try bench.wait("work") { try bench.snapshot.current?.linearsDone ?? 0 > 0 }
    let current = try #require(try bench.snapshot.current)
    #expect(current.linearsDone <= current.linearCount && current.linearCount == 14)
    try bench.stop()
  }

  @Test func `a file that is cut off while it is read fails its job by name, and the daemon goes on`() throws
  {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("cut")
    try bench.wait("a linear") { bench.linearsLogged >= 1 }
    let id = try #require(FileSystem.names(in: bench.spool.working).first)
    let path = "\(bench.spool.working)/\(id)/model.safetensors"
    unsafe #expect(truncate(path, 5_000) == 0)
    try bench.waitForFailure("cut")
    #expect(try bench.message(of: "cut").contains("\(id)/model.safetensors changed while it was read"))
    #expect(try bench.message(of: "cut").contains("had 142016 bytes and now has 5000"))
    try bench.drop("tiny", fixture: "opt-pre", recipe: "samples: 8")
    try bench.waitForOutput("tiny")
  }

  /// A write in place, as of `dd conv=notrunc`; the same with the times set back; another file under the name.
  @Test(arguments: ["was written to", "its mode or owner were changed", "is another file now"])
  func `a source that changes during its job fails it by name, though every length stays`(_ change: String)
    throws
  {
    let bench = try DaemonBench(samples: 600)
    try bench.start()
    try bench.drop("changed")
    try bench.wait("a linear") { bench.linearsLogged >= 1 }
    let id = try #require(FileSystem.names(in: bench.spool.working).first)
    let path = "\(bench.spool.working)/\(id)/model.safetensors"
    if change == "is another file now" {
      let bytes = try FileSystem.contents(of: path, limit: 1 << 20)
      try AtomicFile.write(bytes, to: path)
    } else {
      var times = stat()
      unsafe try #require(stat(path, &times) == 0)
      let file = try #require(FileHandle(forUpdatingAtPath: path))
      try file.seek(toOffset: 100_000)
      try file.write(contentsOf: Data(repeating: 0x3C, count: 64))
      try file.close()
      if change != "was written to" {
        unsafe try #require(utimensat(AT_FDCWD, path, [times.st_atim, times.st_mtim], 0) == 0)
      }
    }
    try bench.waitForFailure("changed")
    let message = try bench.message(of: "changed")
    #expect(
      message.contains("\(id)/model.safetensors changed while it was read: it ") && message.contains(change))
    #expect(try FileSystem.names(in: bench.spool.output) == [".partial"])
    try bench.stop()
  }
}
