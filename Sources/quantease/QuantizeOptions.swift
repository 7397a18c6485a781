import ArgumentParser
import Calibration
import Checkpoint
import Compute
import ComputeOpenBLAS
import Devices
import Export
import Foundation
import Pipeline
import SystemIO

/// An option's value, with whether a person gave it: one that the result does not read is then refused, and a default is not.
/// The help shows it as the value alone.
struct Told<Value: ExpressibleByArgument & Sendable>: ExpressibleByArgument, Sendable {
  let value: Value
  let isGiven: Bool

  /// The default.
  init(_ standard: Value) { (value, isGiven) = (standard, false) }

  init?(argument: String) {
    guard let value = Value(argument: argument) else { return nil }
    self.value = value
    isGiven = true
  }

  var defaultValueDescription: String { value.defaultValueDescription }
  static var allValueStrings: [String] { Value.allValueStrings }
  static var allValueDescriptions: [String: String] { Value.allValueDescriptions }
  static var defaultCompletionKind: CompletionKind { Value.defaultCompletionKind }
}

struct GridOptions: ParsableArguments {
  @Option(help: "Bits per weight: 2 to 6, or 8.")
  var bits = Told(4)

  @Option(help: "Columns that share a scale; -1 is one scale for a whole row.")
  var groupSize = Told(-1)

  @Option(
    help: """
      For GGUF files, in place of --bits, --group-size and --symmetric: the file, with the types that llama-quantize \
      gives its tensors.
      """)
  var ggufType = Told(GGUFMix.Name.q4_K_M)

  @Option(
    help: ArgumentHelp(
      """
      In place of --bits, or --gguf-type: bits a weight that all quantized linears take on average, scales with them. Each \
      gets as many as it needs, fused ones together, by what a pass over the layers finds out; the report tells. Formats \
      that hold several widths in one checkpoint: compressed-tensors, dense, gguf.
      """, valueName: "bits"))
  var averageBits: Double?

  @Option(
    help: ArgumentHelp(
      """
      With --average-bits: the widths to choose of, such as 4,8. Default: those that the format's runtimes are known to \
      load side by side: of compressed-tensors 2, 3, 4 and 8 with --symmetric, else 4 and 8, in vLLM alone.
      """, valueName: "widths"),
    transform: { text in
      let widths = text.split(separator: ",").map { Int($0) }
      guard !widths.isEmpty, !widths.contains(nil) else { throw ValidationError("give widths as in 4,8") }
      return widths.compactMap(\.self)
    })
  var bitChoices: [Int] = []

  @Flag(help: "GGUF files: all tensors of the one type that the file is named after.")
  var pure = false

  @Flag(
    exclusivity: .exclusive,
    help: """
      Without or with zero points. Symmetric loads in more runtimes, asymmetric is more exact. Default: asymmetric; \
      symmetric where runtimes load nothing else, as of mixtures of experts in compressed-tensors, and of the format gptq.
      """)
  var symmetry: Symmetry?

  enum Symmetry: String, EnumerableFlag {
    case symmetric, asymmetric
  }

  @Flag(
    help: """
      Symmetric grids: only positive scales, for a runtime that takes no others. With a sign a scale says on which \
      side of zero the grid has one level more, which is more exact.
      """)
  var unsignedScales = false

  func set(_ settings: inout QuantizationSettings) {
    settings.bits = bits.value
    settings.groupSize = groupSize.value
    settings.symmetric = symmetry.map { $0 == .symmetric }
    settings.unsignedScales = unsignedScales
    settings.ggufType = ggufType.value
    settings.ggufPure = pure
    settings.averageBits = averageBits
    settings.bitChoices = bitChoices
  }

  /// What was given of it, as it was written.
  var given: [(option: String, setting: QuantizationSettings.ConditionalSetting)] {
    var given: [(option: String, setting: QuantizationSettings.ConditionalSetting)] = []
    if bits.isGiven { given.append(("--bits \(bits.value)", .bits)) }
    if groupSize.isGiven { given.append(("--group-size \(groupSize.value)", .groupSize)) }
    if let symmetry { given.append(("--\(symmetry.rawValue)", .symmetry)) }
    if ggufType.isGiven { given.append(("--gguf-type \(ggufType.value.rawValue)", .ggufType)) }
    if pure { given.append(("--pure", .ggufPure)) }
    return given
  }
}

