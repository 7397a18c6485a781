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
    let scales = MultipleSearch(in: blocks.scaleMultiples, least: 1, most: blocks.groups)
    let offsets = blocks.offsetMultiples.map { MultipleSearch(in: $0, least: 0, most: blocks.groups) }
    for row in 0..<host.outFeatures {
      for block in 0..<blocks.count(groups: host.groups) {
        let groups = block * blocks.groups..<min((block + 1) * blocks.groups, host.groups)
        host.codeScales(row, block, groups, weights: groupWeights, by: scales)
        if let offsets { host.codeOffsets(row, block, groups, weights: groupWeights, by: offsets) }
      }
    }
    for (source, target) in zip(host.matrices, grid.matrices) {
      withHostMatrix(target, for: .writing) { $0.copy(from: source) }
    }
  }
}

extension Grid {
  /// Brings the scales of a super-block to multiples of a unit that is chosen.
  /// - Parameters:
  ///   - groups: of the super-block
  ///   - weights: what the error of a scale counts, for every group of the row
  fileprivate func codeScales(
    _ row: Int, _ block: Int, _ groups: Range<Int>, weights: [Float], by search: MultipleSearch
  ) {
    guard let units else { preconditionFailure("no super-blocks") }
    let middle = Float(format.middleCode)
    // The scale of a symmetric grid has its sign where it is stored.
    search.run(groups, weights: weights) { group in
      format.isSymmetric && shifts[row, group] != middle ? -scales[row, group] : scales[row, group]
    }
    units.scales[row, block] = search.unit
    for (place, group) in groups.enumerated() {
      let scale = search.unit * search.multiples[place]
      if format.isSymmetric {
        scales[row, group] = abs(scale)
        shifts[row, group] = scale > 0 ? middle : middle - 1
      } else {
        // The middle of the range stays where it was.
        shifts[row, group] += (scales[row, group] - scale) * Float(format.maximumCode) / 2
        scales[row, group] = scale
      }
    }
  }

  /// The same of offsets.
  fileprivate func codeOffsets(
    _ row: Int, _ block: Int, _ groups: Range<Int>, weights: [Float], by search: MultipleSearch
  ) {
    guard let units = units?.offsets else { preconditionFailure("no offsets") }
    search.run(groups, weights: weights) { max(-shifts[row, $0], 0) }
    units[row, block] = search.unit
    for (place, group) in groups.enumerated() {
      shifts[row, group] = 0 - search.unit * search.multiples[place]
    }
  }
}

/// Finds the unit, a float16, of which whole multiples stand for given numbers with the least weighted squared error.
private final class MultipleSearch {
  private(set) var unit: Float = 0
  /// Whole numbers.
  private(set) var multiples: [Float]

  private let range: ClosedRange<Float>
  private let least: Float
  private var trial: [Float]
  private var numbers: [Float]
  private var weights: [Float]

  /// What units are tried to begin with: those that bring the largest number to its largest multiple, and so many tenths of
  /// a unit to either side of it.
  private static let tenths = -9...9

  /// - Parameters:
  ///   - range: of multiples; below 0 only if numbers may be
  ///   - least: the magnitude that no multiple falls below
  ///   - most: numbers at a time
  init(in range: ClosedRange<Int>, least: Int, most: Int) {
    self.range = Float(range.lowerBound)...Float(range.upperBound)
    self.least = Float(least)
    let zeros = [Float](repeating: 0, count: most)
    (multiples, trial, numbers, weights) = (zeros, zeros, zeros, zeros)
  }

  /// - Parameter number: of each of `places`, that `weights` has one of, too
  func run(_ places: Range<Int>, weights all: [Float], _ number: (Int) -> Float) {
    var extreme: Float = 0
    for (index, place) in places.enumerated() {
      numbers[index] = number(place)
      weights[index] = all[place]
      multiples[index] = numbers[index] < 0 ? -least : least
      if abs(numbers[index]) > abs(extreme) { extreme = numbers[index] }
    }
    unit = SuperBlockUnits.least
    guard abs(extreme) > SuperBlockUnits.least / 2 else { return }
    // The side with one multiple more is for the largest number.
    let bound = range.lowerBound < 0 ? range.lowerBound : range.upperBound
    var leastError = Float.infinity
    for tenth in Self.tenths {
      var candidate = SuperBlockUnits.storable(extreme / (bound + Float(tenth) / 10))
      round(places.count, unit: candidate)
      var (product, square): (Float, Float) = (0, 0)
      for index in 0..<places.count {
        let weighted = weights[index] * trial[index]
        product += weighted * numbers[index]
        square += weighted * trial[index]
      }
      if square > 0 && product / square * candidate > 0 {
        candidate = SuperBlockUnits.storable(product / square)
        round(places.count, unit: candidate)
      }
      var error: Float = 0
      for index in 0..<places.count {
        let difference = numbers[index] - candidate * trial[index]
        error += weights[index] * difference * difference
      }
      if error < leastError {
        (leastError, unit) = (error, candidate)
        swap(&multiples, &trial)
      }
    }
  }

  /// Brings the numbers to their nearest multiples.
  private func round(_ count: Int, unit: Float) {
    let inverse = 1 / unit
    for index in 0..<count {
      let number = numbers[index]
      // Ties to even, by what the last digit of so large a number is.
      let nearest = (number * inverse + 0x1.8p23) - 0x1.8p23
      let multiple = min(max(nearest, range.lowerBound), range.upperBound)
      trial[index] = abs(multiple) >= least ? multiple : (number * unit < 0 ? -least : least)
    }
  }
}
