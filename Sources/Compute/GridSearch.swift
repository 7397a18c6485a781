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
    let isSigned = format.isSymmetric && format.hasSignedScales
    guard shrinks.count > 1 || isSigned else { return best }
    var leastError = error(best.scale, best.zeroPoint, .infinity)
    func attempt(_ candidate: (scale: Float, zeroPoint: Float), margin: Float = 1) {
      let limit = leastError * margin
      let cost = error(candidate.scale, candidate.zeroPoint, limit)
      if cost < limit { (best, leastError) = (candidate, cost) }
    }
    if format.isSymmetric {
      // Where no weight needs the level that is one more, both signs cost the same, and rounding must not decide.
      let margin: Float = 0.9999
      for shrink in shrinks {
        let candidate = format.grid(low: range.low * shrink, high: range.high * shrink)
        attempt(candidate)
        if isSigned { attempt((candidate.scale, candidate.zeroPoint - 1), margin: margin) }
      }
      if isSigned { attempt(format.signedGrid(low: range.low, high: range.high), margin: margin) }
    } else if isIndependent {
      for low in shrinks {
        for high in shrinks { attempt(format.grid(low: range.low * low, high: range.high * high)) }
      }
    } else {
      for shrink in shrinks { attempt(format.grid(low: range.low * shrink, high: range.high * shrink)) }
    }
    return best
  }
}

extension GridFormat {
  /// The finest symmetric grid that clips nothing by more than half a step: the farther end lies on the side that has
  /// one level more, where it is a grid point if the nearer end is near enough.
  func signedGrid(low: Float, high: Float) -> (scale: Float, zeroPoint: Float) {
    let middle = Float(middleCode)
    let isAbove = high > -low
    let (far, near) = isAbove ? (high, -low) : (-low, high)
    let scale = storable(far > 0 ? max(far / middle, near / (middle - 0.5)) : 1)
    return (scale, isAbove ? middle - 1 : middle)
  }

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
