import Export
import Quantization
import Solvers
import Tuning

/// What a person chooses about a quantization, as plain values: what the command line, the daemon's configuration
/// and a job's own file have in common.
public struct QuantizationSettings: Codable, Sendable, Equatable {
  public enum SolverName: String, Codable, Sendable, CaseIterable {
    case quantease, gptq, rtn
  }

  public enum Preset: String, Codable, Sendable, CaseIterable {
    /// With all that lowers the error.
    case standard
    /// The published algorithm.
    case paper
  }

  /// Where coordinate descent begins.
  public enum Start: String, Codable, Sendable, CaseIterable {
    case nearestPlane = "nearest-plane"
    case weights
  }

  public enum TargetChoice: String, Codable, Sendable, CaseIterable {
    /// ``original`` for the standard preset; ``layer`` for the published algorithms, which have no other.
    case auto
    case layer, original
  }

  /// What the products of the forward pass and of Gram matrices are computed in.
  public enum Precision: String, Codable, Sendable, CaseIterable {
    /// Operands in the checkpoint's own type where that is bfloat16 and the processor multiplies it faster.
    case auto
    /// fp32 throughout.
    case exact
  }

  /// Whether the residual stream is rotated before the model is quantized.
  public enum Rotation: String, Codable, Sendable, CaseIterable {
    /// If a trial says that it helps; never for the published algorithms.
    case auto
    case off, residual
  }

  /// What the first half of an expert is solved for.
  public enum ExpertGram: String, Codable, Sendable, CaseIterable {
    /// The tokens that reach it, and a prior of all.
    case own
    /// All tokens: one Gram matrix for the experts of a layer, which takes less time.
    case shared
  }

  public var bits = 4
  /// Columns that share a scale; −1 is one scale for a whole row.
  public var groupSize = -1
  /// Whether grids have no zero points; nil for those that have, which are more exact, or for those without where runtimes load
  /// nothing else: see ``Recipe/choosingSymmetry(for:in:formats:)``.
  public var symmetric: Bool?
  /// Only positive scales on symmetric grids, for runtimes that take no others.
  public var unsignedScales = false
  public var solver = SolverName.quantease
  public var preset = Preset.standard
  public var target = TargetChoice.auto
  /// Share of the calibration sequences that also run through the original model, for ``Target/original``; nil for
  /// ``defaultTargetShare``.
  public var targetShare: Double?
  /// The ridge of the solver's problems, as a share of Σ's mean diagonal; nil for
  /// ``Damping/automatic``, and GPTQ's own.
  public var damping: Double?
  /// Passes of coordinate descent, at most.
  public var passes = 25
  public var start = Start.nearestPlane
  public var gridSearch = true
  public var scaleRefit = true
  public var pairMoves = true
  /// Share of the weights that is kept in 16-bit floats.
  public var outliers = 0.0
  public var structuredOutliers = false
  /// `PATTERN=SETTING,SETTING…`; see ``RecipeRule``.
  public var rules: [String] = []
  public var formats: [OutputFormatName] = [.compressedTensors]
  /// Calibration sequences.
  public var samples = 128
  /// Tokens of a calibration sequence.
  public var sequenceLength = 2_048
  /// Decides which sequences are drawn.
  public var seed: UInt64 = 0
  public var precision: Precision {
    get { chosenPrecision ?? .auto }
    set { chosenPrecision = newValue == .auto ? nil : newValue }
  }
  /// nil in orders of earlier versions.
  private var chosenPrecision: Precision?
  /// Weights that nobody can have trained are an error, and not a warning.
  public var strict = false
  public var expertGram: ExpertGram {
    get { chosenExpertGram ?? .own }
    set { chosenExpertGram = newValue == .own ? nil : newValue }
  }
  /// nil in orders of earlier versions.
  private var chosenExpertGram: ExpertGram?
  /// The tokens that stand for all in an expert's Gram matrices beside its own, as a multiple of their width; nil for as
  /// many as it asks for.
  public var expertPrior: Double?
  /// How often a sequence's first token counts where keys and values are made; nil for what the settings come to.
  public var firstTokenWeight: Double?
  /// Whether a head of its own is corrected for what the layers have lost, for ``Target/original``.
  public var correctHead: Bool {
    get { headCorrection ?? false }
    set { headCorrection = newValue }
  }
  /// nil in orders of earlier versions.
  private var headCorrection: Bool? = true
  /// Whether norms follow the gradient of the whole model's divergence, when all else is quantized.
  public var tuneNorms: Bool {
    get { normTuning ?? false }
    set { normTuning = newValue ? true : nil }
  }
  private var normTuning: Bool?
  /// Calibration sequences to draw beside those that layers are solved for.
  public var spareSamples: Int {
    guard tuneNorms else { return 0 }
    let wanted = NormTuning.Schedule().wanted(length: sequenceLength)
    return wanted.learnt + wanted.judged
  }
  /// Whether a checkpoint may be quantized that is quantized already.
  public var allowRequantize: Bool {
    get { requantizing ?? false }
    set { requantizing = newValue ? true : nil }
  }
  /// nil in orders of earlier versions.
  private var requantizing: Bool?
  public var rotate: Rotation {
    get { chosenRotation ?? .off }
    set { chosenRotation = newValue }
  }
  /// nil in orders of earlier versions, which is off.
  private var chosenRotation: Rotation? = .auto
  /// The file that the format gguf writes, in place of bits, group size and symmetry.
  public var ggufType: GGUFMix.Name {
    get { chosenGGUFType ?? .q4_K_M }
    set { chosenGGUFType = newValue == .q4_K_M ? nil : newValue }
  }
  /// nil in orders of earlier versions.
  private var chosenGGUFType: GGUFMix.Name?
  /// Whether all tensors of that file are of its standard type.
  public var ggufPure: Bool {
    get { isPure ?? false }
    set { isPure = newValue ? true : nil }
  }
  private var isPure: Bool?

