import Devices
import Foundation
import Pipeline
import SystemIO

/// Hands one job to Slurm, in a process of its own: the checkpoint is looked at for what the job needs, and a controller
/// that does not answer is waited for.
public struct SlurmSubmission {
  private let orderPath: String
  private let arguments: [String]
  private let program: String
  private let mpi: String
  private let plansTime: Bool
  private let send: (WorkerEvent) -> Void

  /// - Parameters:
  ///   - order: the path of the job's order
  ///   - arguments: of sbatch, all but what the job needs
  ///   - program: what the worker's host is to run
  ///   - mpi: the plug-in of srun that starts a job's ranks
  ///   - plansTime: whether Slurm is to know how long it may take
  ///   - send: takes every event
  public init(
    order: String, arguments: [String], program: String, mpi: String, plansTime: Bool,
    send: @escaping (WorkerEvent) -> Void
  ) {
    orderPath = order
    self.arguments = arguments
    self.program = program
    self.mpi = mpi
    self.plansTime = plansTime
    self.send = send
  }

  /// Beside the plan: the tokenizer's process, and the pages of files that a control group counts.
  private static let spareBytes = 256 << 20

  /// - Throws: errors of the checkpoint and the plan; ``JobFailure`` where Slurm does not take it
  public func run() throws {
    var order = try JobOrder(path: orderPath)
    let plan = try RunPlan(
      model: order.model, settings: order.settings, symlinks: .refuse,
      hasConverter: order.ggufConverter != nil)
    if order.memoryBytes == nil { order.memoryBytes = try Self.memory(plan, order) }
    try order.write(to: orderPath)
    // Before the site's own options, which may put several ranks on a host.
    let ranks = order.ranks ?? 1
    var needs = [
      "--mem=\(Self.mebibytes((order.memoryBytes ?? 0) + Self.spareBytes + plan.rankBytes(ranks)))M"
    ]
    if plansTime { needs.append("--time=\(try Self.minutes(plan, order))") }
    let nodes = ["--nodes=\(ranks)"] + (ranks > 1 ? ["--ntasks=\(ranks)"] : [])
    func sbatch(_ needs: [String]) throws -> (status: Int32, text: String) {
      try self.sbatch(nodes + arguments + needs, script(ranks: ranks))
    }
    var answer = try sbatch(needs + ["--tmp=\(Self.mebibytes(plan.cacheBytes))M"])
    if answer.status != 0, answer.text.contains("Temporary disk") {
      // Clusters that do not say what their nodes have refuse whoever asks for some.
      send(
        .warning(
          "no node is known to Slurm to have \(plan.cacheBytes.memorySize) of temporary disk (TmpDisk in slurm.conf): given "
            + "without that, the cache takes what there is"))
      answer = try sbatch(needs)
    }
    guard answer.status == 0, let number = Self.number(in: answer.text) else {
      throw JobFailure(
        .blocked,
        "Slurm does not take the job: \(SlurmCommand.reason(answer.text) ?? "sbatch failed")",
        code: 75)
    }
    send(.submitted(number))
  }

  /// What a job asks for that is not told: what it can do with, as little as possible, so that it gets its turn soon. Nodes may
  /// have other kernels, and need the most where they multiply in fp32.
  private static func memory(_ plan: RunPlan, _ order: JobOrder) throws -> Int {
    if case .cuda = order.deviceChoice {
      throw JobFailure(
        .blocked,
        "what a job takes beside a GPU is not known here: set 'memory' in the daemon's configuration",
        code: 78)
    }
    let backend = try DeviceChoice.processor.backend(threads: 1, isExact: true) { _ in }
    let peak = try plan.memoryPlan(backend: backend, budgetBytes: .max / 8, states: .cache).peakBytes
    return peak + peak / 10
  }

  /// Time enough on a slower host, too.
  private static func minutes(_ plan: RunPlan, _ order: JobOrder) throws -> Int {
    let backend = try DeviceChoice.processor.backend(
      threads: min(order.threads, ProcessInfo.processInfo.activeProcessorCount),
      isExact: order.settings.precision == .exact
    ) { _ in }
    let memory = try plan.memoryPlan(backend: backend, budgetBytes: .max / 8, states: .cache)
    let seconds = try plan.timePlan(
      backend: backend, memory: memory, cacheDirectory: FileSystem.nearestExisting(order.cacheDirectory)
    ).seconds
    return max(shortestMinutes, Int(3 * seconds / 60) + 1)
  }

  private static let shortestMinutes = 10

  private static func mebibytes(_ bytes: Int) -> Int { bytes / (1 << 20) + 1 }

  /// The number in what sbatch says, behind whatever warnings.
  static func number(in text: String) -> String? {
    text.split(separator: "\n").reversed().lazy
      .compactMap { $0.split(separator: ";").first.map { $0.trimmingCharacters(in: .whitespaces) } }
      .first { Int($0) != nil }
  }

  /// Of this process's group, so that whoever ends that ends it, too: Slurm must not get what was taken back.
  private func sbatch(
    _ arguments: [String], _ script: String
  ) throws -> (status: Int32, text: String) {
    let file = FileSystem.join(FileSystem.parent(of: orderPath), "slurm.sh")
    try AtomicFile.rewrite(Array(script.utf8), to: file)
    let environment = ProcessInfo.processInfo.environment
    let process: ChildProcess
    do {
      process = try ChildProcess(
        SlurmCommand.path(of: "sbatch", environment), arguments: arguments + [file],
        environment: environment, readsErrors: true)
    } catch {
      throw JobFailure(.blocked, SlurmCommand.absence(of: "sbatch", error), code: 69)
    }
    var output: [UInt8] = []
    while true {
      let bytes = try process.read()
      if bytes.isEmpty { break }
      output += bytes
    }
    let status: Int32 = if case .exited(let status) = try process.wait() { status } else { 1 }
    return (status, String(decoding: output, as: UTF8.self))
  }

  /// What a node runs: as the user that submits, whose environment there may be anything or nothing.
  private func script(ranks: Int) -> String {
    // The job itself may have no environment; a rank that is killed ends the others.
    let launch =
      ranks > 1
      ? "SLURM_EXPORT_ENV=ALL; export SLURM_EXPORT_ENV\nexec srun --mpi=\(Self.quoted(mpi)) --kill-on-bad-exit=1 "
        + "--cpus-per-task=\"$SLURM_CPUS_PER_TASK\" "
      : "exec "
    return """
      #!/bin/sh
      PATH=/usr/local/bin:/usr/bin:/bin HOME=/
      export PATH HOME
      \(launch)\(Self.quoted(program)) worker \(Self.quoted(orderPath))

      """
  }

  private static func quoted(_ text: String) -> String {
    "'" + text.replacingOccurrences(of: "'", with: "'\\''") + "'"
  }
}
