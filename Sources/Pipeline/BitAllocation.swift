import Checkpoint
import Export
import Quantization

/// Linears that have to have one grid, as runtimes fuse them or keep them in one tensor, and the grids that they may have.
struct AllocationUnit: Sendable {
  /// What a grid takes of the linears, all in all.
  struct Candidate: Sendable {
    let grid: GridFormat
    /// Of a GGUF file.
    let type: GGUFTensorType?
    let storedBits: Int

    func choice(of module: String) -> Report.Allocation.Choice {
      Report.Allocation.Choice(module: module, bits: grid.bitWidth.rawValue, type: type?.name)
    }
  }

  /// The modules' names; the first one stands for all.
  let modules: [String]
  /// From the fewest bits on.
  let candidates: [Candidate]
  /// The candidate that is nearest to what the recipe says.
  let standard: Int
}

/// What a choice of bits has to decide, and within what limit.
struct AllocationProblem: Sendable {
  let averageBits: Double
  let units: [AllocationUnit]
  /// Of all linears that are quantized.
  private let weights: Int
  /// What those take that nothing is to be chosen of.
  private let fixedBits: Int

  /// - Parameters:
  ///   - averageBits: bits a weight that all are to take at most
  ///   - linears: all that are quantized, with the grids that the recipe says
  ///   - units: those that something is to be chosen of
  /// - Throws: ``SettingsError`` if there is nothing to choose, or no choice takes so many bits
  init(
    averageBits: Double, _ linears: [LinearDescription], _ units: [AllocationUnit]
  ) throws(SettingsError) {
    self.averageBits = averageBits
    self.units = units
    let free = Set(units.flatMap(\.modules))
    weights = linears.reduce(0) { $0 + $1.outFeatures * $1.inFeatures }
    fixedBits = linears.reduce(0) { sum, linear in
      sum + (free.contains(linear.name) ? 0 : linear.gridFormat.map(linear.storedBits) ?? 0)
    }
    let least = units.reduce(0) { $0 + $1.candidates[0].storedBits }
    let most = units.reduce(0) { $0 + $1.candidates[$1.candidates.count - 1].storedBits }
    if least == most {
      throw SettingsError(
        key: "average-bits", value: "\(averageBits)",
        mend: "rules, or bit-choices, leave nothing to choose: every linear has the grid that it has")
    }
    guard limit < least || averageBits > average(most) else { return }
    throw SettingsError(
      key: "average-bits", value: "\(averageBits)",
      mend: "with scales and all, the grids that this model's linears may have take "
        + "\((average(least) * 100).rounded(.up) / 100) to \((average(most) * 100).rounded(.down) / 100) bits a weight; "
        + "symmetric grids and bit-choices allow others"
    )
  }

  /// What the units may take together.
  var limit: Int { Int((averageBits * Double(weights)).rounded()) - fixedBits }

  /// Bits a weight of all linears, where the units take so many bits.
  func average(_ bits: Int) -> Double { Double(fixedBits + bits) / Double(weights) }
}

/// Chooses one option of each of many units, so that the sum of what they cost is small and the bits are within a limit.
///
/// By Lagrange's method: of every unit's options those count that are on the lower convex hull of cost over bits, and steps
/// along the hulls are taken from the one that saves most for a bit on. Where the next does not fit, later ones may. The
/// result is no worse than the best one for a limit that is smaller by the largest step.
enum BitAllocation {
  struct Option: Equatable {
    let bits: Int
    let cost: Double
  }

  /// A step from one option of a unit to a larger one.
  private struct Step {
    let unit: Int
    let from: Int
    let to: Int
    let bits: Int
    let gain: Double

    var slope: Double { gain / Double(bits) }
  }

  /// - Parameter units: the options of each, from the fewest bits on
  /// - Returns: the number of an option of each; nil if even the smallest ones take more bits than `limit`
  static func choose(_ units: [[Option]], limit: Int) -> [Int]? {
    var free = limit - units.reduce(0) { $0 + $1[0].bits }
    if free < 0 { return nil }
    var chosen = [Int](repeating: 0, count: units.count)
    let steps = units.enumerated().flatMap { unit, options in hull(options, unit) }
    // A hull's own steps are in order; equals go by the units' order.
    for step in steps.sorted(by: { ($1.slope, $0.unit) < ($0.slope, $1.unit) })
    where chosen[step.unit] == step.from && step.bits <= free {
      chosen[step.unit] = step.to
      free -= step.bits
    }
    // What is left may be enough for an option beside the hull.
    while let step = best(units, chosen, within: free) {
      chosen[step.unit] = step.to
      free -= step.bits
    }
    return chosen
  }

  /// The steps along the lower convex hull of a unit's options.
  private static func hull(_ options: [Option], _ unit: Int) -> [Step] {
    var steps: [Step] = []
    var place = 0
    while let next = steepest(options, unit, from: place) {
      steps.append(next)
      place = next.to
    }
    return steps
  }

  private static func steepest(_ options: [Option], _ unit: Int, from place: Int, within free: Int = .max)
    -> Step?
  {
    options.indices.dropFirst(place + 1).compactMap { to -> Step? in
      let step = Step(
        unit: unit, from: place, to: to, bits: options[to].bits - options[place].bits,
        gain: options[place].cost - options[to].cost)
      return step.bits > 0 && step.bits <= free && step.gain > 0 ? step : nil
    }.max { $0.slope < $1.slope }
  }

  private static func best(_ units: [[Option]], _ chosen: [Int], within free: Int) -> Step? {
    units.enumerated().compactMap { unit, options in
      steepest(options, unit, from: chosen[unit], within: free)
    }.max { $0.gain < $1.gain }
  }
}

extension LinearDescription {
  /// What it takes in a grid, as ``QuantizedLinear/bitsPerWeight`` counts.
  func storedBits(in grid: GridFormat) -> Int {
    let groups = grid.groupSize.groupCount(inFeatures: inFeatures)
    let outlierBits =
      switch outliers {
      case .unstructured(let count): 48 * count + 64 * (outFeatures + 1)
      case .structured(let columns): 16 * outFeatures * columns + 32 * columns
      case nil: 0
      }
    return outFeatures * (inFeatures * grid.bitWidth.rawValue + grid.storedBits(groups: groups)) + outlierBits
  }
}