  /// Bits a weight that linears take on average, scales with them, where each gets as many as it needs; nil where all have
  /// ``bits``.
  public var averageBits: Double?
  /// The bit widths that are chosen of then; empty for those that runtimes load side by side.
  public var bitChoices: [Int] {
    get { choices ?? [] }
    set { choices = newValue.isEmpty ? nil : Set(newValue).sorted() }
  }
  private var choices: [Int]?

  public init() {}

  /// Whether the result is a GGUF file.
  public var isGGUF: Bool { formats == [.gguf] }

  /// What the format gguf writes, where it is the one that is asked for.
  var mix: GGUFMix? {
    guard isGGUF else { return nil }
    if let averageBits { return GGUFMix(averageBits: averageBits) }
    return GGUFMix(ggufType, isPure: ggufPure)
  }

  /// - Throws: ``SettingsError`` for the first value that is not possible.
  public func validate() throws(SettingsError) {
    func require(_ condition: Bool, _ key: String, _ value: Any, _ mend: String) throws(SettingsError) {
      if !condition { throw SettingsError(key: key, value: "\(value)", mend: mend) }
    }
    try require(BitWidth(rawValue: bits) != nil, "bits", bits, "2 to 6, or 8")
    try require(GroupSize(groupSize) != nil, "group-size", groupSize, "-1, or a number of columns")
    if let targetShare {
      try require(
        targetShare > 0 && targetShare <= 1, "target-share", targetShare,
        "a share of the sequences, above 0 and up to 1")
    }
    if let damping {
      try require(
        damping > 0 && damping <= 10, "damping", damping, "a share of the mean diagonal, above 0 and up to 10"
      )
      try require(
        isStandard || solver == .gptq, "damping", damping,
        "it goes with the solver gptq, and with quantease's standard preset")
    }
    if let expertPrior {
      try require(
        expertPrior > 0 && expertPrior <= 100, "expert-prior", expertPrior,
        "tokens as a multiple of the width, above 0 and up to 100")
    }
    if let firstTokenWeight {
      try require(
        firstTokenWeight >= 1 && firstTokenWeight <= 10_000, "first-token-weight", firstTokenWeight,
        "how often it counts, from 1 and up to 10000")
    }
    if let averageBits {
      try require(
        averageBits >= 2 && averageBits <= 16, "average-bits", averageBits, "bits a weight, 2 to 16")
      try require(
        samples > 1, "samples", samples,
        "average-bits are chosen on sequences that nothing is solved for: at least 2")
      try require(
        !ggufPure, "average-bits", averageBits, "where all tensors are of one type, nothing is left to choose"
      )
    }
    try require(
      bitChoices.allSatisfy { BitWidth(rawValue: $0) != nil }, "bit-choices",
      bitChoices.map { "\($0)" }.joined(separator: ", "), "of 2 to 6, and 8")
    try require(
      averageBits != nil || bitChoices.isEmpty, "bit-choices",
      bitChoices.map { "\($0)" }.joined(separator: ", "), "they go with average-bits")
    try require(passes > 0, "passes", passes, "at least 1")
    try require((0...1).contains(outliers), "outliers", outliers, "a share of the weights, 0 to 1")
    try require(
      outliers == 0 || solver == .quantease, "outliers", outliers, "they go with the solver quantease alone")
    try require(
      !structuredOutliers || outliers > 0, "structured-outliers", structuredOutliers, "it goes with outliers")
    try require(
      !formats.isEmpty && Set(formats).count == formats.count, "format",
      formats.map(\.rawValue).joined(separator: ", "), "at least one, and each once")
    try require(
      !tuneNorms || !formats.contains(.gguf), "tune-norms", tuneNorms,
      "norms of a GGUF file stay as they are: choose another format")
    try require(samples > 0, "samples", samples, "at least 1")
    try require(sequenceLength > 1, "sequence-length", sequenceLength, "at least 2")
    for rule in rules {
      do { _ = try RecipeRule(parsing: rule, solvers: solvers) } catch {
        throw SettingsError(key: "rule", value: rule, mend: "\(error)")
      }
    }
  }

