import Checkpoint
import Decoder
import Export
import Quantization
import Solvers

/// A change of the treatment of those modules whose name a regular expression finds.
public struct RecipeRule: Sendable {
  public let pattern: String
  public var isSkipped = false
  public var bitWidth: BitWidth?
  public var groupSize: GroupSize?
  public var isSymmetric: Bool?
  public var solver: (any LayerSolver)?
  public var outlierShare: Double?
  public var passes: Int?
  /// Of a GGUF file.
  public var ggufType: GGUFTensorType?

  /// Reads `PATTERN=SETTING,SETTING…`: skip, bits:3, group-size:128, symmetric, asymmetric, type:Q6_K, solver:gptq,
  /// outliers:0.01, passes:5.
  /// - Parameter solvers: the solvers by name
  public init(parsing text: String, solvers: [String: any LayerSolver]) throws(RecipeError) {
    guard let separator = text.lastIndex(of: "="), separator != text.startIndex else {
      throw .malformed(text, reason: "no '=' between pattern and settings")
    }
    pattern = String(text[..<separator])
    do { _ = try Regex(pattern) } catch {
      throw .malformed(text, reason: "the pattern is no regular expression")
    }
    for setting in text[text.index(after: separator)...].split(separator: ",") {
      let parts = setting.split(separator: ":", maxSplits: 1).map(String.init)
      let value = parts.count == 2 ? parts[1] : ""
      switch parts[0] {
      case "skip": isSkipped = true
      case "symmetric": isSymmetric = true
      case "asymmetric": isSymmetric = false
      case "bits": bitWidth = Int(value).flatMap(BitWidth.init(rawValue:))
      case "group-size": groupSize = Int(value).flatMap { GroupSize($0) }
      case "type": ggufType = GGUFTensorType.quantized.first { $0.name.lowercased() == value.lowercased() }
      case "solver": solver = solvers[value]
      case "passes": passes = Int(value).flatMap { $0 > 0 ? $0 : nil }
      case "outliers": outlierShare = Double(value).flatMap { (0...1).contains($0) ? $0 : nil }
      default: throw .malformed(text, reason: "unknown setting \(parts[0])")
      }
      let isUnderstood =
        switch parts[0] {
        case "bits": bitWidth != nil
        case "group-size": groupSize != nil
        case "type": ggufType != nil
        case "solver": solver != nil
        case "outliers": outlierShare != nil
        case "passes": passes != nil
        default: true
        }
      guard isUnderstood else { throw .malformed(text, reason: "\(setting) is not possible") }
    }
  }

  /// Whether it leaves no bits to choose.
  var saysBits: Bool { bitWidth != nil || ggufType != nil }

  var expression: Regex<AnyRegexOutput> {
    get throws(RecipeError) {
      do { return try Regex(pattern) } catch {
        throw .malformed(pattern, reason: "the pattern is no regular expression")
      }
    }
  }

  func applied(to treatment: Treatment) -> Treatment {
    var result = treatment
    if let grid = ggufType?.gridFormat(like: treatment.gridFormat) { result.gridFormat = grid }
    if let bitWidth { result.gridFormat.bitWidth = bitWidth }
    if let groupSize { result.gridFormat.groupSize = groupSize }
    if let isSymmetric { result.gridFormat.isSymmetric = isSymmetric }
    if let solver { result.solver = solver }
    if let passes, let quantEase = result.solver as? QuantEase {
      var settings = quantEase.settings
      settings.passes = passes
      result.solver = QuantEase(settings)
      // With outliers the published algorithm's rounds are its passes.
      if case .paper = result.outliers?.method { result.outliers?.method = .paper(rounds: passes) }
    }
    if let outlierShare {
      var settings =
        result.outliers
        ?? OutlierSettings(method: (result.solver as? QuantEase)?.outlierMethod ?? .standard)
      settings.share = outlierShare
      result.outliers = outlierShare > 0 ? settings : nil
    }
    return result
  }
}

/// A recipe that cannot be carried out.
public enum RecipeError: Error, Sendable, Equatable, CustomStringConvertible {
  case malformed(String, reason: String)
  case matchesNothing(String, names: [String])
  case fusedModulesDiffer(String, String)
  case outliersNeedQuantEase(String, solver: String)
  case passesNeedQuantEase(String, solver: String)
  case typeNeedsGGUF(String)
  /// What was decided when a run began.
  case unknownChoice(String)

  public var description: String {
    switch self {
    case .malformed(let rule, let reason):
      "rule \"\(rule)\": \(reason); write PATTERN=SETTING,SETTING with skip, bits:3, group-size:128, "
        + "symmetric, asymmetric, solver:gptq, outliers:0.01, passes:5, or, for a GGUF file, type:Q6_K"
    case .typeNeedsGGUF(let pattern):
      "rule \"\(pattern)\": types are those of GGUF files, for which a GGUF file is given; write bits, group-size and so on"
    case .unknownChoice(let module):
      "\(module): the bits that were chosen for it when the job began are none that it may have; begin the job anew"
    case .matchesNothing(let pattern, let names):
      "rule \"\(pattern)\" matches no linear of this model, whose first layer has \(names.joined(separator: ", "))"
    case .fusedModulesDiffer(let first, let second):
      "\(first) and \(second) would get different grids, but runtimes fuse them into one linear; "
        + "let a rule match both or neither"
    case .passesNeedQuantEase(let module, let solver):
      "\(module): passes go with the solver quantease, not \(solver); leave them out of the rule, or add solver:quantease"
    case .outliersNeedQuantEase(let module, let solver):
      "\(module): outliers go with the solver quantease, not \(solver); add outliers:0 or solver:quantease to the rule"
    }
  }
}
