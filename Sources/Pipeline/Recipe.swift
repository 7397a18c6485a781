import Checkpoint
import Decoder
import Export
import Quantization
import Solvers

/// How one linear is quantized.
public struct Treatment: Sendable {
  public var gridFormat: GridFormat
  public var solver: any LayerSolver
  /// Full-precision outliers beside the grid; the QuantEase solver's own settings then apply to both.
  public var outliers: OutlierSettings?

  public init(gridFormat: GridFormat, solver: any LayerSolver, outliers: OutlierSettings? = nil) {
    self.gridFormat = gridFormat
    self.solver = solver
    self.outliers = outliers
  }

  /// Whether one rank solves a linear so treated: its rows are not each on its own.
  var isSolvedWhole: Bool { !(quantizer is any LayerSolver) }

  /// What carries the treatment out.
  public var quantizer: any LinearQuantizer {
    guard let outliers else { return solver }
    return OutlierAwareQuantEase(outliers, base: solver as? QuantEase ?? QuantEase())
  }

  /// A stage's problem with the ridge that the treatment takes: solvers and widths have their own.
  func damped(_ stageProblem: LayerProblem) -> LayerProblem {
    stageProblem.damped(by: quantizer.damping(for: gridFormat))
  }
}

/// The treatment of every linear of a model: one for all, and rules for those that need another.
public struct Recipe: Sendable {
  public var standard: Treatment
  /// Later rules win.
  public var rules: [RecipeRule]
  /// What decides about grids in place of the standard one, where a GGUF file is written.
  public var mix: GGUFMix?
  /// Whether the standard grid's symmetry is still to be chosen.
  public private(set) var choosesSymmetry: Bool

  public init(
    _ standard: Treatment, rules: [RecipeRule] = [], mix: GGUFMix? = nil, choosesSymmetry: Bool = false
  ) {
    self.standard = standard
    self.rules = rules
    self.mix = mix
    self.choosesSymmetry = choosesSymmetry
  }

  /// The recipe with a symmetric standard grid, if that was left open and more of the formats then have a runtime that loads
  /// them: of compressed-tensors no runtime loads experts on asymmetric grids, and none at all GPTQ's first version.
  /// - Throws: what ``resolve(for:in:)`` throws
  public func choosingSymmetry(
    for model: ModelDescription, in checkpoint: CheckpointReader? = nil, formats: [OutputFormatName]
  ) throws(RecipeError) -> Recipe {
    var chosen = self
    chosen.choosesSymmetry = false
    guard choosesSymmetry, mix == nil else { return chosen }
    let traits = model.traits(of: try resolve(for: model, in: checkpoint).linears)
    func loadable(_ grid: GridFormat) -> Int {
      formats.count { $0.format.runtimes(for: grid, of: traits).contains(where: \.loads) }
    }
    var symmetric = standard.gridFormat
    symmetric.isSymmetric = true
    if loadable(symmetric) > loadable(standard.gridFormat) { chosen.standard.gridFormat = symmetric }
    return chosen
  }

  /// The treatments of a model's linears, by module name, and of what else a GGUF file has in blocks.
  public struct Resolved: Sendable {
    public var linears: [String: Treatment] = [:]
    /// What is no linear of a layer: embeddings, and what else nobody reads.
    public var rounded: [LinearDescription] = []
    /// The matrix that turns the last hidden states into logits, which may be the embeddings' as well.
    public var head: Head?
    /// The modules whose bits, or type, a rule has said.
    var ruled: Set<String> = []

    /// All that stands outside of layers.
    public var outside: [LinearDescription] { rounded + (head.map { [$0.linear] } ?? []) }
  }

  public struct Head: Sendable {
    public let linear: LinearDescription
    public let treatment: Treatment
  }

  /// The treatment of a module; nil leaves it as it is.
  /// - Parameter matching: the rules that match it
  private func treatment(of standard: Treatment?, by matching: [Int]) -> Treatment? {
    matching.reduce(standard) { result, index in
      let rule = rules[index]
      if rule.isSkipped { return nil }
      // What a mix leaves as it is has no grid but by its type.
      if mix != nil && result == nil && rule.ggufType == nil { return nil }
      return rule.applied(to: result ?? self.standard)
    }
  }