  /// What a person may say that some results do not read.
  public enum ConditionalSetting: Sendable {
    case bits, groupSize, symmetry, ggufType, ggufPure
    case preset, targetShare, unsignedScales
  }

  /// Why a value of a setting would change nothing, and what to say in its place; nil if the result is made by it. That is for who
  /// asked for this one result: defaults are for results of all formats, and say what each of them reads.
  public func reasonToIgnore(_ setting: ConditionalSetting) -> String? {
    switch setting {
    case .bits where averageBits != nil, .ggufType where isGGUF && averageBits != nil:
      "average-bits stands in its place: leave one of both out"
    case .bits, .groupSize, .symmetry:
      isGGUF
        ? "a GGUF file's grids are its types: say gguf-type, or average-bits, or type:Q6_K in a rule" : nil
    case .ggufType, .ggufPure:
      formats.contains(.gguf)
        ? nil : "it goes with the format gguf, of GGUF files: say bits, group-size, symmetric, asymmetric"
    case .preset:
      preset == .paper && solver != .quantease ? "it goes with --solver quantease" : nil
    case .targetShare:
      targetShare != nil && resolvedTarget == .layer ? "no layer has the original model as target" : nil
    case .unsignedScales:
      unsignedScales && symmetric == false ? "scales of grids with zero points have no sign" : nil
    }
  }

  /// The recipe that the settings come to.
  /// - Throws: ``SettingsError`` or ``RecipeError``
  public func recipe() throws -> Recipe {
    try validate()
    guard let bitWidth = BitWidth(rawValue: standardBits), let size = GroupSize(groupSize) else {
      preconditionFailure("validated settings")
    }
    let grid = GridFormat(
      bitWidth: bitWidth, groupSize: size, isSymmetric: symmetric ?? false, hasSignedScales: !unsignedScales)
    return Recipe(
      Treatment(gridFormat: grid, solver: layerSolver(solver), outliers: outlierSettings),
      rules: try rules.map { try RecipeRule(parsing: $0, solvers: solvers) }, mix: mix,
      choosesSymmetry: symmetric == nil)
  }

  /// The width that all linears have, or that is nearest to their average.
  private var standardBits: Int {
    guard let averageBits else { return bits }
    return (widths ?? Set(BitWidth.allCases.map(\.rawValue))).sorted().min {
      abs(Double($0) - averageBits) < abs(Double($1) - averageBits)
    } ?? bits
  }

