import ArgumentParser
import Compute
import Export
import Foundation
import Pipeline
import SystemIO

struct PlanCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "plan",
    abstract: "Says what a run would need: memory, space and time.",
    discussion: """
      From config.json and the headers of the shards, and a trial of one layer with weights by chance, which takes some \
      seconds and is made by as many threads as the run would have. Nothing else should run meanwhile. For a GPU its memory \
      is planned, and no time.

      Example:
        quantease plan llama --bits 3 --samples 256
      """)

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"),
    completion: .file())
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
  @OptionGroup(title: "Conversion") var conversion: ConverterOptions

  @OptionGroup(title: "Many hosts") var hosts: HostsOptions

  @Flag(help: "Print JSON.")
  var json = false

  func validate() throws {
    try hosts.validate()
    try machine.validate()
    try options.validate()
    try settings.requirePossible(grid)
  }

  private var settings: QuantizationSettings { QuantizationSettings(grid, solver, options, model: model) }

  func run() throws {
    Console.useBestKernels()
    let model = URL(fileURLWithPath: model).standardizedFileURL.path
    let place =
      output.map { URL(fileURLWithPath: $0).standardizedFileURL.path } ?? FileSystem.parent(of: model)
    let needs = try Needs(
      RunPlan(
        model: model, settings: settings, symlinks: .follow, hasConverter: conversion.program != nil),
      backend: machine.backend(isExact: settings.precision == .exact) {
        Console.note("quantease: warning: \($0)")
      },
      budgetBytes: options.memoryBudgetBytes, states: machine.states, hosts: hosts.shares,
      places: Needs.Places(output: place, journal: nil, cache: machine.cacheDir ?? place))
    if json { return try Console.json(needs) }
    for line in needs.lines { try Console.line(line) }
  }
}

struct HostsOptions: ParsableArguments {
  @Option(
    name: .customLong("ranks"),
    help: ArgumentHelp(
      "Also say how long the run would take on so many hosts like this one: 1,2,4,8.", valueName: "counts"))
  var counts: String?

  @Option(
    help: ArgumentHelp("Gigabits a second between these hosts, in each direction.", valueName: "gigabits"))
  var network = 10.0

  @Option(
    help: ArgumentHelp("How many times as fast as this machine each of these hosts is.", valueName: "factor"))
  var speed = 1.0

  /// With what one of them alone would take before the others.
  var shares: [RankShare] {
    numbers.isEmpty
      ? [] : ([1] + numbers).map { RankShare(count: $0, gigabitsPerSecond: network, speed: speed) }
  }

  private var numbers: [Int] { (counts ?? "").split(separator: ",").compactMap { Int($0) } }

