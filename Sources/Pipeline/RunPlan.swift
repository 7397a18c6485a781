import Checkpoint
import Compute
import Decoder
import Export
import SystemIO
import Tensors
import Tuning

/// What is known of a rotation before a run.
public enum RotationPlan: String, Sendable {
  case off, residual
  /// A trial decides, which takes its time before the run.
  case trial

  /// - Parameter note: why no trial is made; nil if one is
  init(_ choice: QuantizationSettings.Rotation, note: String?) {
    self =
      switch choice {
      case .off: .off
      case .residual: .residual
      case .auto: note == nil ? .trial : .off
      }
  }
}

/// What a run will need, from config.json and the shards' headers alone.
public struct RunPlan: Sendable {
  public let model: ModelDescription
  public let settings: QuantizationSettings
  /// Of the checkpoint's tensors.
  public let inputBytes: Int
  let modelType: DType
  let treatments: [String: Treatment]
  let head: Recipe.Head?
  /// What is known of a rotation before the run.
  public let rotation: RotationPlan
  /// What a GGUF file will hold; nil for another format.
  public let outline: GGUFOutline?
  private let hasHeadToCorrect: Bool
  /// Of the tensors that are copied.
  private let otherBytes: Int
  /// Of all tensors.
  private let parameters: Int

  /// What the GGUF file takes that the checkpoint becomes first; nil for one that is quantized as it is.
  public let convertedBytes: Int?

  /// - Parameters:
  ///   - path: the checkpoint's directory
  ///   - symlinks: whether its files may be links
  ///   - hasConverter: whether there is a ``GGUFConverter`` for a checkpoint that is to become a GGUF file
  /// - Throws: errors of the checkpoint, the settings and the recipe
  public init(
    model path: String, settings: QuantizationSettings, symlinks: SymlinkPolicy, hasConverter: Bool = false
  ) throws {
    let checkpoint: CheckpointReader
    (checkpoint, model) = try QuantizationRun.open(
      path, symlinks: symlinks, allowingRequantizing: settings.allowRequantize, rotation: settings.rotate)
    self.settings = settings
    let recipe = try settings.recipe().choosingSymmetry(for: model, in: checkpoint, formats: settings.formats)
    let resolved = try recipe.resolve(for: model, in: checkpoint)
    // Which type a tensor gets is measured when the run begins.
    outline = settings.averageBits == nil ? recipe.outline(resolved, of: checkpoint) : nil
    (treatments, head) = (resolved.linears, resolved.head)
    let isConverted = hasConverter && settings.isGGUF && checkpoint.gguf == nil
    rotation = RotationPlan(
      settings.resolvedRotation,
      note: isConverted
        ? RotatedWeights.obstacleOfGGUF
        : RotationTrial.obstacle(of: model, resolved.linears, in: checkpoint, samples: settings.samples))
    hasHeadToCorrect = checkpoint.hasHeadToCorrect(
      model, isQuantized: head != nil, isGGUF: settings.isGGUF)
    convertedBytes = isConverted ? Self.convertedBytes(of: checkpoint) : nil
    // Of a file that is yet to be made, its types will be known when it is.
    if !isConverted, let averageBits = settings.averageBits {
      _ = try recipe.allocationProblem(
        averageBits: averageBits, resolved, of: model, in: checkpoint, formats: settings.formats,
        widths: settings.widths)
    } else if !isConverted {
      try CheckpointExport.check(
        model.exported(by: resolved.linears) + resolved.outside, settings.formats, of: checkpoint,
        traits: model.traits(of: resolved.linears))
    }
    modelType = checkpoint.weightType(of: model)
    inputBytes = checkpoint.byteCount
    parameters = Self.parameters(of: checkpoint)
    otherBytes = checkpoint.tensors.values.reduce(0) { sum, tensor in
      let module = tensor.name.hasSuffix(".weight") ? String(tensor.name.dropLast(7)) : ""
      let isQuantized = resolved.linears[module] != nil
      return sum + (isQuantized ? 0 : tensor.byteCount)
    }
  }

  /// About what a GGUF file of a checkpoint takes: two bytes a weight.
  static func convertedBytes(of checkpoint: CheckpointReader) -> Int {
    2 * parameters(of: checkpoint)
  }

  private static func parameters(of checkpoint: CheckpointReader) -> Int {
    checkpoint.tensors.values.reduce(0) { $0 + $1.shape.reduce(1, *) }
  }

  /// Whether norms are tuned when all is quantized.
  func tunesNorms(on backend: any ComputeBackend) -> Bool {
    settings.tuneNorms && NormTuning.obstacle(of: model, on: backend) == nil
  }

  /// What that takes of the memory, at least, and where there is room; nil where norms are not tuned.
  public func tuningBytes(backend: any ComputeBackend) -> [Int]? {
    guard tunesNorms(on: backend) else { return nil }
    return [false, true].map {
      NormTuning.bytes(
        of: model, samples: tuningSamples, sequenceLength: settings.sequenceLength, keepingLayers: $0)
    }
  }

  /// The sequences that norms can be tuned on, with the spare ones that a text of any length has.
  var tuningSamples: Int { settings.samples + settings.spareSamples }

  /// The linears that are to be quantized.
  public var linearCount: Int { treatments.count }