  /// Whether linears get all that lowers the error, and no published algorithm is asked for.
  private var isStandard: Bool { solver == .quantease && preset == .standard }

  /// The target that the settings come to.
  public var resolvedTarget: Target {
    switch target {
    case .auto: isStandard ? .original : .layer
    case .layer: .layer
    case .original: .original
    }
  }

  /// The rotation that the settings come to, but for what a trial says.
  public var resolvedRotation: Rotation { rotate == .auto && !isStandard ? .off : rotate }

  /// The bit widths that are chosen of; nil for those that runtimes load side by side.
  public var widths: Set<Int>? { bitChoices.isEmpty ? nil : Set(bitChoices) }

  /// What experts are solved for by the settings.
  public var experts: ExpertSettings {
    ExpertSettings(isShared: expertGram == .shared, prior: expertPrior)
  }

  /// The share that the settings come to.
  public var resolvedTargetShare: Double {
    targetShare ?? Self.defaultTargetShare(bits: typicalBits)
  }

  /// The width that defaults of whole runs go by.
  private var typicalBits: Int {
    averageBits.map { Int($0) } ?? mix?.name.standardType.blocks?.bits ?? bits
  }

  /// The weight that the settings come to. With the errors that 2 bits leave everywhere, the first token's count for less.
  public var resolvedFirstTokenWeight: Double {
    firstTokenWeight ?? (isStandard && typicalBits > 2 ? 16 : 1)
  }

  /// The calibration sequences that also run through the original model.
  public var originalSamples: Int {
    resolvedTarget.originalSamples(share: resolvedTargetShare, of: samples)
  }

  /// What more sequences gain grows with the error that a width leaves, and what they cost does not: at 2 and 3 bits all
  /// of them, at 4 a quarter, and an eighth of more.
  public static func defaultTargetShare(bits: Int) -> Double { bits < 4 ? 1 : bits == 4 ? 0.25 : 0.125 }

  private var solvers: [String: any LayerSolver] {
    Dictionary(uniqueKeysWithValues: SolverName.allCases.map { ($0.rawValue, layerSolver($0)) })
  }

  private func layerSolver(_ name: SolverName) -> any LayerSolver {
    switch (name, preset) {
    case (.quantease, .standard): QuantEase(standardSettings)
    case (.quantease, .paper): QuantEase(.paper(passes: passes))
    case (.gptq, _): damping.map { GPTQ(damping: Float($0)) } ?? GPTQ()
    case (.rtn, _): RoundToNearest()
    }
  }

  private var standardSettings: QuantEase.Settings {
    var settings = QuantEase.Settings.standard(passes: passes)
    settings.start = start == .weights ? .weights : .nearestPlane
    settings.searchesGrid = gridSearch
    settings.refitsScales = scaleRefit
    settings.damping = damping.map { .share(Float($0)) } ?? .automatic
    if !pairMoves { settings.pairNeighbours = 0 }
    return settings
  }

  private var outlierSettings: OutlierSettings? {
    guard outliers > 0 else { return nil }
    return OutlierSettings(
      share: outliers, isStructured: structuredOutliers,
      method: preset == .paper ? .paper(rounds: passes) : .standard)
  }
}

/// A setting whose value is not possible.
public struct SettingsError: Error, Equatable, Sendable, CustomStringConvertible {
  /// The setting's name, as the command line and configuration files write it.
  public let key: String
  public let value: String
  public let mend: String

  public init(key: String, value: String, mend: String) {
    self.key = key
    self.value = value
    self.mend = mend
  }

  public var description: String { "\(key): \(value) is not possible: \(mend)" }
}

/// What the experts of a mixture are solved for.
public struct ExpertSettings: Sendable, Hashable {
  /// Whether the first halves of a layer's experts share a Gram matrix.
  public var isShared = false
  /// Tokens of the prior, as a multiple of a half's width; nil for as many as an expert's tokens ask for.
  public var prior: Double?

  public init(isShared: Bool = false, prior: Double? = nil) {
    self.isShared = isShared
    self.prior = prior
  }
}
