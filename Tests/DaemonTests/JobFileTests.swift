import Daemon
import Glibc
import SystemIO
import TestSupport
import Testing

/// What lies beside a checkpoint, written by whoever dropped it.
struct JobFileTests {
  private let directory: TemporaryDirectory

  init() throws { directory = try TemporaryDirectory() }

  private func read(_ text: String, defaults: JobSettings = JobSettings()) throws -> JobSettings {
    try FileSystem.removeTree(directory.file(JobFile.name))
    try directory.write(text, to: JobFile.name)
    return try JobFile.read(directory: directory.path, defaults: defaults)
  }

  private func failure(_ text: String, defaults: JobSettings = JobSettings()) throws -> String {
    let error = try #require(throws: ConfigurationError.self) { try read(text, defaults: defaults) }
    #expect(error.exitCode == 65)
    return error.description.replacing(directory.path + "/", with: "")
  }

  @Test func `without a file a job has the defaults`() throws {
    let defaults = JobSettings(calibration: "/c.txt")
    #expect(try JobFile.read(directory: directory.path, defaults: defaults) == defaults)
  }

  @Test func `a job's settings stand over the defaults`() throws {
    var defaults = JobSettings(calibration: "/c.txt")
    defaults.settings.bits = 3
    defaults.settings.rules = ["a=skip"]
    let job = try read(
      "calibration: texts/own.txt\nrules: []\ngroup-size: 128\nformat: [gptq]\n", defaults: defaults)
    #expect(job.calibration == "texts/own.txt")
    #expect(job.calibration(in: "/job") == "/job/texts/own.txt")
    #expect(defaults.calibration(in: "/job") == "/c.txt")
    #expect(job.settings.bits == 3)
    #expect(job.settings.rules == [])
    #expect(job.settings.groupSize == 128)
    #expect(job.settings.formats == [.gptq])
  }

