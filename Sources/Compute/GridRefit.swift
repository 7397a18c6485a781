import Quantization

/// What the objective is in the neighbourhood of one group's scale s and offset o, all other things equal:
/// f(δs, δo) = f(0, 0) − 2 (a δs + b δo) + A δs² + 2 M δs δo + B δo².
public struct RefitForms: Sendable {
  /// a: codes · G over the group's columns; codes less the zero point where the offset follows the scale
  public var scaleSlope = 0.0
  /// A
  public var scaleCurvature = 0.0
  /// b
  public var offsetSlope = 0.0
  /// B
  public var offsetCurvature = 0.0
  /// M
  public var mixedCurvature = 0.0

  public init() {}

  private var determinant: Double { scaleCurvature * offsetCurvature - mixedCurvature * mixedCurvature }

  /// Whether scale and offset are two variables: where codes are all the same, or as good as, both do the same thing.
  var areIndependent: Bool {
    offsetCurvature > 0 && determinant > 1e-6 * scaleCurvature * offsetCurvature
  }

  /// The scale's step to the optimum of both.
  var jointScaleStep: Double {
    (scaleSlope * offsetCurvature - offsetSlope * mixedCurvature) / determinant
  }

  /// The offset's step to its optimum for a scale that has changed.
  func offsetStep(forScaleChange change: Double) -> Double {
    (offsetSlope - mixedCurvature * change) / offsetCurvature
  }

  /// How much a change lowers the objective.
  func gain(_ scale: Double, _ offset: Double) -> Double {
    scale * (2 * scaleSlope - scale * scaleCurvature)
      + offset * (2 * (offsetSlope - mixedCurvature * scale) - offset * offsetCurvature)
  }
}

extension Grid {
  /// Moves a grid in the host's memory to the nearest to its optimum that can be stored, if that lowers the objective.
  /// - Returns: the changes of scale and, where it is a number of its own, offset; nil if the grid stays
  public func refit(_ row: Int, _ group: Int, _ forms: RefitForms) -> (scale: Float, offset: Float)? {
    guard forms.scaleCurvature > 0 && forms.scaleCurvature.isFinite else { return nil }
    let present = GridPoint(scale: scales[row, group], shift: shifts[row, group])
    guard format.hasOwnOffsets else {
      let optimum = present.scale + Float(forms.scaleSlope / forms.scaleCurvature)
      let scale = optimum > 0 ? storable(scale: optimum, row, group) : present.scale
      // Rounding can carry the scale past the optimum, to where the objective is higher than before.
      guard forms.gain(Double(scale - present.scale), 0) > 0 else { return nil }
      scales[row, group] = scale
      return (scale - present.scale, 0)
    }
    guard forms.areIndependent else { return nil }
    let optimum = present.scale + Float(forms.jointScaleStep)
    let scale = optimum > 0 ? storable(scale: optimum, row, group) : present.scale
    let change = Double(scale - present.scale)
    // The best offset for the scale that can be stored.
    let shift = present.shift + Float(forms.offsetStep(forScaleChange: change))
    let offset = storable(offset: shift, row, group)
    guard forms.gain(change, Double(offset - present.shift)) > 0 else { return nil }
    scales[row, group] = scale
    shifts[row, group] = offset
    return (scale - present.scale, offset - present.shift)
  }

  /// Moves the units of a super-block of a grid in the host's memory to the nearest to their optimum that can be stored, if
  /// that lowers the objective. What `forms` are of is a unit for the scales and one for the offsets.
  /// - Returns: the changes of both; nil if they stay
  public func refitUnits(_ row: Int, _ block: Int, _ forms: RefitForms) -> (scale: Float, offset: Float)? {
    guard let units, let blocks = format.superBlocks else { preconditionFailure("no super-blocks") }
    guard forms.scaleCurvature > 0 && forms.scaleCurvature.isFinite else { return nil }
    let (unit, offsetUnit) = (units.scales[row, block], units.offsets?[row, block] ?? 0)
    let movesOffsets = forms.areIndependent
    let step = movesOffsets ? forms.jointScaleStep : forms.scaleSlope / forms.scaleCurvature
    let newUnit = Self.storable(unit: unit + Float(step), like: unit)
    let change = Double(newUnit - unit)
    // The best unit of the offsets for that of the scales that can be stored.
    let newOffsetUnit =
      movesOffsets
      ? Self.storable(
        unit: offsetUnit + Float(forms.offsetStep(forScaleChange: change)), like: offsetUnit) : offsetUnit
    guard forms.gain(change, Double(newOffsetUnit - offsetUnit)) > 0 else { return nil }
    for group in block * blocks.groups..<min((block + 1) * blocks.groups, groups) {
      scales[row, group] = abs(newUnit) * (scales[row, group] / abs(unit)).rounded()
      if let offsets = units.offsets, offsets[row, block] != 0 {
        shifts[row, group] = 0 - newOffsetUnit * (-shifts[row, group] / offsetUnit).rounded()
      }
    }
    units.scales[row, block] = newUnit
    units.offsets?[row, block] = newOffsetUnit
    return (newUnit - unit, newOffsetUnit - offsetUnit)
  }

  /// A unit stays on its side of 0.
  private static func storable(unit: Float, like present: Float) -> Float {
    unit * present > 0 ? SuperBlockUnits.storable(unit) : present
  }

  private func storable(scale: Float, _ row: Int, _ group: Int) -> Float {
    guard let units, let blocks = format.superBlocks else { return format.storable(scale) }
    let unit = units.scales[row, group / blocks.groups]
    // A symmetric grid's sign stays what it is.
    let isBelow = format.isSymmetric && (unit < 0) == (shifts[row, group] == Float(format.middleCode))
    let most = isBelow ? -blocks.scaleMultiples.lowerBound : blocks.scaleMultiples.upperBound
    return abs(unit) * min(max((scale / abs(unit)).rounded(.toNearestOrEven), 1), Float(most))
  }

  private func storable(offset: Float, _ row: Int, _ group: Int) -> Float {
    guard let unit = units?.offsets, let blocks = format.superBlocks,
      let multiples = blocks.offsetMultiples
    else { return format.storable(offset: offset) }
    let step = unit[row, group / blocks.groups]
    let multiple = (-offset / step).rounded(.toNearestOrEven)
    return 0 - step * min(max(multiple, Float(multiples.lowerBound)), Float(multiples.upperBound))
  }
}
