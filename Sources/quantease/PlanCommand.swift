import ArgumentParser
import ComputeOpenBLAS
import Foundation
import Pipeline
import SystemIO

struct PlanCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "plan",
    abstract: "Says what a run would need: memory, space and time.",
    discussion: """
      From config.json and the headers of the shards, and a trial of one layer with weights by chance, which takes some \
      seconds and is made by as many threads as the run would have. Nothing else should run meanwhile.

      Example:
        quantease plan llama --bits 3 --samples 256
      """)

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"),
    completion: .directory)
  var model: String

  @Option(
    name: .shortAndLong,
    help: ArgumentHelp("Where the result is to be. Default: beside the checkpoint.", valueName: "dir"),
    completion: .directory)
  var output: String?

  @OptionGroup(title: "Grid") var grid: GridOptions
  @OptionGroup(title: "Solver") var solver: SolverOptions
  @OptionGroup(title: "Run") var options: RunOptions
  @OptionGroup(title: "Machine") var machine: MachineOptions

  @Flag(help: "Print JSON.")
  var json = false

  func validate() throws {
    try machine.validate()
    try options.validate()
    try settings.requirePossible()
  }

  private var settings: QuantizationSettings { QuantizationSettings(grid, solver, options, model: model) }

  func run() throws {
    let model = URL(fileURLWithPath: model).standardizedFileURL.path
    let place =
      output.map { URL(fileURLWithPath: $0).standardizedFileURL.path } ?? FileSystem.parent(of: model)
    let needs = try Needs(
      RunPlan(model: model, settings: settings, symlinks: .follow), threads: machine.threads,
      budgetBytes: try options.memoryBudgetBytes,
      places: Needs.Places(output: place, journal: nil, cache: machine.cacheDir ?? place))
    if json { return try Console.json(needs) }
    for line in needs.lines { try Console.line(line) }
  }
}

/// What a run would need beside what there is.
struct Needs: Encodable {
  /// Where it would write.
  struct Places {
    let output: String
    /// Of a daemon; nil without one.
    let journal: String?
    let cache: String
  }

  struct Space: Encodable {
    let path: String
    let bytes: Int
    let freeBytes: Int
  }

  let architecture: String
  let linears: Int
  let inputBytes: Int
  let outputSpace: Space
  let journalSpace: Space?
  let cacheSpace: Space
  /// At the peak; nil if there is too little.
  let memoryBytes: Int?
  let memoryBytesPerPhase: [String: Int]?
  let memoryBudgetBytes: Int
  /// Why the run cannot begin with the memory that there is.
  let memoryShortage: String?
  let seconds: Double?
  let secondsPerPhase: [String: Double]?
  let basis: String?

  private let title: String

  private enum CodingKeys: String, CodingKey {
    case architecture, linears, inputBytes, outputSpace, journalSpace, cacheSpace, memoryBytes,
      memoryBytesPerPhase
    case memoryBudgetBytes, memoryShortage, seconds, secondsPerPhase, basis
  }

  init(_ plan: RunPlan, threads: Int, budgetBytes: Int, places: Places) throws {
    KernelSet.useBest()
    let settings = plan.settings
    let backend = OpenBLASBackend(threads: threads, bfloat16: settings.precision == .auto ? .best : nil)
    architecture = plan.model.modelType
    linears = plan.linearCount
    title = "\(plan.linearCount) linears to \(settings.bits) bits, solver \(settings.solver.rawValue)"
    inputBytes = plan.inputBytes
    func space(_ bytes: Int, in path: String) throws -> Space {
      Space(path: path, bytes: bytes, freeBytes: try FileSystem.freeBytes(FileSystem.nearestExisting(path)))
    }
    outputSpace = try space(plan.resultBytes, in: places.output)
    journalSpace = try places.journal.map { try space(plan.journalBytes, in: $0) }
    cacheSpace = try space(plan.cacheBytes, in: places.cache)
    memoryBudgetBytes = budgetBytes
    var (memory, shortage): (MemoryPlan?, String?)
    do { memory = try plan.memoryPlan(backend: backend, budgetBytes: budgetBytes) } catch let error
      as PipelineError
    {
      shortage = "\(error)"
    }
    memoryBytes = memory?.peakBytes
    memoryBytesPerPhase = memory.map { memory in
      Dictionary(uniqueKeysWithValues: memory.bytesPerPhase.map { ($0.rawValue, $1) })
    }
    memoryShortage = shortage
    // Where the cache may not be tried, a temporary file tells nearly as well.
    let directory = try FileSystem.nearestExisting(places.cache)
    let place = FileSystem.isWritable(directory) ? directory : FileManager.default.temporaryDirectory.path
    let time = try memory.map {
      try plan.timePlan(backend: backend, memory: $0, cacheDirectory: place)
    }
    seconds = time?.seconds
    secondsPerPhase = time.map { time in
      Dictionary(uniqueKeysWithValues: time.secondsPerPhase.map { ($0.rawValue, $1) })
    }
    basis = time?.basis
  }

  var lines: [String] {
    func text(_ space: Space) -> String {
      let verdict = space.bytes > space.freeBytes ? ": too few" : ""
      return
        "\(Console.bytes(space.bytes)) of \(Console.bytes(space.freeBytes)) free in \(space.path)\(verdict)"
    }
    var lines = [
      "\(architecture): \(title)", "input    \(Console.bytes(inputBytes))",
      "result   about \(text(outputSpace))",
    ]
    if let journalSpace {
      lines.append("journal  about \(text(journalSpace)), until the result is published")
    }
    lines.append("cache    at most \(text(cacheSpace))")
    guard let memoryBytes, let memoryBytesPerPhase else {
      return lines + ["memory   too little now, the run would wait or stop: \(memoryShortage ?? "")"]
    }
    let phases = memoryBytesPerPhase.sorted { $0.key < $1.key }.map { "\($0.key) \(Console.bytes($0.value))" }
    lines.append(
      "memory   \(Console.bytes(memoryBytes)) at the peak of \(Console.bytes(memoryBudgetBytes)) (\(phases.joined(separator: ", ")))"
    )
    guard let seconds, let secondsPerPhase, let basis else { return lines }
    let parts = secondsPerPhase.sorted { $0.value > $1.value }.map { "\($0.key) \(Console.time($0.value))" }
    lines.append("time     about \(Console.time(seconds)) (\(parts.joined(separator: ", ")))")
    return lines + ["basis    \(basis)"]
  }
}
