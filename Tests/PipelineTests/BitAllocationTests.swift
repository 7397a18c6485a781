import TestSupport
import Testing

@testable import Pipeline

/// The choice of one option for each of many units.
struct BitAllocationTests {
  private typealias Option = BitAllocation.Option

  /// Units of random sizes whose costs fall with the bits, mostly, and not always by less.
  private static func units(_ count: Int, seed: UInt64) -> [[Option]] {
    var generator = SeededGenerator(seed: seed)
    return (0..<count).map { _ in
      let weights = Int.random(in: 1...9, using: &generator)
      var cost = Double.random(in: 0...100, using: &generator)
      return (2...6).map { bits in
        defer { cost *= Double.random(in: 0.1...1.05, using: &generator) }
        return Option(bits: weights * bits, cost: cost)
      }
    }
  }

  private static func bits(_ units: [[Option]], _ chosen: [Int]) -> Int {
    zip(units, chosen).reduce(0) { $0 + $1.0[$1.1].bits }
  }

  private static func cost(_ units: [[Option]], _ chosen: [Int]) -> Double {
    zip(units, chosen).reduce(0) { $0 + $1.0[$1.1].cost }
  }

  /// The least cost within a limit, of all choices that there are.
  private static func least(_ units: ArraySlice<[Option]>, limit: Int) -> Double {
    guard let first = units.first else { return 0 }
    return first.filter { $0.bits <= limit }.map {
      $0.cost + least(units.dropFirst(), limit: limit - $0.bits)
    }.min() ?? .infinity
  }

  @Test(arguments: 0..<40 as Range<UInt64>)
  func `it is within the limit, and as good as any for a limit that is a step smaller`(_ seed: UInt64) throws
  {
    let units = Self.units(6, seed: seed)
    let least = Self.bits(units, units.map { _ in 0 })
    let most = Self.bits(units, units.map { $0.count - 1 })
    let largestStep = units.map { $0[4].bits - $0[0].bits }.max() ?? 0
    for limit in stride(from: least, through: most + 3, by: 5) {
      let chosen = try #require(BitAllocation.choose(units, limit: limit))
      #expect(Self.bits(units, chosen) <= limit)
      let bound = Self.least(units[...], limit: limit - largestStep)
      #expect(Self.cost(units, chosen) <= bound + 1e-9, "limit \(limit)")
    }
    #expect(BitAllocation.choose(units, limit: least - 1) == nil)
  }

  @Test func `an option that costs more than a smaller one is never taken`() throws {
    let unit = [Option(bits: 2, cost: 5), Option(bits: 3, cost: 6), Option(bits: 4, cost: 1)]
    #expect(BitAllocation.choose([unit], limit: 3) == [0])
    #expect(BitAllocation.choose([unit], limit: 4) == [2])
    // One beside the hull is, where the next on it does not fit.
    let other = [Option(bits: 2, cost: 9), Option(bits: 3, cost: 8), Option(bits: 4, cost: 1)]
    #expect(BitAllocation.choose([other], limit: 3) == [1])
  }

  @Test func `what costs no number is never gained by`() {
    let unit = [
      Option(bits: 2, cost: .infinity), Option(bits: 3, cost: .infinity), Option(bits: 4, cost: .nan),
    ]
    #expect(BitAllocation.choose([unit], limit: 9) == [0])
  }

  @Test func `bits go where they save most`() throws {
    func unit(_ weights: Int, _ sensitivity: Double) -> [Option] {
      (2...6).map { Option(bits: weights * $0, cost: sensitivity * pow4(-$0)) }
    }
    func pow4(_ exponent: Int) -> Double { (0..<(-exponent)).reduce(1) { value, _ in value / 4 } }
    // Sixteen times as sensitive is worth two bits.
    #expect(BitAllocation.choose([unit(10, 1), unit(10, 16)], limit: 60) == [0, 2])
    #expect(BitAllocation.choose([unit(10, 1), unit(10, 1)], limit: 60) == [1, 1])
    #expect(BitAllocation.choose([], limit: 0) == [])
  }
}
