import ArgumentParser
import Calibration
import Checkpoint
import Collective
import Compute
import ComputeOpenBLAS
import Daemon
import Devices
import Export
import Foundation
import Pipeline
import Synchronization
import SystemIO

struct QuantizeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "quantize",
    abstract: "Quantizes a checkpoint and writes it with a report of what it cost.",
    discussion: """
      The calibration text should read like what the model will be used on. 1.2 MB of English have the 128 \
      sequences of 2,048 tokens that are drawn by default; of less, down to a quarter, they are cut at several \
      places. The output directory appears only when everything in it is complete.

      Examples:
        quantease quantize llama --output llama-w4 --calibration prose.txt
        quantease quantize llama --output llama-w4g128 --group-size 128 \\
          --symmetric --calibration prose.txt
        quantease quantize llama-bf16.gguf --output llama-Q4_K_M.gguf \\
          --gguf-type Q4_K_M --calibration ids.safetensors
        quantease quantize llama --output out --bits 3 --format gptq \\
          --format dense --calibration ids.safetensors

      What loads where: symmetric grids of 4 bits load in vLLM and transformers in every format, those of 8 in every \
      one that has them; other widths, and asymmetric grids, in fewer: the report says in which.
      """)

  @Argument(
    help: ArgumentHelp("The checkpoint's directory, or a GGUF file.", valueName: "model"), completion: .file()
  )
  var model: String

  @Option(
    name: .shortAndLong,
    help: ArgumentHelp(
      """
      The directory to write; it must not exist. Of a GGUF file, also the name of a file to write, NAME.gguf: its report \
      then stands beside it.
      """, valueName: "dir"), completion: .directory)
  var output: String

  @OptionGroup(title: "Grid") var grid: GridOptions
  @OptionGroup(title: "Solver") var solver: SolverOptions
  @OptionGroup(title: "Run") var options: RunOptions

  @Option(
    help: ArgumentHelp(
      """
      Text (.txt, .jsonl with a field "text", or with "messages", which become text by the model's chat template; either also \
      .zst) or token ids (.safetensors). Given several times, each gives its share of the sequences, by its weight: \
      FILE or FILE:WEIGHT.
      """, valueName: "file"), completion: .file())
  var calibration: [CalibrationSources.File]

  @Option(help: "Decides which sequences are drawn.")
  var seed: UInt64 = 0

  @OptionGroup(title: "Machine") var machine: MachineOptions
  @OptionGroup(title: "Many hosts") var hosts: RankOptions
  @OptionGroup(title: "Conversion") var conversion: ConverterOptions

  @Flag(
    help: "Stop at blocks of weights that are all zero, as after an incomplete download. Default: a warning.")
  var strict = false

  @Option(
    help: ArgumentHelp(
      """
      Also write the importance matrix of the calibration set, for types that llama-quantize alone has (--imatrix there).
      """, valueName: "file"), completion: .file())
  var imatrix: String?

  @Option(
    help: ArgumentHelp(
      """
      Keep what is done in this directory, so that the same command, started again, goes on after the last finished linear, \
      however it ended. A result that stands already is verified and left. The directory has to be on the file system of \
      --output, and can go when the result is there.
      """, valueName: "dir"), completion: .directory)
  var resume: String?

  @Flag(help: "Print the report as JSON when done.")
  var json = false

  func validate() throws {
    if GGUFFiles.isGGUF(output) {
      guard settings.isGGUF else {
        throw ValidationError(
          "--output \(output) is the name of a GGUF file, which is made of GGUF files alone")
      }
      guard GGUFFiles.parts(of: FileSystem.name(of: output)).count == 1,
        !GGUFFiles.stem(of: FileSystem.name(of: output)).isEmpty
      else { throw ValidationError("--output \(output) is no name of a file that is one: give NAME.gguf") }
      guard resume == nil else {
        throw ValidationError(
          "with --resume --output is a directory, in which the file stands beside its report: give "
            + GGUFFiles.stem(of: output))
      }
    }
    if imatrix != nil, !CheckpointReader.isGGUF(model) {
      throw ValidationError("--imatrix goes with a GGUF file, whose names llama-quantize knows")
    }
    if imatrix != nil, resume != nil {
      throw ValidationError("--imatrix does not go with --resume: its sums are those of one process")
    }
    if hosts.ranks > 1 {
      // What would be done by one process alone, or on a device, which has no use for others.
      if imatrix != nil {
        throw ValidationError("--imatrix does not go with --ranks: its sums are one process's")
      }
      if conversion.converter != nil, settings.isGGUF, !CheckpointReader.isGGUF(model) {
        throw ValidationError("--ranks takes a GGUF file, and converts none: convert it before")
      }
      if case .cuda = machine.device {
        throw ValidationError("--ranks computes on processors: leave --device out")
      }
    }
    try hosts.validate()
    try machine.validate()
    try options.validate()
    try settings.requirePossible(grid)
  }

  private var sources: CalibrationSources { CalibrationSources(calibration) }

  private var settings: QuantizationSettings {
    var settings = QuantizationSettings(grid, solver, options, model: model)
    settings.seed = seed
    settings.strict = strict
    return settings
  }

  func run() throws {
    // The library's kernels are chosen before there are other threads.
    let directory = resume.map(Self.absolute)
    let begun = ProcessorKernels.take(begun: try directory.flatMap(JobWorker.kernels(ofJobIn:)))
    try hosts.run { ranks in
      try ranks.agree(on: settings)
      guard ranks.isChief else { return try follow(ranks, directory, begun) }
      if let directory {
        let report = try runResumably(in: directory, begun: begun, ranks)
        try ranks.dismissIdle()
        return try print(report)
      }
      try runAtOnce(ranks)
    }
  }

  /// Works as one of the ranks that are not the first one, which has the calibration set, the journal and the output.
  /// - Parameter directory: where the job is kept, or its cache on this host
  private func follow(_ ranks: Ranks, _ directory: String?, _ begun: ProcessorKernels?) throws {
    let backend = try machine.processor(isExact: options.precision == .exact, begun: begun)
    let cache = directory.map {
      FileSystem.join(machine.cacheDir.map(Self.absolute) ?? $0, FileSystem.name(of: output))
    }
    try ranks.follow(by: backend, cache: cache) { calibration in
      ProcessMemory.returnLargeBlocks()
      return try request(calibration, model: model)
    }
  }

  private func request(_ calibration: CalibrationSet, model: String) throws -> QuantizationRequest {
    var request = try QuantizationRequest(
      settings, model: model, output: output, calibration: calibration, from: sources,
      memoryBudgetBytes: options.memoryBudgetBytes, states: machine.states)
    request.cacheDirectory = machine.cacheDir
    return request
  }

  private func runAtOnce(_ ranks: Ranks) throws {
    if try FileSystem.exists(output) { throw PipelineError.outputExists(output) }
    ProcessMemory.returnLargeBlocks()
    try QuantizationRun.open(
      model, symlinks: .follow, allowingRequantizing: settings.allowRequantize, rotation: settings.rotate)
    let progress = ProgressLine()
    if let warning = KernelSet.warning { progress.show(.warning(warning)) }
    let backend = try backend(ranks) { progress.show(.warning($0)) }
    progress.show(.step("reading \(sources)"))
    let rows = try TokenRows.all(of: sources, model: model)
    let unfinished = Unfinished()
    let interruption = try Interruption(unfinished.discard)
    defer { withExtendedLifetime(interruption) {} }
    let converted = try convert(progress, unfinished)
    // It stays, hidden, if it cannot be removed: the result is what counts.
    defer { try? converted?.discard() }
    let calibration = try CalibrationSet(
      drawing: options.samples, spare: settings.spareSamples, sequenceLength: options.sequenceLength,
      from: sources, rows: rows, seed: seed)
    if let warning = calibration.warning { progress.show(.warning(warning)) }
    _ = try ranks.share(calibration)
    var request = try request(
      calibration, model: converted.map { FileSystem.join($0.path, convertedName) } ?? model)
    request.importanceMatrix = imatrix
    let run: QuantizationRun
    do {
      run = try QuantizationRun(request, backend: backend, ranks: ranks, progress: progress.show(_:))
    } catch let error
      as PipelineError
      where error.isLackOfMemory && backend.deviceMemory != nil && machine.device == .auto
    {
      progress.show(.warning(DeviceChoice.withoutGPU(error)))
      run = try QuantizationRun(
        request, backend: machine.processor(isExact: options.precision == .exact), progress: progress.show(_:)
      )
    }
    unfinished.add(run)
    let report = try run.run(progress: progress.show(_:))
    progress.close()
    try print(report)
  }

  private func backend(
    _ ranks: Ranks, begun: ProcessorKernels? = nil, warn: (String) -> Void
  ) throws -> any ComputeBackend {
    let isExact = options.precision == .exact
    return ranks.isAlone
      ? try machine.backend(isExact: isExact, begun: begun, warn: warn)
      : try machine.processor(isExact: isExact, begun: begun)
  }

  private var convertedName: String {
    "\(FileSystem.name(of: URL(fileURLWithPath: model).standardizedFileURL.path)).gguf"
  }

  /// Makes the GGUF file of a checkpoint that is to become one.
  /// - Returns: the hidden directory that it is in, which goes with this process; nil if the model is quantized as it is
  private func convert(_ progress: ProgressLine, _ unfinished: Unfinished) throws -> StagingDirectory? {
    guard settings.isGGUF, !CheckpointReader.isGGUF(model), let converter = conversion.converter
    else { return nil }
    progress.show(.step("converting to GGUF by \(converter.program)"))
    let directory = try StagingDirectory(for: "\(output).converted")
    unfinished.add(directory)
    try converter.convert(model, to: FileSystem.join(directory.path, convertedName))
    return directory
  }

  /// Does the job as the daemon's worker does, with a journal.
  private func runResumably(
    in directory: String, begun: ProcessorKernels?, _ ranks: Ranks
  ) throws -> Report {
    let absolute = Self.absolute
    let job = try ResumableJob(
      JobOrder(
        id: FileSystem.name(of: absolute(output)), model: absolute(model), directory: directory,
        cacheDirectory: machine.cacheDir.map(absolute) ?? directory,
        calibration: sources.replacingPaths(absolute),
        settings: settings, threads: machine.threads, device: machine.device.description,
        states: machine.states, memoryBytes: options.memory.map { Int($0 * 1e9) },
        python: Tokenizer().interpreter, ggufConverter: conversion.program.map(absolute)),
      output: absolute(output))
    if let report = try job.finished() {
      Console.note("\(output): done before, and every byte is what was written")
      return report
    }
    ProcessMemory.returnLargeBlocks()
    let progress = ProgressLine()
    if let warning = KernelSet.warning { progress.show(.warning(warning)) }
    var backend = try backend(ranks, begun: begun) { progress.show(.warning($0)) }
    if machine.device == .auto, let shortage = job.shortage(on: backend) {
      progress.show(.warning(DeviceChoice.withoutGPU(shortage)))
      backend = try machine.processor(isExact: options.precision == .exact, begun: begun)
    }
    let interruption = try Interruption(saying: "interrupted; the same command goes on") { true }
    let report = try withExtendedLifetime(interruption) {
      try job.run(by: backend, ranks: ranks, send: progress.show(telling:))
    }
    progress.close()
    return report
  }

  private static func absolute(_ path: String) -> String {
    URL(fileURLWithPath: path).standardizedFileURL.path
  }

  private func print(_ report: Report) throws {
    if json {
      try Console.line(String(decoding: try report.json(), as: UTF8.self))
    } else {
      try summarize(report)
    }
  }

  private func summarize(_ report: Report) throws {
    let totals = report.totals
    try Console.line(
      """
      \(report.model.name): \(totals.linears) linears \
      \(report.settings.gguf.map { "as \($0.file)" } ?? "at \(report.settings.width)") \
      in \(Console.time(totals.seconds)), mean relative error \(Console.percent(totals.meanRelativeError))
      size     \(Console.bytes(totals.inputBytes)) → \(Console.bytes(totals.outputBytes))
      memory   \(Console.bytes(totals.peakMemoryBytes)) at the peak, mapped files aside
      result   \(output)
      report   \(Report.Place(of: output).page)
      """)
    for runtime in report.loadsIn { try Console.line("loads    \(runtime)") }
  }
}

/// What a run has on the disk that is to go where it is interrupted.
private final class Unfinished: Sendable {
  private let parts = Mutex<(converted: StagingDirectory?, run: QuantizationRun?)>((nil, nil))

  func add(_ converted: StagingDirectory) { parts.withLock { $0.converted = converted } }

  func add(_ run: QuantizationRun) { parts.withLock { $0.run = run } }

  /// - Returns: false if the output was published before
  func discard() -> Bool {
    let (converted, run) = parts.withLock { $0 }
    _ = converted?.abandon()
    return run?.discard() ?? true
  }
}
