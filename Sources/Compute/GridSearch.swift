import Quantization
import Tensors

/// The grids that a search tries for one group of weights.
///
/// A candidate shrinks the group's range lo … hi, which always holds 0, and so gives up its farthest weights
/// for a finer grid.
public struct GridCandidates: Sendable {
  /// Factors on lo and hi, 1 for the whole range.
  public let shrinks: [Float]
  /// Whether the two ends of an asymmetric range also shrink one without the other.
  public let isIndependent: Bool

  public init(shrinks: [Float], isIndependent: Bool) {
    self.shrinks = shrinks
    self.isIndependent = isIndependent
  }

  /// Only the grid from minimum to maximum.
  public static let range = GridCandidates(shrinks: [1], isIndependent: false)

  /// The candidate for which `error` is least.
  /// - Parameters:
  ///   - range: the group's least and greatest weight, widened to hold 0
  ///   - error: the cost of a scale and a zero point; from `limit` on any value will do
  public func best(
    for range: (low: Float, high: Float), format: GridFormat,
    error: (_ scale: Float, _ zeroPoint: Float, _ limit: Float) -> Float
  ) -> (scale: Float, zeroPoint: Float) {
    var best = format.grid(low: range.low, high: range.high)
    guard shrinks.count > 1 else { return best }
    var leastError = error(best.scale, best.zeroPoint, .infinity)
    func attempt(_ lowShrink: Float, _ highShrink: Float) {
      let candidate = format.grid(low: range.low * lowShrink, high: range.high * highShrink)
      let cost = error(candidate.scale, candidate.zeroPoint, leastError)
      if cost < leastError { (best, leastError) = (candidate, cost) }
    }
    if isIndependent && !format.isSymmetric {
      for low in shrinks { for high in shrinks { attempt(low, high) } }
    } else {
      for shrink in shrinks { attempt(shrink, shrink) }
    }
    return best
  }
}

extension GridFormat {
  /// The grid that spans low … high: scale and zero point as the outputs can store them.
  public func grid(low: Float, high: Float) -> (scale: Float, zeroPoint: Float) {
    let steps = Float(maximumCode)
    if isSymmetric {
      let reach = max(-low, high)
      return (storable(reach > 0 ? 2 * reach / steps : 1), Float(middleCode))
    }
    guard high > low else { return (storable(1), Float(middleCode)) }
    let scale = storable((high - low) / steps)
    let zeroPoint = (-low / scale).rounded(.toNearestOrEven)
    return (
      scale,
      min(max(zeroPoint, Float(zeroPointRange.lowerBound)), Float(zeroPointRange.upperBound))
    )
  }
}

extension UnsafeBufferPointer<Float> {
  /// Least and greatest element, widened to hold 0.
  @inlinable
  public var rangeHoldingZero: (low: Float, high: Float) {
    var (low, high): (Float, Float) = (0, 0)
    for index in 0..<count {
      let value = unsafe self[index]
      low = Swift.min(low, value)
      high = Swift.max(high, value)
    }
    return (low, high)
  }
}