  func validate() throws {
    guard network > 0, speed > 0 else { throw ValidationError("--network and --speed must be above 0") }
    guard let counts else { return }
    guard numbers.count == counts.split(separator: ",", omittingEmptySubsequences: false).count,
      numbers.allSatisfy({ $0 > 0 })
    else { throw ValidationError("--ranks \(counts) is no list of numbers from 1, such as 1,2,4") }
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
  /// Of the GGUF file that a checkpoint becomes first; nil where none is made.
  let conversionSpace: Space?
  /// At the peak; nil if there is too little.
  let memoryBytes: Int?
  let memoryBytesPerPhase: [String: Int]?
  let memoryBudgetBytes: Int
  /// Of a GPU; nil where the processor would compute.
  let deviceMemoryBytes: Int?
  let deviceMemoryBytesPerPhase: [String: Int]?
  let deviceMemoryBudgetBytes: Int?
  /// Where states stand between two stages; nil if there is too little memory.
  let states: StatesPlace?
  /// Why the run cannot begin with the memory that there is.
  let memoryShortage: String?
  let seconds: Double?
  let secondsPerPhase: [String: Double]?
  let basis: String?
  /// On several hosts; empty where nobody asked.
  let ranks: [Hosts]
  /// The types of a GGUF file.
  let gguf: GGUFOutline?
  /// What the choice of bits takes before the run, of the memory that matrices are in; nil where none is made.
  let allocationBytes: Int?
  /// Whether the residual stream is rotated, or a trial decides.
  let rotation: String
  /// What that trial takes of the memory that matrices are in; nil where none is made.
  let trialBytes: Int?
  /// What tuning norms takes of the memory when all is quantized, at least and where there is room; nil where they are not.
  let tuningBytes: [Int]?

  struct Hosts: Encodable {
    let ranks: Int
    let seconds: Double
    let efficiency: Double
    /// By each of them.
    let receivedBytes: Int
    /// Of the one that has most: multiplications and additions, and memory at the peak.
    let operations: Double
    let memoryBytes: Int
    let networkSeconds: Double
  }

  private let title: String
  /// Whether there are experts, whose inputs and outputs are in the cache's directory wherever states are.
  private let hasMixtures: Bool

  private enum CodingKeys: String, CodingKey {
    case architecture, linears, inputBytes, outputSpace, journalSpace, cacheSpace, conversionSpace,
      memoryBytes,
      memoryBytesPerPhase
    case deviceMemoryBytes, deviceMemoryBytesPerPhase, deviceMemoryBudgetBytes, states
    case memoryBudgetBytes, memoryShortage, seconds, secondsPerPhase, basis, ranks, gguf,
      allocationBytes, rotation, trialBytes, tuningBytes
  }

  init(
    _ plan: RunPlan, backend: any ComputeBackend, budgetBytes: Int, states: StatesChoice,
    hosts: [RankShare] = [],
    places: Places
  )
    throws
  {
    let settings = plan.settings
    architecture = plan.model.modelType
    linears = plan.linearCount
    hasMixtures = plan.model.hasMixtures
    let goal =
      settings.averageBits.map { "to \($0) bits a weight on average" }
      ?? plan.outline.map { "as \($0.file)" } ?? "to \(settings.bits) bits"
    title = "\(plan.linearCount) linears \(goal), solver \(settings.solver.rawValue)"
    gguf = plan.outline
    rotation = plan.rotation.rawValue
    tuningBytes = plan.tuningBytes(backend: backend)
    inputBytes = plan.inputBytes
    func space(_ bytes: Int, in path: String) throws -> Space {
      Space(path: path, bytes: bytes, freeBytes: try FileSystem.freeBytes(FileSystem.nearestExisting(path)))
    }
    outputSpace = try space(plan.resultBytes, in: places.output)
    journalSpace = try places.journal.map { try space(plan.journalBytes, in: $0) }
    cacheSpace = try space(plan.cacheBytes, in: places.cache)
    // A daemon makes it where its journal is.
    conversionSpace = try plan.convertedBytes.map { try space($0, in: places.journal ?? places.output) }
    memoryBudgetBytes = budgetBytes
    var (memory, shortage): (MemoryPlan?, String?)
    do { memory = try plan.memoryPlan(backend: backend, budgetBytes: budgetBytes, states: states) } catch let
      error
      as PipelineError
    {
      shortage = "\(error)"
    }
    memoryBytes = memory?.peakBytes
    func byName(_ phases: [MemoryPlan.Phase: Int]) -> [String: Int] {
      Dictionary(uniqueKeysWithValues: phases.map { ($0.rawValue, $1) })
    }
    memoryBytesPerPhase = memory.map { byName($0.bytesPerPhase) }
    deviceMemoryBytes = memory?.devicePeakBytes
    deviceMemoryBytesPerPhase = memory?.deviceBytesPerPhase.map(byName)
    deviceMemoryBudgetBytes = backend.deviceMemory?.limitBytes
    self.states = memory?.states
    memoryShortage = shortage
    allocationBytes = memory.flatMap { plan.allocationBytes(backend: backend, memory: $0) }
    trialBytes = memory.flatMap { plan.trialBytes(backend: backend, memory: $0) }
    // Where the cache may not be tried, a temporary file tells nearly as well.
    let directory = try FileSystem.nearestExisting(places.cache)
    let place = FileSystem.isWritable(directory) ? directory : FileManager.default.temporaryDirectory.path
    // Operations of a GPU return before they are done: what the trial measures says nothing of it.
    let times =
      backend.deviceMemory != nil
      ? nil
      : try memory.map {
        try plan.timePlans(
          [RankShare(count: 1)] + hosts, backend: backend, memory: $0, cacheDirectory: place)
      }
    let time = times?.first
    let traffic = plan.traffic(backend: backend)
    // What one of them would take.
    let one = times.flatMap { $0.count > 1 ? $0[1].seconds : nil } ?? 0
    ranks = zip(hosts.dropFirst(), (times ?? []).dropFirst(2)).map { host, own in
      Hosts(
        ranks: host.count, seconds: own.seconds, efficiency: one / (Double(host.count) * own.seconds),
        receivedBytes: traffic.received(by: host.count),
        operations: plan.products(ranks: host.count, backend: backend).operations,
        memoryBytes: (memory?.peakBytes ?? 0) + plan.rankBytes(host.count),
        networkSeconds: own.secondsPerPhase[.network] ?? 0)
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
    if let conversionSpace {
      lines.append("converted about \(text(conversionSpace)), until the result is there")
    }
    if let gguf {
      lines.append("types    \(gguf.description)")
      if let warning = gguf.warning { lines.append("         \(warning)") }
    }
    if rotation == RotationPlan.trial.rawValue {
      let budget = deviceMemoryBudgetBytes ?? memoryBudgetBytes
      let verdict =
        switch trialBytes {
        case nil: "if a trial before the run says that it helps"
        case let bytes? where bytes > budget:
          "none: to try it takes \(Console.bytes(bytes)) of \(Console.bytes(budget))"
        case let bytes?:
          "if a trial before the run says that it helps, in \(Console.bytes(bytes)) of memory"
        }
      lines.append("rotation \(verdict)")
    }
    if let tuningBytes {
      let amounts = tuningBytes.map(Console.bytes).joined(separator: ", or ")
      lines.append("norms    tuned when all is quantized, in \(amounts) of memory where there is room")
    }
    if let journalSpace {
      lines.append("journal  about \(text(journalSpace)), until the result is published")
    }
    let cacheLine =
      switch states {
      case .device where !hasMixtures: "none: states stay in the GPU's memory"
      // A daemon's jobs have in it what a layer begins with, to go on from.
      case .memory where journalSpace == nil && !hasMixtures: "none: states stay in memory"
      default: "at most \(text(cacheSpace))"
      }
    lines.append("cache    \(cacheLine)")
    guard let memoryBytes, let memoryBytesPerPhase else {
      return lines + ["memory   too little now, the run would wait or stop: \(memoryShortage ?? "")"]
    }
    func memory(_ peak: Int, of budget: Int, _ phases: [String: Int]) -> String {
      let phases = phases.sorted { $0.key < $1.key }.map { "\($0.key) \(Console.bytes($0.value))" }
      return
        "\(Console.bytes(peak)) at the peak of \(Console.bytes(budget)) (\(phases.joined(separator: ", ")))"
    }
    lines.append("memory   \(memory(memoryBytes, of: memoryBudgetBytes, memoryBytesPerPhase))")
    if let deviceMemoryBytes, let deviceMemoryBudgetBytes, let deviceMemoryBytesPerPhase {
      lines.append(
        "GPU      \(memory(deviceMemoryBytes, of: deviceMemoryBudgetBytes, deviceMemoryBytesPerPhase))")
    }
    if let allocationBytes {
      let budget = deviceMemoryBudgetBytes ?? memoryBudgetBytes
      lines.append(
        "bits     \(Console.bytes(allocationBytes)) of \(Console.bytes(budget)) to measure what each linear needs"
          + (allocationBytes > budget ? ": too few" : ", before all that"))
    }
    guard let seconds, let secondsPerPhase, let basis else { return lines }
    let parts = secondsPerPhase.sorted { $0.value > $1.value }.map { "\($0.key) \(Console.time($0.value))" }
    lines.append("time     about \(Console.time(seconds)) (\(parts.joined(separator: ", ")))")
    for host in ranks {
      let name = host.ranks == 1 ? "1 host" : "\(host.ranks) hosts"
      let efficiency = host.ranks == 1 ? "" : ", \(Int((100 * host.efficiency).rounded())) % efficient"
      let traffic =
        host.ranks == 1
        ? ""
        : "; each receives \(Console.bytes(host.receivedBytes)) in \(Console.time(host.networkSeconds))"
      lines.append(
        name.padding(toLength: 9, withPad: " ", startingAt: 0) + "about \(Console.time(host.seconds))"
          + efficiency
          + ", \(Console.operations(host.operations)) and \(Console.bytes(host.memoryBytes)) of memory"
          + traffic)
    }
    return lines + ["basis    \(basis)"]
  }
}