struct SolverOptions: ParsableArguments {
  @Option(name: .customLong("solver"), help: "How weights are moved onto the grid.")
  var name = QuantizationSettings.SolverName.quantease

  @Option(
    help: "quantease only: standard, with all that lowers the error, or paper, the published algorithm.")
  var preset = QuantizationSettings.Preset.standard

  @Option(
    help: """
      layer: every linear comes close to its own output; original: those that add to the residual stream bring \
      it close to the original model's, and so make up for the layers before them, which takes a little more time \
      and memory; auto: original, but layer for other solvers and the paper's preset.
      """)
  var target = QuantizationSettings.TargetChoice.auto

  @Option(
    help: ArgumentHelp(
      """
      Target original: the share of the sequences that also run through the original model. More is more exact and \
      takes longer. Default: all of them below 4 bits, where they take the run about 1.6 times as long and are worth it; \
      at 4 a quarter; else an eighth.
      """, valueName: "share"))
  var targetShare: Double?

  @Flag(
    inversion: .prefixedNo,
    help: """
      Target original: correct a head that is not that of the embeddings for what the layers have lost. It stays in its \
      type; --no-correct-head leaves its bytes as they are.
      """)
  var correctHead = true

  @Flag(
    help: """
      When all is quantized, tune the weights of norms by the gradient of the whole model's divergence from the original: \
      of a small model 1 to 7 % less of it, and 10 % at 2 bits where the calibration text is longer than what layers are \
      solved for. It takes about as long as running the model on 130,000 tokens. On the processor alone, and not for GGUF.
      """)
  var tuneNorms = false

  @Option(
    help: ArgumentHelp(
      """
      How often a sequence's first token counts where keys and values are made: all others attend to it, so that an error \
      there is everybody's. Default: 16 from 3 bits on, of which a small model's divergence fell by 2 to 8 %, and by a third \
      with --target layer; 1, as all others, at 2 bits, with other solvers and the paper's preset.
      """, valueName: "weight"))
  var firstTokenWeight: Double?

  @Option(
    help: ArgumentHelp(
      """
      The ridge that speaks for inputs that the calibration set does not show, as a share of the Gram matrix's mean \
      diagonal. Default: 0.1; 0.01 for gptq, and at 2 bits without outliers.
      """, valueName: "share"))
  var damping: Double?

  @Option(help: "quantease only: passes over all columns, at most.")
  var passes = 25

  @Option(
    help: """
      quantease, standard preset: where the descent begins, at the nearest-plane rounding or at the unquantized \
      weights.
      """)
  var start = QuantizationSettings.Start.nearestPlane

  @Flag(inversion: .prefixedNo, help: "Standard preset: search each row's grid for the least output error.")
  var gridSearch = true

  @Flag(inversion: .prefixedNo, help: "Standard preset: refit scales to the codes by least squares.")
  var scaleRefit = true

  @Flag(inversion: .prefixedNo, help: "Standard preset: move columns in pairs where single moves are stuck.")
  var pairMoves = true

  @Option(
    help: ArgumentHelp(
      "quantease only: share of the weights that is kept in 16-bit floats, for example 0.01.",
      valueName: "share"))
  var outliers = 0.0

  @Flag(help: "Keep whole columns as outliers, not single weights.")
  var structuredOutliers = false

  @Option(
    help: """
      Mixtures of experts: own, every expert's gate and up are solved for the tokens that reach it and a prior of all; \
      shared, for all tokens, which takes less time and costs experts with many tokens some of their accuracy.
      """)
  var expertGram = QuantizationSettings.ExpertGram.own

  @Option(
    help: ArgumentHelp(
      "Mixtures of experts: tokens of the prior, as a multiple of the width. Default: as many as an expert's tokens "
        + "ask for, the more the more they are like all others.",
      valueName: "multiple"))
  var expertPrior: Double?

