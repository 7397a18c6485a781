import Quantization
import Tensors

/// The grids that a search tries for one group of weights.
///
/// A candidate shrinks the group's range lo … hi and so gives up its farthest weights for a finer grid.
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
  ///   - range: the group's least and greatest weight
  ///   - error: the cost of a scale and of the code, whole or not, that stands for 0; from `limit` on any value will do
  public func best(
    for range: (low: Float, high: Float), format: GridFormat,
    error: (_ scale: Float, _ zeroPoint: Float, _ limit: Float) -> Float
  ) -> GridPoint {
    let range = format.spanned(range)
    var best = format.grid(low: range.low, high: range.high)
    let isSigned = format.isSymmetric && format.hasSignedScales
    guard shrinks.count > 1 || isSigned else { return best }
    var leastError = error(best.scale, format.zeroPoint(of: best), .infinity)
    func attempt(_ candidate: GridPoint, margin: Float = 1) {
      let limit = leastError * margin
      let cost = error(candidate.scale, format.zeroPoint(of: candidate), limit)
      if cost < limit { (best, leastError) = (candidate, cost) }
    }
    if format.isSymmetric {
      // Where no weight needs the level that is one more, both signs cost the same, and rounding must not decide.
      let margin: Float = 0.9999
      for shrink in shrinks {
        let candidate = format.grid(low: range.low * shrink, high: range.high * shrink)
        attempt(candidate)
        if isSigned {
          attempt(GridPoint(scale: candidate.scale, shift: candidate.shift - 1), margin: margin)
        }
      }
      if isSigned { attempt(format.signedGrid(low: range.low, high: range.high), margin: margin) }
    } else {
      // Both ends shrink towards what the range is spanned around.
      let center = format.center(of: range)
      let (below, above) = (center - range.low, range.high - center)
      for low in shrinks {
        for high in isIndependent ? shrinks : [low] {
          attempt(format.grid(low: center - below * low, high: center + above * high))
        }
      }
    }
    return best
  }
}

/// The scale and the shift of one group of weights.
public struct GridPoint: Sendable, Equatable {
  public var scale: Float
  public var shift: Float

  public init(scale: Float, shift: Float) {
    self.scale = scale
    self.shift = shift
  }
}

extension GridFormat {
  /// The code, whole or not, that stands for 0.
  fileprivate func zeroPoint(of point: GridPoint) -> Float {
    hasOwnOffsets ? -point.shift / point.scale : point.shift
  }

  /// The range that a grid for weights in `range` has to span: one whose offset is a multiple of the scale holds 0, and one
  /// whose offset has no sign does not lie above it.
  func spanned(_ range: (low: Float, high: Float)) -> (low: Float, high: Float) {
    guard hasOwnOffsets else { return (min(range.low, 0), max(range.high, 0)) }
    return superBlocks == nil ? range : (min(range.low, 0), max(range.high, min(range.low, 0)))
  }

  /// The point towards which a spanned range shrinks: 0, if it holds that.
  func center(of range: (low: Float, high: Float)) -> Float {
    hasOwnOffsets ? (range.low + range.high) / 2 : 0
  }

  /// The finest symmetric grid that clips nothing by more than half a step: the farther end lies on the side that has
  /// one level more, where it is a grid point if the nearer end is near enough.
  func signedGrid(low: Float, high: Float) -> GridPoint {
    let middle = Float(middleCode)
    let isAbove = high > -low
    let (far, near) = isAbove ? (high, -low) : (-low, high)
    let scale = storable(far > 0 ? max(far / middle, near / (middle - 0.5)) : emptyScale)
    return GridPoint(scale: scale, shift: isAbove ? middle - 1 : middle)
  }

  /// The grid that spans low … high: scale and shift as the outputs can store them.
  public func grid(low: Float, high: Float) -> GridPoint {
    let steps = Float(maximumCode)
    if isSymmetric {
      let reach = max(-low, high)
      return GridPoint(
        scale: storable(reach > 0 ? 2 * reach / steps : emptyScale), shift: Float(middleCode))
    }
    if hasOwnOffsets {
      // An offset of super-blocks has no sign.
      let low = superBlocks == nil ? low : min(low, 0)
      return GridPoint(scale: storable((high - low) / steps), shift: storable(offset: low))
    }
    guard high > low else { return GridPoint(scale: storable(emptyScale), shift: Float(middleCode)) }
    let scale = storable((high - low) / steps)
    let zeroPoint = (-low / scale).rounded(.toNearestOrEven)
    return GridPoint(
      scale: scale,
      shift: min(max(zeroPoint, Float(zeroPointRange.lowerBound)), Float(zeroPointRange.upperBound)))
  }

  /// The scale of a group of zeros: any, but for one that others share a unit with.
  private var emptyScale: Float { superBlocks == nil ? 1 : 0 }
}

extension UnsafeBufferPointer<Float> {
  /// Least and greatest element.
  @inlinable
  public var range: (low: Float, high: Float) {
    guard count > 0 else { return (0, 0) }
    var (low, high) = unsafe (self[0], self[0])
    for index in 1..<count {
      let value = unsafe self[index]
      low = Swift.min(low, value)
      high = Swift.max(high, value)
    }
    return (low, high)
  }
}
