/// A length cut into blocks of nearly the same size. The cut depends on the length alone, never on threads.
struct Division: Sendable {
  let length: Int
  /// The size of every block but the last, which may be shorter.
  let size: Int

  /// - Parameters:
  ///   - maximum: no block is longer
  ///   - unit: sizes are multiples of it, where `maximum` is
  init(_ length: Int, blocksOfAtMost maximum: Int, multipleOf unit: Int = 1) {
    precondition(length >= 0 && maximum > 0 && unit > 0, "a division has positive blocks")
    self.length = length
    let blocks = max(1, length.dividedRoundingUp(by: maximum))
    let evenly = length.dividedRoundingUp(by: blocks).dividedRoundingUp(by: unit) * unit
    size = max(1, min(evenly, maximum))
  }

  var count: Int { length.dividedRoundingUp(by: size) }

  subscript(block: Int) -> Range<Int> {
    block * size..<min((block + 1) * size, length)
  }
}

extension Int {
  func dividedRoundingUp(by divisor: Int) -> Int { (self + divisor - 1) / divisor }
}