  func set(_ settings: inout QuantizationSettings) {
    settings.expertGram = expertGram
    settings.expertPrior = expertPrior
    settings.correctHead = correctHead
    settings.tuneNorms = tuneNorms
    settings.firstTokenWeight = firstTokenWeight
    settings.solver = name
    settings.preset = preset
    settings.target = target
    settings.targetShare = targetShare
    settings.damping = damping
    settings.passes = passes
    settings.start = start
    settings.gridSearch = gridSearch
    settings.scaleRefit = scaleRefit
    settings.pairMoves = pairMoves
    settings.outliers = outliers
    settings.structuredOutliers = structuredOutliers
  }
}

/// What a run works on, and with how much memory.
struct RunOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "\(OutputFormatName.allCases.map(\.rawValue).joined(separator: ", ")). "
        + "Several may be given: each then gets a directory of its own under --output. Default: compressed-tensors, "
        + "or gguf for a GGUF file.",
      valueName: "format"))
  var format: [OutputFormatName] = []

  @Option(
    help: """
      Sequences to draw from the calibration files, all together. Of a text that has fewer, down to a quarter, they are cut \
      at several places.
      """)
  var samples = 128

  @Option(help: "Tokens of a sequence.")
  var sequenceLength = 2_048

  @Option(
    name: .customLong("rule"),
    help: ArgumentHelp(
      """
      PATTERN=SETTING,SETTING…: other settings for the linears whose name the regular expression finds; may be \
      repeated, later rules win. Settings: skip, bits:3, group-size:128, symmetric, asymmetric, solver:gptq, \
      outliers:0.01, passes:5; of a GGUF file type:Q6_K, for embeddings and head, too.
      """, valueName: "rule"))
  var rules: [String] = []

  @Option(
    help: ArgumentHelp(
      "Memory to stay within, in GB. Default: what is available now.", valueName: "gigabytes"))
  var memory: Double?

  var memoryBudgetBytes: Int {
    get throws {
      if let memory { return Int(memory * 1e9) }
      return try ProcessMemory.availableBytes()
    }
  }

  @Option(
    help: """
      auto: checkpoints in bfloat16 are multiplied in bfloat16, and summed up in fp32, where the processor is fast at \
      it (AMX, or AVX-512 BF16 of AMD); on a GPU products of fp32 round to TF32, too. exact: fp32 throughout.
      """)
  var precision = QuantizationSettings.Precision.auto

  @Option(
    help: """
      residual: rotate the residual stream before quantizing, which spreads outliers over all features. The model stays \
      what it was, an ordinary one of its kind, with a head of its own where it had that of the embeddings. It helps \
      most where a scale is a whole row's. Families with layer norms, norms behind their blocks, or experts in stacks \
      cannot be rotated. auto: rotate if a trial on a few layers says that it helps, and if a head of its own is no large part of \
      the result; the report tells. Other solvers and the paper's preset do without it.
      """)
  var rotate = QuantizationSettings.Rotation.auto

  @Flag(
    help: """
      Take a checkpoint that is quantized already, GPTQ, AWQ, compressed-tensors or GGUF, as the weights that it stands \
      for: for models that were published in no other form. Their errors stay, and more are added.
      """)
  var allowRequantize = false

  func validate() throws {
    guard memory.map({ $0 > 0 }) ?? true else { throw ValidationError("--memory must be above 0") }
  }

  func set(_ settings: inout QuantizationSettings) {
    settings.rules = rules
    if !format.isEmpty { settings.formats = format }
    settings.samples = samples
    settings.sequenceLength = sequenceLength
    settings.precision = precision
    settings.allowRequantize = allowRequantize
    settings.rotate = rotate
  }
}

extension QuantizationSettings {
  init(_ grid: GridOptions, _ solver: SolverOptions, _ options: RunOptions, model: String) {
    self.init()
    grid.set(&self)
    solver.set(&self)
    options.set(&self)
    if options.format.isEmpty, CheckpointReader.isGGUF(model) { formats = [.gguf] }
  }

  /// Refuses values that exclude each other, and those that would be ignored, as mistakes on the command line.
  func requirePossible(_ grid: GridOptions) throws {
    do { try validate() } catch {
      throw ValidationError("--\(error.key) \(error.value) is not possible: \(error.mend)")
    }
    let given =
      grid.given + [
        ("--preset paper", .preset), ("--target-share", .targetShare), ("--unsigned-scales", .unsignedScales),
      ]
    for (option, setting) in given {
      if let reason = reasonToIgnore(setting) {
        throw ValidationError("\(option) would be ignored: \(reason)")
      }
    }
  }
}