  /// About what all formats of the result take.
  public var resultBytes: Int {
    if let outline { return outline.bytes }
    if settings.isGGUF, let averageBits = settings.averageBits {
      return Int(Double(parameters) * averageBits / 8)
    }
    return settings.formats.reduce(0) { sum, format in
      sum + otherBytes
        + weights.reduce(0) {
          $0 + (format == .dense ? $1.count * modelType.byteWidth : $1.count * $1.bits / 8)
        }
    }
  }

  /// About what a daemon's journal of the linears that are done takes until the result is published.
  public var journalBytes: Int { weights.reduce(0) { $0 + $1.count * $1.bits / 8 } }

  /// Hidden states of all sequences at the turn from one stage to the next, before compression.
  public var cacheBytes: Int {
    let tokens = (settings.samples + work(.float32).originalSamples) * settings.sequenceLength
    // What experts read and make stands beside them, in fp32.
    let mixture = model.hasMixtures ? 2 * 4 * model.hiddenSize : 0
    return tokens
      * (2 * model.widestStates + mixture)
  }

  /// The memory that the run would plan with.
  /// - Parameter states: where states between two stages may stand
  /// - Throws: ``PipelineError/notEnoughMemory(needed:available:phase:mend:)``
  public func memoryPlan(
    backend: any ComputeBackend, budgetBytes: Int, states: StatesChoice = .auto
  ) throws -> MemoryPlan {
    var work = work(backend.operandType(for: modelType))
    work.states = states
    let plan = try MemoryPlan(work, budget: MemoryPlan.Budget(hostBytes: budgetBytes, of: backend))
    if let needed = allocationBytes(backend: backend, memory: plan) {
      try AllocationTrial.require(needed, of: backend.deviceMemory?.limitBytes ?? budgetBytes)
    }
    return plan
  }

  /// The time that the run would take, found out by a trial of some seconds on this machine.
  /// - Parameters:
  ///   - memory: the sizes of batches and panels
  ///   - directory: where the activation cache would be
  /// - Throws: ``CacheError``, ``SolverError``
  public func timePlan(backend: any ComputeBackend, memory: MemoryPlan, cacheDirectory directory: String)
    throws
    -> TimePlan
  {
    try timePlans(
      [RankShare(count: 1)], backend: backend, memory: memory, cacheDirectory: directory)[0]
  }

  /// The same for several numbers of processes that share the work, each on a machine like this one, by one trial.
  public func timePlans(
    _ ranks: [RankShare], backend: any ComputeBackend, memory: MemoryPlan, cacheDirectory directory: String
  ) throws -> [TimePlan] {
    try TimeTrial(plan: self, memory: memory, backend: backend, cacheDirectory: directory).run(ranks: ranks)
  }

  /// The batches of the calibration set.
  func batches(of size: Int) -> [Range<Int>] {
    let original = work(.float32).originalSamples
    return (0..<original).parts(of: size) + (original..<settings.samples).parts(of: size)
  }

  /// What the choice of every linear's bits takes before the run, of the memory that matrices are in; nil where bits are as the
  /// settings say.
  public func allocationBytes(backend: any ComputeBackend, memory: MemoryPlan) -> Int? {
    guard settings.averageBits != nil else { return nil }
    return AllocationTrial.Sizes(samples: settings.samples, sequenceLength: settings.sequenceLength).bytes(
      work(backend.operandType(for: modelType)), panelRows: memory.panelRows,
      isOnDevice: backend.deviceMemory != nil)
  }

  /// Of the trial of a rotation.
  var trialSizes: RotationTrial.Sizes {
    RotationTrial.Sizes(
      samples: settings.samples, sequenceLength: settings.sequenceLength, layerCount: model.layerCount)
  }

  /// What the trial of a rotation takes before the run, of the memory that matrices are in; nil where none is made. The run
  /// does without a rotation where there is less.
  public func trialBytes(backend: any ComputeBackend, memory: MemoryPlan) -> Int? {
    guard rotation == .trial else { return nil }
    return trialSizes.bytes(
      of: model, sequenceLength: settings.sequenceLength, operands: backend.operandType(for: modelType),
      plan: memory)
  }

  func work(_ operands: OperandType) -> MemoryPlan.Work {
    MemoryPlan.Work(
      model: model, samples: settings.samples, sequenceLength: settings.sequenceLength,
      originalSamples: settings.originalSamples, operands: operands,
      keepsOutliers: treatments.values.contains { $0.outliers != nil }, stateBytes: modelType.byteWidth,
      isRotated: rotation != .off, solvesHead: head != nil,
      correctsHead: settings.correctHead && (hasHeadToCorrect || rotation == .trial))
  }

  /// Of every linear that is to be quantized: its weights, and the bits of one.
  private var weights: [(count: Int, bits: Int)] {
    (0..<model.layerCount).flatMap { index in
      model.linears(ofLayer: index).compactMap { linear in
        guard let grid = treatments[model.layerPrefix(index) + linear.name]?.gridFormat else { return nil }
        let bits = settings.averageBits.map { Int($0.rounded(.up)) } ?? grid.bitWidth.rawValue
        return (linear.outFeatures * linear.inFeatures, bits)
      }
    }
  }
}
