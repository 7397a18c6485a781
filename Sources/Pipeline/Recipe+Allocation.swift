import Checkpoint
import Decoder
import Export
import Quantization

// The bits of linears, chosen by what each needs.
extension Recipe {
  /// What there is to choose: linears that no rule has given bits or a type, those together that have to have the same grid.
  /// - Parameter widths: the bit widths that are chosen of; nil for those that runtimes load side by side
  /// - Throws: ``ExportError`` if a format has no place for several grids in one checkpoint, and ``SettingsError`` if there is no
  ///   such choice
  func allocationProblem(
    averageBits: Double, _ resolved: Resolved, of model: ModelDescription, in checkpoint: CheckpointReader,
    formats: [OutputFormatName], widths: Set<Int>?
  ) throws -> AllocationProblem {
    let linears = (model.exported(by: resolved.linears) + resolved.outside).filter { $0.gridFormat != nil }
    let byName = Dictionary(uniqueKeysWithValues: linears.map { ($0.name, $0) })
    let traits = model.traits(of: resolved.linears)
    // What else stands outside of layers is read by no stream that is measured.
    let read = [model.embedding.tokens, model.head.weights]
    let outside = resolved.outside.map(\.name).filter { read.contains("\($0).weight") }
    let groups = alikeModules(of: model, in: checkpoint) + outside.map { [$0] }
    let units = try groups.compactMap { group -> AllocationUnit? in
      let members = group.compactMap { byName[$0] }
      // A rule for one of them is one for all.
      guard let standard = members.first?.gridFormat, resolved.ruled.isDisjoint(with: group) else {
        return nil
      }
      let held = grids(like: standard, for: members, formats)
      let candidates =
        widths.map { widths in held.filter { widths.contains($0.bitWidth.rawValue) } }
        ?? loadable(held, formats, traits)
      if candidates.isEmpty {
        throw SettingsError(
          key: "bit-choices", value: (widths ?? []).sorted().map { "\($0)" }.joined(separator: ", "),
          mend: "the formats have no grid of such a width for \(members[0].name)")
      }
      return AllocationUnit(members, candidates, standard: standard, isGGUF: mix != nil)
    }
    let problem = try AllocationProblem(averageBits: averageBits, linears, units)
    try CheckpointExport.check(differing(linears, units), formats, of: checkpoint, traits: traits)
    return problem
  }

  /// The grids that a recipe's could be changed for.
  private func grids(
    like standard: GridFormat, for linears: [LinearDescription], _ formats: [OutputFormatName]
  ) -> [GridFormat] {
    guard mix != nil else {
      return BitWidth.allCases.map { width in
        var grid = standard
        grid.bitWidth = width
        return grid
      }.filter { grid in
        linears.allSatisfy { linear in
          var linear = linear
          linear.gridFormat = grid
          return formats.allSatisfy { (try? $0.format.check([linear])) != nil }
        }
      }
    }
    let types = GGUFTensorType.quantized.filter { type in
      linears.allSatisfy { $0.inFeatures.isMultiple(of: type.blockSize) }
    }
    // Where rows are whole super-blocks, those are the better ones of as many bits.
    let superBlocks = types.filter { $0.gridFormat?.superBlocks != nil }
    return (superBlocks.isEmpty ? types : superBlocks + [.q8_0]).compactMap { $0.gridFormat(like: standard) }
  }

  /// The grids that every runtime of the formats is known to load beside others, or, if there are no two of them, some runtime
  /// of each; all, if none does.
  private func loadable(
    _ grids: [GridFormat], _ formats: [OutputFormatName], _ traits: ModelTraits
  ) -> [GridFormat] {
    func runtimes(_ grid: GridFormat) -> [[RuntimeSupport]] {
      formats.map { $0.format.runtimes(for: grid, of: traits.union(.severalGrids)) }
    }
    let byAll = grids.filter { runtimes($0).joined().allSatisfy(\.loads) }
    if byAll.count > 1 { return byAll }
    let bySome = grids.filter { runtimes($0).allSatisfy { $0.contains(where: \.loads) } }
    return bySome.isEmpty ? grids : bySome
  }

  /// The linears as different from each other as they may become: whether formats hold that is known before anything is
  /// measured.
  private func differing(_ linears: [LinearDescription], _ units: [AllocationUnit]) -> [LinearDescription] {
    var grids: [String: GridFormat] = [:]
    for (number, unit) in units.enumerated() {
      let candidate = number == 0 ? unit.candidates.first : unit.candidates.last
      for module in unit.modules { grids[module] = candidate?.grid }
    }
    return linears.map { linear in
      var linear = linear
      linear.gridFormat = grids[linear.name] ?? linear.gridFormat
      return linear
    }
  }
}

extension Recipe.Resolved {
  /// Gives linears the grids that were chosen for them.
  /// - Throws: ``RecipeError/unknownChoice(_:)``
  mutating func choose(
    _ choices: [Report.Allocation.Choice], of units: [AllocationUnit]
  ) throws(RecipeError) {
    let byModule = Dictionary(uniqueKeysWithValues: choices.map { ($0.module, $0) })
    var grids: [String: GridFormat] = [:]
    for unit in units {
      guard let choice = byModule[unit.modules[0]],
        let chosen = unit.candidates.first(where: { $0.choice(of: choice.module) == choice })
      else { throw .unknownChoice(unit.modules[0]) }
      for module in unit.modules { grids[module] = chosen.grid }
    }
    for (module, grid) in grids { linears[module]?.gridFormat = grid }
    for index in rounded.indices {
      rounded[index].gridFormat = grids[rounded[index].name] ?? rounded[index].gridFormat
    }
    if let head, let grid = grids[head.linear.name] {
      var (linear, treatment) = (head.linear, head.treatment)
      (linear.gridFormat, treatment.gridFormat) = (grid, grid)
      self.head = Recipe.Head(linear: linear, treatment: treatment)
    }
  }
}

extension AllocationUnit {
  /// - Parameter standard: the grid that the recipe says
  fileprivate init(
    _ linears: [LinearDescription], _ grids: [GridFormat], standard: GridFormat, isGGUF: Bool
  ) {
    candidates = grids.map { grid in
      Candidate(
        grid: grid, type: isGGUF ? GGUFTensorType(grid) : nil,
        storedBits: linears.reduce(0) { $0 + $1.storedBits(in: grid) })
    }.sorted { $0.storedBits < $1.storedBits }
    modules = linears.map(\.name)
    let bits = linears.reduce(0) { $0 + $1.storedBits(in: standard) }
    let distances = candidates.map { abs($0.storedBits - bits) }
    self.standard = distances.firstIndex(of: distances.min() ?? 0) ?? 0
  }
}