/// What makes a GGUF file of a checkpoint.
struct ConverterOptions: ParsableArguments {
  @Option(
    name: .customLong("gguf-converter"),
    help: ArgumentHelp(
      """
      With --format gguf, of a model that is no GGUF file: llama.cpp's convert_hf_to_gguf.py, which is run first, by the \
      Python that \(Tokenizer.variable) names. The file in between takes two bytes a weight beside the output.
      """, valueName: "file"), completion: .file())
  var program: String?

  var converter: GGUFConverter? {
    program.map { GGUFConverter(program: $0, python: Tokenizer().interpreter) }
  }
}

struct MachineOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      """
      Where the activation cache is made; a fast local disk. Default: beside the output, or the temporary directory \
      where there is none.
      """, valueName: "dir"), completion: .directory)
  var cacheDir: String?

  @Option(
    help: """
      Where the hidden states of all tokens stand between two stages of a layer. auto: in memory if there is room for \
      them, else in the activation cache; cache: always there, which takes longer and needs less memory. The result is the \
      same.
      """)
  var states = StatesChoice.auto

  @Option(
    name: .customLong("threads"),
    help: ArgumentHelp(
      "Threads to compute with. The result does not depend on it. Default: all processors.",
      valueName: "count"))
  var threadCount: Int?

  @Option(
    help: ArgumentHelp(
      """
      What computes: \(DeviceChoice.notation). auto takes the GPU with the most free memory if there is one; \
      `quantease devices` lists them.
      """, valueName: "device"),
    transform: { text in
      guard let choice = DeviceChoice(text) else {
        throw ValidationError("'\(text)' is no device: give \(DeviceChoice.notation)")
      }
      return choice
    })
  var device = DeviceChoice.auto

  @Option(
    help: ArgumentHelp(
      "Memory of the GPU to stay within, in GB. Default: nearly all that is free.", valueName: "gigabytes"))
  var deviceMemory: Double?

  var threads: Int { threadCount ?? ProcessInfo.processInfo.activeProcessorCount }

  func validate() throws {
    guard threads > 0 else { throw ValidationError("--threads must be at least 1") }
    guard deviceMemory.map({ $0 > 0 }) ?? true else {
      throw ValidationError("--device-memory must be above 0")
    }
  }

  /// - Parameter begun: see ``DeviceChoice/backend(threads:isExact:begun:deviceBytes:warn:)``
  func processor(isExact: Bool, begun: ProcessorKernels? = nil) throws -> any ComputeBackend {
    try DeviceChoice.processor.backend(threads: threads, isExact: isExact, begun: begun) { _ in }
  }

  func backend(
    isExact: Bool, begun: ProcessorKernels? = nil, warn: (String) -> Void
  ) throws -> any ComputeBackend {
    try device.backend(
      threads: threads, isExact: isExact, begun: begun, deviceBytes: deviceMemory.map { Int($0 * 1e9) },
      warn: warn)
  }
}

extension QuantizationSettings.TargetChoice: ExpressibleByArgument {}

extension QuantizationSettings.Precision: ExpressibleByArgument {}
extension QuantizationSettings.Rotation: ExpressibleByArgument {}

extension StatesChoice: ExpressibleByArgument {}

extension CalibrationSources.File: ExpressibleByArgument {
  public init?(argument: String) { self.init(argument) }
}

extension QuantizationSettings.SolverName: ExpressibleByArgument {}

extension QuantizationSettings.Preset: ExpressibleByArgument {}

extension QuantizationSettings.Start: ExpressibleByArgument {}

extension QuantizationSettings.ExpertGram: ExpressibleByArgument {}

extension OutputFormatName: ExpressibleByArgument {}

extension GGUFMix.Name: ExpressibleByArgument {
  /// In any case, and Q3_K, Q4_K and Q5_K for their middle ones, as llama-quantize takes them.
  public init?(argument: String) {
    let name = argument.uppercased()
    guard let known = GGUFMix.Name(rawValue: name) ?? GGUFMix.Name(rawValue: "\(name)_M") else { return nil }
    self = known
  }
}
