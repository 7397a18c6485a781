extension Range<Int> {
  /// Consecutive ranges of `size` that cover this one; the last may be shorter.
  public func parts(of size: Int) -> [Range<Int>] {
    stride(from: lowerBound, to: upperBound, by: size).map { $0..<Swift.min($0 + size, upperBound) }
  }
}
