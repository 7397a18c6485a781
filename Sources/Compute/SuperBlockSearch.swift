import Quantization
import Tensors

extension GridSweeps {
  /// For every row and group the grid, among those that can be stored, that costs least when every column's error counts
  /// with its importance.
  /// - Parameters: as of ``searchGrid(_:importance:candidates:into:)``
  public func chooseGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    searchGrid(weights, importance: importance, candidates: candidates, into: grid)
    guard let blocks = grid.format.superBlocks else { return }
    let host = download(grid)
    let groupWeights = (0..<grid.groups).map { group in
      importance[grid.columns(ofGroup: group)].reduce(0, +)
    }
    for row in 0..<host.outFeatures {
      for block in 0..<blocks.count(groups: host.groups) {
        let groups = block * blocks.groups..<min((block + 1) * blocks.groups, host.groups)
        host.code(row, block, groups, weights: groupWeights)
      }
    }
    for (source, target) in zip(host.matrices, grid.matrices) {
      withHostMatrix(target, for: .writing) { $0.copy(from: source) }
    }
  }
}

extension Grid {
  /// Brings the grids of a super-block to multiples of units that it chooses.
  /// - Parameters:
  ///   - groups: of the super-block
  ///   - weights: what the error of a scale counts, for every group of the row
  fileprivate func code(_ row: Int, _ block: Int, _ groups: Range<Int>, weights: [Float]) {
    guard let units, let coding = format.superBlocks else { preconditionFailure("no super-blocks") }
    let weights = Array(weights[groups])
    let middle = Float(format.middleCode)
    // The scale of a symmetric grid has its sign where it is stored.
    let wanted = groups.map { group in
      format.isSymmetric && shifts[row, group] != middle ? -scales[row, group] : scales[row, group]
    }
    let coded = Multiples(of: wanted, weights: weights, in: coding.scaleMultiples, least: 1)
    units.scales[row, block] = coded.unit
    for (group, multiple) in zip(groups, coded.values) {
      let scale = coded.unit * Float(multiple)
      if format.isSymmetric {
        scales[row, group] = abs(scale)
        shifts[row, group] = scale > 0 ? middle : middle - 1
      } else {
        // The middle of the range stays where it was.
        shifts[row, group] += (scales[row, group] - scale) * Float(format.maximumCode) / 2
        scales[row, group] = scale
      }
    }
    guard let offsetUnits = units.offsets, let range = coding.offsetMultiples else { return }
    let depths = groups.map { max(-shifts[row, $0], 0) }
    let codedOffsets = Multiples(of: depths, weights: weights, in: range, least: 0)
    offsetUnits[row, block] = codedOffsets.unit
    for (group, multiple) in zip(groups, codedOffsets.values) {
      shifts[row, group] = 0 - codedOffsets.unit * Float(multiple)
    }
  }
}

/// Whole multiples of one unit, a float16, that stand for given numbers.
private struct Multiples {
  var unit: Float
  var values: [Int]

  /// What units are tried to begin with: those that bring the largest number to its largest multiple, and so many tenths of
  /// a unit to either side of it.
  private static let tenths = -9...9
  private static let leastUnit: Float = 0x1p-24
  private static let greatestUnit: Float = 65_504

  /// The unit and multiples with the least weighted squared error.
  /// - Parameters:
  ///   - range: of multiples; below 0 only if numbers may be
  ///   - least: the magnitude that no multiple falls below
  init(of numbers: [Float], weights: [Float], in range: ClosedRange<Int>, least: Int) {
    let isSigned = range.lowerBound < 0
    let extreme = numbers.reduce(0 as Float) { abs($1) > abs($0) ? $1 : $0 }
    unit = Self.leastUnit
    values = numbers.map { $0 < 0 ? -least : least }
    guard abs(extreme) > Self.leastUnit / 2 else { return }
    // The side with one multiple more is for the largest number.
    let bound = Float(isSigned ? range.lowerBound : range.upperBound)
    var leastError = Float.infinity
    for tenth in Self.tenths {
      var candidate = Self.storable(extreme / (bound + Float(tenth) / 10))
      var multiples = Self.multiples(of: numbers, unit: candidate, in: range, least: least)
      var (product, square): (Float, Float) = (0, 0)
      for (index, multiple) in multiples.enumerated() {
        product += weights[index] * numbers[index] * Float(multiple)
        square += weights[index] * Float(multiple) * Float(multiple)
      }
      if square > 0 && product / square * candidate > 0 {
        candidate = Self.storable(product / square)
        multiples = Self.multiples(of: numbers, unit: candidate, in: range, least: least)
      }
      var error: Float = 0
      for (index, multiple) in multiples.enumerated() {
        let difference = numbers[index] - candidate * Float(multiple)
        error += weights[index] * difference * difference
      }
      if error < leastError { (leastError, unit, values) = (error, candidate, multiples) }
    }
  }

  private static func storable(_ unit: Float) -> Float {
    let magnitude = min(max(abs(unit), leastUnit), greatestUnit).rounded(to: .float16)
    return unit < 0 ? -magnitude : magnitude
  }

  private static func multiples(
    of numbers: [Float], unit: Float, in range: ClosedRange<Int>, least: Int
  ) -> [Int] {
    numbers.map { number in
      let nearest = (number / unit).rounded(.toNearestOrEven)
      let multiple = Int(min(max(nearest, Float(range.lowerBound)), Float(range.upperBound)))
      return abs(multiple) >= least ? multiple : (number * unit < 0 ? -least : least)
    }
  }
}
