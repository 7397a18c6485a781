import Compute
import Tensors

/// The places of the largest elements of a matrix that comes a panel at a time.
///
/// Memory grows with what is kept, not with the matrix. Of equal elements the first are kept, so that the
/// outcome does not depend on the panels.
struct TopPlaces {
  private let count: Int
  /// Score and place in one number that orders by falling score, then rising place: the score's bit pattern,
  /// which for positive floats orders as they do, over the place's complement.
  private var keys: [UInt64] = []
  /// What an element needs for a place among those kept so far.
  private var threshold: Float = 0

  init(_ count: Int) {
    self.count = count
  }

  /// Offers the elements of the rows from `firstRow` on.
  /// - Parameter scores: none negative
  mutating func offer(_ scores: Matrix, firstRow: Int, backend: any OutlierSweeps) {
    guard count > 0 else { return }
    // Slices short enough for the threshold to rise before most of them have been seen.
    let sliceRows = max(1, (1 << 14) / max(scores.columns, 1))
    for start in stride(from: 0, to: scores.rows, by: sliceRows) {
      let slice = scores.rows(start..<min(start + sliceRows, scores.rows))
      let offset = (firstRow + start) * scores.columns
      for element in backend.elements(of: slice, atLeast: threshold) {
        let place = UInt32(offset + element.place)
        keys.append(UInt64(element.value.bitPattern) << 32 | UInt64(~place))
      }
      if keys.count >= 2 * count + (1 << 10) { prune() }
    }
  }

  /// The places of the largest elements, in rising order.
  mutating func places() -> [Int] {
    prune()
    return keys.map { Int(~UInt32(truncatingIfNeeded: $0)) }.sorted()
  }

  private mutating func prune() {
    guard keys.count > count else { return }
    keys.moveLargest(count)
    keys.removeSubrange(count...)
    if let least = keys.min() { threshold = Float(bitPattern: UInt32(least >> 32)) }
  }
}

extension [UInt64] {
  /// Reorders distinct elements so that the `count` largest come first: Hoare's selection.
  fileprivate mutating func moveLargest(_ count: Int) {
    var (low, high) = (0, self.count - 1)
    while low < high {
      let pivot = self[(low + high) / 2]
      var (left, right) = (low, high)
      while left <= right {
        while self[left] > pivot { left += 1 }
        while self[right] < pivot { right -= 1 }
        if left <= right {
          swapAt(left, right)
          left += 1
          right -= 1
        }
      }
      // What lies between right and left is the pivot, at its final place.
      if count - 1 <= right {
        high = right
      } else if count - 1 >= left {
        low = left
      } else {
        return
      }
    }
  }
}
