import Tensors

/// The uniform grids of one linear: one scale and one zero point per row and group of columns.
///
/// Grid point `q` of row i, group g stands for `scales[i, g] · (q − zeroPoints[i, g])`, q = 0 … `maximumCode`.
public struct Grid: Sendable {
  public let format: GridFormat
  public let inFeatures: Int
  /// `[outFeatures, groups]`
  public let scales: Matrix
  /// `[outFeatures, groups]`, whole numbers
  public let zeroPoints: Matrix

  /// Grids to be set, in the host's memory.
  public init(format: GridFormat, outFeatures: Int, inFeatures: Int) {
    let groups = format.groupSize.groupCount(inFeatures: inFeatures)
    self.init(
      format: format, inFeatures: inFeatures, scales: Matrix(rows: outFeatures, columns: groups),
      zeroPoints: Matrix(rows: outFeatures, columns: groups))
  }

  /// - Parameters:
  ///   - scales: `[outFeatures, groups]`
  ///   - zeroPoints: as many
  public init(format: GridFormat, inFeatures: Int, scales: Matrix, zeroPoints: Matrix) {
    self.format = format
    self.inFeatures = inFeatures
    self.scales = scales
    self.zeroPoints = zeroPoints
  }

  public var outFeatures: Int { scales.rows }
  public var groups: Int { scales.columns }
  /// Columns that share one grid; the last group may be shorter.
  public var columnsPerGroup: Int { format.groupSize.columns(inFeatures: inFeatures) }

  /// The grids of some rows, over the same memory.
  public func rows(_ range: Range<Int>) -> Grid {
    Grid(
      format: format, inFeatures: inFeatures, scales: scales.rows(range),
      zeroPoints: zeroPoints.rows(range))
  }
}

/// What every grid of a linear has in common.
public struct GridFormat: Sendable, Hashable {
  public var bitWidth: BitWidth
  public var groupSize: GroupSize
  /// The zero point stands in the middle of the codes and is not stored.
  public var isSymmetric: Bool
  /// Whether outputs may keep a symmetric grid's scale with a sign. Such a grid has one level more on one side of zero
  /// than on the other, and the sign says on which. Within the engine every scale is positive, and the zero point is
  /// ``middleCode`` or the one below; see ``QuantizedLinear/withStoredScales``.
  public var hasSignedScales: Bool
  /// The float types that the outputs keep scales in. A scale is rounded through all of them before it
  /// is used, so that the error that is reported is the error of the files.
  public var scaleTypes: [DType]

  public init(
    bitWidth: BitWidth, groupSize: GroupSize, isSymmetric: Bool, hasSignedScales: Bool = true,
    scaleTypes: [DType] = []
  ) {
    self.bitWidth = bitWidth
    self.groupSize = groupSize
    self.isSymmetric = isSymmetric
    self.hasSignedScales = hasSignedScales
    self.scaleTypes = scaleTypes
  }

  public var maximumCode: Int { bitWidth.maximumCode }

  /// The zero point of a symmetric grid as it is stored.
  public var middleCode: Int { 1 << (bitWidth.rawValue - 1) }

  /// The zero points that a symmetric grid may have here: more levels below zero, or more above.
  public var symmetricZeroPoints: ClosedRange<Int> {
    (hasSignedScales ? middleCode - 1 : middleCode)...middleCode
  }

  /// Zero points of asymmetric grids lie here: 0 is left out because version 1 of the GPTQ format
  /// stores z − 1 in an unsigned field.
  public var zeroPointRange: ClosedRange<Int> { 1...maximumCode }

  /// `scale` after a round trip through every type that stores it, kept positive and finite.
  public func storable(_ scale: Float) -> Float {
    let isHalf = scaleTypes.contains(.float16)
    // Within float16's normal numbers a bfloat16 value keeps all its digits.
    let least: Float = isHalf ? 0x1p-14 : .leastNormalMagnitude
    let greatest: Float = isHalf ? 0x1p15 : 0x1p127
    return scaleTypes.reduce(min(max(scale, least), greatest)) { $0.rounded(to: $1) }
  }
}

/// Bits per quantized weight.
public enum BitWidth: Int, Sendable, CaseIterable, Codable {
  case two = 2
  case three = 3
  case four = 4
  case eight = 8

  public var maximumCode: Int { (1 << rawValue) - 1 }
}

/// How many neighbouring columns of a row share one grid.
public enum GroupSize: Sendable, Hashable {
  /// One grid for the whole row.
  case channel
  case columns(Int)

  /// From the notation of recipes and file formats, in which −1 is a whole row.
  public init?(_ notation: Int) {
    switch notation {
    case -1: self = .channel
    case 1...: self = .columns(notation)
    default: return nil
    }
  }

  public var notation: Int {
    switch self {
    case .channel: -1
    case .columns(let count): count
    }
  }

  public func columns(inFeatures: Int) -> Int {
    switch self {
    case .channel: max(inFeatures, 1)
    case .columns(let count): count
    }
  }

  public func groupCount(inFeatures: Int) -> Int {
    let width = columns(inFeatures: inFeatures)
    return (inFeatures + width - 1) / width
  }
}
