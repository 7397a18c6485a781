import Calibration
import Checkpoint
import Export
import SystemIO
import Tensors

/// What a run is asked to do.
public struct QuantizationRequest: Sendable {
  /// The directory of the source checkpoint.
  public var model: String
  /// The directory that the result appears at, or, of a GGUF file, the file itself; it must not exist.
  public var output: String
  public var recipe: Recipe
  public var target: Target
  /// Share of the calibration sequences that also run through the original model, for ``Target/original``.
  public var targetShare: Double
  public var formats: [OutputFormatName]
  public var calibration: CalibrationSet
  public var seed: UInt64
  /// Where the calibration tokens come from, for the report.
  public var calibrationSources: CalibrationSources
  /// Where the activation cache is made; beside the output if nil.
  public var cacheDirectory: String?
  /// The memory that the run may take, mapped files aside.
  public var memoryBudgetBytes: Int
  /// Where states between two stages may stand.
  public var states: StatesChoice
  /// The type of hidden states in the cache; the checkpoint's own if nil.
  public var cacheType: DType?
  public var shardSizeLimit: Int
  /// Where the run keeps what it has done, for another to go on with; nil if nothing is to be left of a run that
  /// ends early.
  public var resume: ResumePlace?
  /// What the report calls the model; as its directory is called, if nil.
  public var modelName: String?
  /// Whether the checkpoint's files may be links: not where strangers put them.
  public var symlinks: SymlinkPolicy
  /// The checkpoint's files as they are to be read; as they are when the run begins, if nil.
  public var source: SourceFiles?
  /// Whether weights that nobody can have trained are an error, and not a warning.
  public var isStrict: Bool
  public var experts: ExpertSettings
  /// How often a sequence's first token counts where keys and values are made.
  public var firstTokenWeight: Double
  /// Whether a head of its own is corrected for what the layers have lost, for ``Target/original``.
  public var correctsHead: Bool
  /// Whether norms follow the gradient of the whole model's divergence, when all else is quantized.
  public var tunesNorms: Bool
  /// Whether a checkpoint may be quantized that is quantized already.
  public var allowsRequantizing: Bool
  /// Whether the residual stream is rotated before.
  public var rotation: QuantizationSettings.Rotation
  /// Bits a weight that all linears are to take on average, scales and outliers with them, where those of each are to be
  /// chosen; nil where the recipe says them.
  public var averageBits: Double?
  /// The bit widths that are chosen of; nil for those that runtimes load side by side.
  public var bitChoices: Set<Int>?
  /// Tokens of a batch on the processor; tests have smaller ones.
  var batchTokens = MemoryPlan.Work.batchTokens
  /// Rows of a linear that are solved at a time on the processor; tests have fewer.
  var panelRows = MemoryPlan.panelRows
  /// Where an importance matrix for llama-quantize is written beside the result; nil for none.
  public var importanceMatrix: String?

  public init(
    model: String, output: String, recipe: Recipe, target: Target, targetShare: Double,
    formats: [OutputFormatName],
    calibration: CalibrationSet, seed: UInt64,
    calibrationSources: CalibrationSources, cacheDirectory: String? = nil, memoryBudgetBytes: Int,
    states: StatesChoice = .auto, cacheType: DType? = nil, shardSizeLimit: Int = 5_000_000_000,
    resume: ResumePlace? = nil,
    symlinks: SymlinkPolicy = .follow, source: SourceFiles? = nil, isStrict: Bool = false,
    experts: ExpertSettings = ExpertSettings(), firstTokenWeight: Double = 1,
    correctsHead: Bool = true, tunesNorms: Bool = false, allowsRequantizing: Bool = false,
    rotation: QuantizationSettings.Rotation = .off, averageBits: Double? = nil,
    bitChoices: Set<Int>? = nil
  ) {
    self.model = model
    self.output = output
    self.recipe = recipe
    self.target = target
    self.targetShare = targetShare
    self.formats = formats
    self.calibration = calibration
    self.seed = seed
    self.calibrationSources = calibrationSources
    self.cacheDirectory = cacheDirectory
    self.memoryBudgetBytes = memoryBudgetBytes
    self.states = states
    self.cacheType = cacheType
    self.shardSizeLimit = shardSizeLimit
    self.resume = resume
    self.symlinks = symlinks
    self.source = source
    self.isStrict = isStrict
    self.experts = experts
    self.firstTokenWeight = firstTokenWeight
    self.correctsHead = correctsHead
    self.tunesNorms = tunesNorms
    self.allowsRequantizing = allowsRequantizing
    self.rotation = rotation
    self.averageBits = averageBits
    self.bitChoices = bitChoices
  }
}

extension QuantizationRequest {
  /// What a job's settings ask for.
  /// - Throws: ``RecipeError``
  public init(
    _ settings: QuantizationSettings, model: String, output: String, calibration: CalibrationSet,
    from sources: CalibrationSources, memoryBudgetBytes: Int, states: StatesChoice
  ) throws {
    self.init(
      model: model, output: output, recipe: try settings.recipe(), target: settings.resolvedTarget,
      targetShare: settings.resolvedTargetShare, formats: settings.formats, calibration: calibration,
      seed: settings.seed, calibrationSources: sources, memoryBudgetBytes: memoryBudgetBytes, states: states,
      isStrict: settings.strict, experts: settings.experts,
      firstTokenWeight: settings.resolvedFirstTokenWeight, correctsHead: settings.correctHead,
      tunesNorms: settings.tuneNorms, allowsRequantizing: settings.allowRequantize,
      rotation: settings.resolvedRotation,
      averageBits: settings.averageBits, bitChoices: settings.widths)
  }

  /// Whether the result is one file, with its report beside it.
  var isOneFile: Bool { GGUFFiles.isGGUF(output) }

  /// The calibration sequences that also run through the original model.
  var originalSamples: Int { target.originalSamples(share: targetShare, of: calibration.samples) }
}
