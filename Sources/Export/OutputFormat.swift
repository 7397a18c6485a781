import Checkpoint
import Quantization
import Tensors

/// The formats of `--format`, by their names on the command line.
public enum OutputFormatName: String, CaseIterable, Codable, Sendable {
  case compressedTensors = "compressed-tensors"
  case gptq
  case gptqV2 = "gptq-v2"
  case awq
  case dense
  case gguf

  public var format: any OutputFormat {
    switch self {
    case .compressedTensors: CompressedTensorsFormat()
    case .gptq: GPTQFormat(version: .one)
    case .gptqV2: GPTQFormat(version: .two)
    case .awq: AWQFormat()
    case .dense: DenseFormat()
    case .gguf: GGUFFormat(GGUFMix(.q4_K_M))
    }
  }
}

/// One way to store quantized linears in a checkpoint.
public protocol OutputFormat: Sendable {
  var name: OutputFormatName { get }

  /// The float types that a scale goes through on its way into the files of a model whose weights are
  /// of `modelType`; a grid must be rounded to them before it is used. Where linears are of several types, to those of
  /// every one: a linear's scales are written in its own.
  func scaleTypes(modelType: DType) -> [DType]

  /// The type of a quantized linear's bias.
  func biasType(modelType: DType) -> DType

  /// Whether outliers stand in tensors of their own beside the codes, or are part of the weights.
  var storesOutliersApart: Bool { get }

  /// Whether weights stand in the tensors in which the source has them, stacked experts in their stack.
  var keepsSourceLayout: Bool { get }

  /// Whether grids may have offsets of their own, and super-blocks.
  var holdsAnyGrid: Bool { get }

  /// How a GGUF file has a tensor that is no quantized linear: rounded, if that is not how its source has it.
  func ggufType(ofUnquantized tensor: TensorInfo) -> GGUFTensorType?

  /// Creates the files, with all their space.
  /// - Parameter linears: all of the model
  func makeWriter(
    in directory: String, plan: [TensorPlan], for linears: [LinearDescription], source: CheckpointReader,
    shardSizeLimit: Int
  ) throws -> CheckpointWriter

  /// Checks that the format can hold these linears side by side.
  /// - Throws: ``ExportError`` naming the linear, the rule, and the way out.
  func check(_ linears: [LinearDescription]) throws(ExportError)

  /// The tensors that stand for a linear's weight, its bias and outliers aside.
  /// - Parameter weight: the source's
  func tensors(of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo) -> [TensorPlan]

  /// Writes those tensors.
  /// - Parameter linear: with scales as they are stored, see ``QuantizedLinear/withStoredScales``
  func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter) throws

  /// `quantization_config` for config.json; nil for a checkpoint like any other.
  /// - Parameter towers: parts of modules' names whose linears stay as they are
  func quantizationConfiguration(of linears: [LinearDescription], besides towers: [String]) -> JSONValue?

  /// Further files that loaders of the format look for, by name.
  func files(configuration: JSONValue) -> [String: JSONValue]

  /// What is known of the runtimes that read such a grid in this format.
  func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport]
}

extension OutputFormat {
  public var storesOutliersApart: Bool { true }
  public var keepsSourceLayout: Bool { false }
  public var holdsAnyGrid: Bool { false }
  public func ggufType(ofUnquantized tensor: TensorInfo) -> GGUFTensorType? { nil }
  public func makeWriter(
    in directory: String, plan: [TensorPlan], for linears: [LinearDescription], source: CheckpointReader,
    shardSizeLimit: Int
  ) throws -> CheckpointWriter {
    try CheckpointWriter(directory: directory, plan: plan, shardSizeLimit: shardSizeLimit)
  }
  public func biasType(modelType: DType) -> DType { modelType }
  public func check(_ linears: [LinearDescription]) throws(ExportError) {}
  public func files(configuration: JSONValue) -> [String: JSONValue] { [:] }
}

/// What a model has that runtimes have layouts, or modules, of their own for.
public struct ModelTraits: OptionSet, Sendable {
  public let rawValue: Int

  public init(rawValue: Int) { self.rawValue = rawValue }

  public static let experts = ModelTraits(rawValue: 1)
  /// Linears that are stored the other way round.
  public static let transposedLinears = ModelTraits(rawValue: 2)
  /// Quantized experts that vLLM alone loads one by one, and those that nothing does.
  public static let expertsForVLLM = ModelTraits(rawValue: 4)
  public static let stackedExperts = ModelTraits(rawValue: 8)
  /// Linears that have other grids than others.
  public static let severalGrids = ModelTraits(rawValue: 16)
  /// Linears whose columns the group size does not divide.
  public static let shorterLastGroups = ModelTraits(rawValue: 32)
}

/// One linear of the source checkpoint and what is to become of it.
public struct LinearDescription: Sendable {
  /// The module's name in the checkpoint, without `.weight`.
  public var name: String
  public var outFeatures: Int
  public var inFeatures: Int
  /// nil: the linear is copied as it is.
  public var gridFormat: GridFormat?
  public var hasBias: Bool
  public var outliers: OutlierLayout?

  public init(
    name: String, outFeatures: Int, inFeatures: Int, gridFormat: GridFormat?, hasBias: Bool,
    outliers: OutlierLayout? = nil
  ) {
    self.name = name
    self.outFeatures = outFeatures
    self.inFeatures = inFeatures
    self.gridFormat = gridFormat
    self.hasBias = hasBias
    self.outliers = outliers
  }
}

/// Whether a runtime loads a checkpoint.
public struct RuntimeSupport: Codable, Sendable, Equatable, CustomStringConvertible {
  public var format: OutputFormatName
  public var runtime: String
  public var loads: Bool
  /// The condition or the reason; may be empty.
  public var note: String

  public init(format: OutputFormatName, runtime: String, loads: Bool, note: String = "") {
    self.format = format
    self.runtime = runtime
    self.loads = loads
    self.note = note
  }

  public var description: String {
    let fact = "\(format.rawValue): \(runtime) \(loads ? "loads it" : "does not load it")"
    return note.isEmpty ? fact : "\(fact): \(note)"
  }
}