  /// - Throws: ``RecipeError`` for settings of another solver than the module's
  private func check(_ treatment: Treatment, of module: String, _ matching: [Int]) throws(RecipeError) {
    if treatment.solver is QuantEase { return }
    if treatment.outliers != nil { throw .outliersNeedQuantEase(module, solver: treatment.solver.name) }
    if matching.contains(where: { rules[$0].passes != nil }) {
      throw .passesNeedQuantEase(module, solver: treatment.solver.name)
    }
  }

  /// What becomes of every linear of a model.
  /// - Parameter checkpoint: the model's, whose tensors a mix asks for
  /// - Throws: ``RecipeError`` if a rule matches nothing or takes apart what runtimes fuse.
  public func resolve(
    for model: ModelDescription, in checkpoint: CheckpointReader? = nil
  ) throws(RecipeError) -> Resolved {
    var resolved = Resolved()
    var used = [Bool](repeating: false, count: rules.count)
    if mix == nil, let rule = rules.first(where: { $0.ggufType != nil }) {
      throw .typeNeedsGGUF(rule.pattern)
    }
    let types = mix.flatMap { checkpoint?.ggufTypes(of: $0) }
    /// Before any rule.
    func standard(_ module: String) -> Treatment? {
      guard let types else { return self.standard }
      guard let grid = types[module]?.gridFormat(like: self.standard.gridFormat) else { return nil }
      var treatment = self.standard
      treatment.gridFormat = grid
      return treatment
    }
    // Once for all: a mixture has tens of thousands of linears.
    var expressions: [Regex<AnyRegexOutput>] = []
    for rule in rules { expressions.append(try rule.expression) }
    /// The rules that match a module, which are of use then.
    func matching(_ module: String) -> [Int] {
      let matching = expressions.indices.filter { (try? expressions[$0].firstMatch(in: module)) != nil }
      for index in matching { used[index] = true }
      if matching.contains(where: { rules[$0].saysBits }) { resolved.ruled.insert(module) }
      return matching
    }
    for layer in 0..<model.layerCount {
      for linear in model.linears(ofLayer: layer) {
        let module = model.layerPrefix(layer) + linear.name
        let matching = matching(module)
        // What is put together of several tensors has no place for codes.
        let hasPlace = types == nil || checkpoint?.tensors["\(module).weight"]?.coding != .computed
        let treatment = hasPlace ? treatment(of: standard(module), by: matching) : nil
        if let treatment { try check(treatment, of: module, matching) }
        resolved.linears[module] = treatment
      }
    }
    for group in alikeModules(of: model, in: checkpoint) {
      let grid = resolved.linears[group[0]]?.gridFormat
      if let other = group.first(where: { resolved.linears[$0]?.gridFormat != grid }) {
        throw .fusedModulesDiffer(group[0], other)
      }
    }
    // What is left of a file's matrices: not what a layer keeps in 16 bits.
    let linears = Set(
      (0..<model.layerCount).flatMap { layer in
        (model.linears(ofLayer: layer) + model.keptLinears(ofLayer: layer)).map {
          model.layerPrefix(layer) + $0.name
        }
      })
    for module in (types ?? [:]).keys.sorted() where !linears.contains(module) {
      let matching = matching(module)
      guard let treatment = treatment(of: standard(module), by: matching),
        let shape = checkpoint?.shape(of: "\(module).weight"), shape.count == 2
      else { continue }
      try check(treatment, of: module, matching)
      let linear = LinearDescription(
        name: module, outFeatures: shape[0], inFeatures: shape[1], gridFormat: treatment.gridFormat,
        hasBias: false,
        outliers: treatment.outliers.map {
          OutlierLayout($0, outFeatures: shape[0], inFeatures: shape[1])
        })
      if "\(module).weight" == model.head.weights, !(treatment.solver is RoundToNearest) {
        resolved.head = Head(linear: linear, treatment: treatment)
      } else {
        resolved.rounded.append(linear)
      }
    }
    if let unused = used.firstIndex(of: false) {
      // Of a mixture's experts one is as good as all.
      let names = model.linears(ofLayer: 0).map { model.layerPrefix(0) + $0.name }
      throw .matchesNothing(rules[unused].pattern, names: Array(names.prefix(12)))
    }
    return resolved
  }

