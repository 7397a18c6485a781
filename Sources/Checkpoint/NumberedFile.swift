/// A name `PREFIX-00001-of-00003` with an ending: one of several files that are numbered together from 1.
public struct NumberedFile: Hashable, Sendable {
  /// What the files of a series have in common.
  public struct Series: Hashable, Sendable {
    public let prefix: String
    public let count: Int
    public let suffix: String

    public func name(_ number: Int) -> String {
      func padded(_ value: Int) -> String { String(String(100_000 + value).dropFirst()) }
      return "\(prefix)-\(padded(number))-of-\(padded(count))\(suffix)"
    }
  }

  public let series: Series
  public let number: Int

  /// - Parameter suffix: the name's ending, with its dot
  /// - Returns: nil for a name of another kind
  public init?(_ name: String, suffix: String) {
    guard name.hasSuffix(suffix) else { return nil }
    let stem = Array(name.utf8.dropLast(suffix.utf8.count))
    let tail = stem.suffix(15)  // -00001-of-00003
    guard stem.count > 15, tail.first == UInt8(ascii: "-"),
      tail.dropFirst(6).prefix(4).elementsEqual("-of-".utf8),
      let number = Self.digits(tail.dropFirst(1).prefix(5)), let count = Self.digits(tail.suffix(5))
    else { return nil }
    series = Series(
      prefix: String(decoding: stem.dropLast(15), as: UTF8.self), count: count, suffix: suffix)
    self.number = number
  }

  private static func digits(_ text: ArraySlice<UInt8>) -> Int? {
    text.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
      ? Int(String(decoding: text, as: UTF8.self)) : nil
  }
}
