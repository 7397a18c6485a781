/// How much is kept of what nobody works on any more.
public enum Keeping: Sendable, Equatable {
  case all
  /// What is not older.
  case seconds(Double)
  /// The newest ones.
  case count(Int)
  /// The newest ones that together take no more.
  case bytes(Int)

  /// Reads `all`, `7d`, `12h`, `20` or `500GB`; nil if it is none.
  init?(_ text: String) {
    if text == "all" {
      self = .all
    } else if let count = Int(text), (0...1_000_000).contains(count) {
      self = .count(count)
    } else if let seconds = Self.age(text) {
      self = .seconds(seconds)
    } else if let bytes = Self.amount(text, [("MB", 1e6), ("GB", 1e9), ("TB", 1e12)]) {
      self = .bytes(Int(bytes))
    } else {
      return nil
    }
  }

  /// Reads `12h`, `7d` or `2w`, in seconds; nil if it is none.
  public static func age(_ text: String) -> Double? {
    amount(text, [("h", 3_600), ("d", 86_400), ("w", 604_800)])
  }

  private static func amount(_ text: String, _ units: [(name: String, size: Double)]) -> Double? {
    for unit in units where text.hasSuffix(unit.name) {
      guard let value = Double(text.dropLast(unit.name.count)), value >= 0, value <= 1e6 else { return nil }
      return value * unit.size
    }
    return nil
  }

  static let expected = "all, a time such as 7d or 12h, a number, or a size such as 500GB"

  var text: String {
    switch self {
    case .all: "all"
    case .seconds(let seconds):
      seconds.truncatingRemainder(dividingBy: 86_400) == 0
        ? "\(Int(seconds / 86_400))d" : "\(seconds / 3_600)h"
    case .count(let count): "\(count)"
    case .bytes(let bytes): "\(Double(bytes) / 1e9)GB"
    }
  }

  /// Which of several are not kept.
  /// - Parameters:
  ///   - items: the newest first
  ///   - age: in seconds
  ///   - size: in bytes
  func surplus<Item>(of items: [Item], age: (Item) -> Double, size: (Item) -> Int) -> [Item] {
    switch self {
    case .all: return []
    case .seconds(let limit): return items.filter { age($0) > limit }
    case .count(let limit): return Array(items.dropFirst(limit))
    case .bytes(let limit):
      var sum = 0
      return items.filter { item in
        sum += size(item)
        return sum > limit
      }
    }
  }
}