  /// The linears of layers that have to have the same grid: those that runtimes fuse, and a layer's experts, for which they have
  /// one kernel. Of a GGUF file, in which llama.cpp fuses nothing, those of a stack.
  func alikeModules(of model: ModelDescription, in checkpoint: CheckpointReader?) -> [[String]] {
    let isGGUF = mix != nil && checkpoint?.gguf != nil
    var groups: [[String]] = []
    for layer in 0..<model.layerCount {
      func names(_ linears: [LayerLinear]) -> [String] {
        linears.map { model.layerPrefix(layer) + $0.name }
      }
      for stage in model.stages(ofLayer: layer) {
        let experts = stage.experts.filter { $0.number != nil }.flatMap(\.linears)
        let ofExperts = Set(experts.map(\.name))
        let parts = stage.linearsByPart.map { part in names(part.filter { !ofExperts.contains($0.name) }) }
        groups += isGGUF ? parts.joined().map { [$0] } : parts.filter { !$0.isEmpty }
        let stacks = Dictionary(grouping: names(experts)) { module in
          isGGUF ? checkpoint?.tensors["\(module).weight"]?.storedName ?? module : ""
        }
        groups += stacks.sorted { $0.key < $1.key }.map(\.value)
      }
    }
    return groups
  }
}

extension GGUFTensorType {
  /// The type's grid, with signs of scales as another one has them.
  func gridFormat(like other: GridFormat) -> GridFormat? {
    var grid = gridFormat
    grid?.hasSignedScales = other.hasSignedScales
    return grid
  }
}

extension OutlierLayout {
  /// What the settings come to for a linear.
  init(_ settings: OutlierSettings, outFeatures: Int, inFeatures: Int) {
    self =
      settings.isStructured
      ? .structured(columns: settings.columnCount(inFeatures: inFeatures))
      : .unstructured(count: settings.entryCount(outFeatures: outFeatures, inFeatures: inFeatures))
  }
}

extension Recipe {
  /// What a GGUF file will hold; nil for another format.
  func outline(_ resolved: Resolved, of checkpoint: CheckpointReader) -> GGUFOutline? {
    guard let mix, let gguf = checkpoint.gguf else { return nil }
    let grids =
      resolved.linears.map { ($0.key, $0.value.gridFormat) }
      + resolved.outside.compactMap { linear in linear.gridFormat.map { (linear.name, $0) } }
    let chosen = grids.compactMap { module, grid -> (String, GGUFTensorType)? in
      guard let tensor = checkpoint.tensors["\(module).weight"], let type = GGUFTensorType(grid) else {
        return nil
      }
      return (tensor.storedName, type)
    }
    return GGUFOutline(mix, of: gguf, chosen: Dictionary(chosen, uniquingKeysWith: { first, _ in first }))
  }
}

extension CheckpointReader {
  /// What a mix makes of a GGUF file's tensors, by the modules that they are of; nil for another checkpoint.
  func ggufTypes(of mix: GGUFMix) -> [String: GGUFTensorType]? {
    guard let gguf else { return nil }
    let types = Dictionary(uniqueKeysWithValues: mix.choices(for: gguf).map { ($0.tensor, $0.type) })
    return Dictionary(
      uniqueKeysWithValues: tensors.values.compactMap { tensor in
        guard tensor.name.hasSuffix(".weight") else { return nil }
        return types[tensor.storedName].map {
          (String(tensor.name.dropLast(".weight".count)), $0)
        }
      })
  }
}