  @Test(arguments: [
    (
      "bits: 3\n", true,
      "quantease.yaml: bits: would be ignored; a GGUF file's grids are its types: say gguf-type"
    ),
    ("symmetric: true\n", true, "quantease.yaml: symmetric: would be ignored"),
    ("gguf-type: Q5_K_M\n", true, nil),
    (
      "gguf-type: Q5_K_M\n", false,
      "quantease.yaml: gguf-type: would be ignored; it goes with the format gguf"
    ),
    ("bits: 3\n", false, nil),
    (
      "average-bits: 3.5\nbits: 3\n", false,
      "quantease.yaml: bits: would be ignored; average-bits stands in its place"
    ),
  ])
  func `what the result would not be made by is refused before the night`(
    text: String, isGGUF: Bool, problem: String?
  ) throws {
    if isGGUF {
      try directory.write(
        FileSystem.contents(of: TestFiles.gguf("llama.gguf"), limit: 1 << 24), to: "llama.gguf")
    }
    try directory.write(text, to: JobFile.name)
    let error = #expect(throws: (any Error).self) {
      try Submission(source: directory.path, recipe: nil, configuration: DaemonConfiguration())
    }
    // Everything else is right, or wrong, by other rules.
    let refusal = (error as? ConfigurationError)?.description.replacing(directory.path + "/", with: "")
    if let problem {
      #expect(refusal?.hasPrefix(problem) == true)
    } else {
      #expect(refusal == nil)
    }
  }

  @Test(arguments: ["../x", "a/../../x", "..", "a/.."])
  func `a calibration file outside of the job's directory is refused`(path: String) throws {
    #expect(
      try failure("calibration: \(path)")
        == "quantease.yaml:1:1: calibration: \"\(path)\" is not possible; "
        + "expected an absolute path, or one inside the job's directory, without '..'; or a list of such, each with ':WEIGHT' "
        + "behind it or not")
  }

  @Test func `several calibration files may have weights`() throws {
    let job = try read("calibration: [prose.txt, '/data/chat.jsonl:3', 'a:1.5']\n")
    #expect(
      job.calibration(in: "/job").files == [
        .init(path: "/job/prose.txt"), .init(path: "/data/chat.jsonl", weight: 3),
        .init(path: "/job/a", weight: 1.5),
      ])
    #expect("\(job.calibration)" == "prose.txt, /data/chat.jsonl:3, a:1.5")
    for wrong in ["['a:0']", "['a:-1']", "[':2']", "['a:inf']", "['../a:2']"] {
      #expect(try failure("calibration: \(wrong)").contains("is not possible"), "\(wrong)")
    }
  }

  @Test func `two dots inside of a name are no way out`() throws {
    #expect(try read("calibration: a..b.txt").calibration == "a..b.txt")
  }

  @Test func `the daemon's keys and sections are refused`() throws {
    #expect(
      try failure("spool: /")
        == "quantease.yaml:1:1: spool: not possible here; it is the daemon's own: leave it out")
    #expect(
      try failure("defaults:\n  bits: 3\n")
        == "quantease.yaml:1:1: defaults: not possible here; its keys stand at the top level of this file")
  }

  @Test func `settings that exclude each other are told with the one that is not in the file`() throws {
    var defaults = JobSettings()
    defaults.settings.outliers = 0.01
    #expect(
      try failure("solver: rtn", defaults: defaults)
        == "quantease.yaml: outliers: \"0.01\" is not possible; they go with the solver quantease alone; "
        + "the value is the daemon's default, set it here")
  }

  @Test(arguments: [
    "rules: &a [x=skip]\nformat: *a\n",
    "bits: &b 4\n",
    "? &k bits\n: 4\n",
    "&m bits: 4\n",
  ])
  func `anchors are refused`(text: String) throws {
    #expect(try failure(text).contains(": an anchor; write the value out"))
  }

  @Test(.timeLimit(.minutes(1)), arguments: ["rules: *z", "? *z\n: 1", "? [*z, *z]\n: 1"])
  func `a tower of aliases costs nothing`(last: String) throws {
    var text = "l0: &l0 [x, x]\n"
    for level in 1...40 { text += "l\(level): &l\(level) [*l\(level - 1), *l\(level - 1)]\n" }
    text += last.replacing("*z", with: "*l40") + "\n"
    #expect(try failure(text).contains("many words that begin with *"))
  }

  @Test func `stars and ampersands in rules are no aliases`() throws {
    let rules = (0..<20).map { "  - '.*q_proj$|[a-z]*k&v|(x|y)*z\($0)=bits:3'" }
    #expect(try read("rules:\n" + rules.joined(separator: "\n")).settings.rules.count == 20)
  }

  @Test(.timeLimit(.minutes(1)), arguments: ["[", "{a: ", "- ", "? "])
  func `nesting without end is an error and no overflow`(opening: String) throws {
    #expect(try failure(String(repeating: opening, count: 100_000)).contains("quantease.yaml"))
  }

  @Test func `a link, a pipe or a directory in the file's place is refused`() throws {
    let elsewhere = try TemporaryDirectory()
    try elsewhere.write("bits: 3", to: "x.yaml")
    let path = directory.file(JobFile.name)
    #expect(unsafe symlink(elsewhere.file("x.yaml"), path) == 0)
    let read = { try JobFile.read(directory: directory.path, defaults: JobSettings()) }
    let error = try #require(throws: ConfigurationError.self) { try read() }
    #expect(error.description.contains("symbolic links are not followed here"))
    #expect(error.exitCode == 65)
    try FileSystem.removeTree(path)
    // A pipe without a writer would block a plain open for ever.
    #expect(unsafe mkfifo(path, 0o600) == 0)
    #expect(throws: ConfigurationError.self) { try read() }
    try FileSystem.removeTree(path)
    try FileSystem.createDirectories(path)
    #expect(throws: ConfigurationError.self) { try read() }
  }

  @Test func `a file that is too long or no UTF-8 is refused`() throws {
    #expect(
      try failure("# " + String(repeating: "x", count: 1 << 20))
        == "quantease.yaml: longer than 1 MiB; settings alone belong here")
    try FileSystem.removeTree(directory.file(JobFile.name))
    try directory.write([0x62, 0x3A, 0x20, 0xFF], to: JobFile.name)
    let error = try #require(throws: ConfigurationError.self) {
      try JobFile.read(directory: directory.path, defaults: JobSettings())
    }
    #expect(error.problem == "not UTF-8")
  }

  @Test func `numbers that no run could use are refused before it`() throws {
    #expect(try failure("samples: 9000000000000000000").contains("expected a whole number from 1 to 1000000"))
    #expect(try failure("outliers: nan").contains("expected a share of the weights, 0 to 1"))
    #expect(try failure("seed: -1").contains("expected a whole number from 0"))
  }
}
