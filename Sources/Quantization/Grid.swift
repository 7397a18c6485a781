import Tensors

/// The uniform grids of one linear: one scale s and one shift per row and group of columns.
///
/// Code q = 0 … `maximumCode` stands for s · (q − z) where the shift is a zero point z, and for s · q + o where it is an
/// offset o: exactly what readers of the output make of it. Scales are positive.
public struct Grid: Sendable {
  public let format: GridFormat
  public let inFeatures: Int
  /// `[outFeatures, groups]`
  public let scales: Matrix
  /// `[outFeatures, groups]`: offsets where the format ``GridFormat/hasOwnOffsets``, else whole zero points
  public let shifts: Matrix
  /// What scales and offsets are whole multiples of; nil where every group has its own.
  public let units: SuperBlockUnits?

  /// Grids to be set, in the host's memory.
  public init(format: GridFormat, outFeatures: Int, inFeatures: Int) {
    self.init(format: format, outFeatures: outFeatures, inFeatures: inFeatures) {
      Matrix(rows: $0, columns: $1)
    }
  }

  /// Grids to be set, in the memory of what makes matrices of so many rows and columns.
  public init(
    format: GridFormat, outFeatures: Int, inFeatures: Int, makeMatrix: (_ rows: Int, _ columns: Int) -> Matrix
  ) {
    let groups = format.groupSize.groupCount(inFeatures: inFeatures)
    self.init(
      format: format, inFeatures: inFeatures, scales: makeMatrix(outFeatures, groups),
      shifts: makeMatrix(outFeatures, groups),
      units: format.superBlocks.map { blocks in
        let count = blocks.count(groups: groups)
        return SuperBlockUnits(
          scales: makeMatrix(outFeatures, count),
          offsets: blocks.offsetMultiples == nil ? nil : makeMatrix(outFeatures, count))
      })
  }

  /// - Parameters:
  ///   - scales: `[outFeatures, groups]`
  ///   - shifts: as many
  public init(
    format: GridFormat, inFeatures: Int, scales: Matrix, shifts: Matrix, units: SuperBlockUnits? = nil
  ) {
    self.format = format
    self.inFeatures = inFeatures
    self.scales = scales
    self.shifts = shifts
    self.units = units
  }

  public var outFeatures: Int { scales.rows }
  public var groups: Int { scales.columns }
  /// Columns that share one grid; the last group may be shorter.
  public var columnsPerGroup: Int { format.groupSize.columns(inFeatures: inFeatures) }

  /// Every matrix of the grids, for copies from one memory to another.
  public var matrices: [Matrix] {
    [scales, shifts] + (units.map { [$0.scales] + ($0.offsets.map { [$0] } ?? []) } ?? [])
  }

  /// The same grids over other matrices.
  public func map(_ transform: (Matrix) -> Matrix) -> Grid {
    Grid(
      format: format, inFeatures: inFeatures, scales: transform(scales), shifts: transform(shifts),
      units: units.map {
        SuperBlockUnits(scales: transform($0.scales), offsets: $0.offsets.map(transform))
      })
  }

  /// The grids of some rows, over the same memory.
  public func rows(_ range: Range<Int>) -> Grid { map { $0.rows(range) } }

  /// The code, not always a whole number, that stands for 0; of grids in the host's memory.
  public func zeroPoint(_ row: Int, _ group: Int) -> Float {
    format.hasOwnOffsets ? 0 - shifts[row, group] / scales[row, group] : shifts[row, group]
  }

  /// The columns of a group.
  public func columns(ofGroup group: Int) -> Range<Int> {
    group * columnsPerGroup..<min((group + 1) * columnsPerGroup, inFeatures)
  }
}

/// What the groups of a super-block have in common.
public struct SuperBlockUnits: Sendable {
  /// `[outFeatures, superBlocks]`: a scale is the magnitude of a whole multiple of its super-block's unit.
  public let scales: Matrix
  /// `[outFeatures, superBlocks]`, the same for offsets, which are those multiples' negatives; nil for symmetric grids.
  public let offsets: Matrix?

  public init(scales: Matrix, offsets: Matrix?) {
    self.scales = scales
    self.offsets = offsets
  }

  /// The least magnitude of a unit: float16's.
  public static let least: Float = 0x1p-24
  private static let greatest: Float = 65_504

  /// The float16 that is kept for a unit; none is 0.
  public static func storable(_ unit: Float) -> Float {
    let magnitude = min(max(abs(unit), least), greatest).rounded(to: .float16)
    return unit < 0 ? -magnitude : magnitude
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
  /// How scales and offsets are stored.
  public var coding: GridCoding
  /// The float types that the outputs keep scales, and offsets that are no zero points, in. A scale is rounded through all
  /// of them before it is used, so that the error that is reported is the error of the files.
  public var scaleTypes: [DType]

  public init(
    bitWidth: BitWidth, groupSize: GroupSize, isSymmetric: Bool, hasSignedScales: Bool = true,
    coding: GridCoding = .zeroPoints, scaleTypes: [DType] = []
  ) {
    self.bitWidth = bitWidth
    self.groupSize = groupSize
    self.isSymmetric = isSymmetric
    self.hasSignedScales = hasSignedScales
    self.coding = coding
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

  /// Whether shifts are offsets, numbers of their own, and not zero points.
  public var hasOwnOffsets: Bool { !isSymmetric && coding != .zeroPoints }

  public var superBlocks: SuperBlockCoding? {
    if case .superBlocks(let blocks) = coding { blocks } else { nil }
  }

  /// What the grids of a row of so many groups take, codes aside.
  public func storedBits(groups: Int) -> Int {
    switch coding {
    case .zeroPoints: return groups * (isSymmetric ? 16 : 16 + bitWidth.rawValue)
    case .offsets: return groups * (isSymmetric ? 16 : 32)
    case .superBlocks(let blocks):
      let ranges = [blocks.scaleMultiples] + (blocks.offsetMultiples.map { [$0] } ?? [])
      return ranges.reduce(0) { bits, range in
        bits + 16 * blocks.count(groups: groups)
          + groups * (Int.bitWidth - (range.upperBound - range.lowerBound).leadingZeroBitCount)
      }
    }
  }

  /// `scale` after a round trip through every type that stores it, kept positive and finite. Scales of super-blocks stay as
  /// they are: what can be stored of one depends on the others.
  public func storable(_ scale: Float) -> Float {
    if superBlocks != nil { return min(max(scale, .leastNormalMagnitude), 0x1p127) }
    let isHalf = scaleTypes.contains(.float16)
    // Within float16's normal numbers a bfloat16 value keeps all its digits.
    let least: Float = isHalf ? 0x1p-14 : .leastNormalMagnitude
    let greatest: Float = isHalf ? 0x1p15 : 0x1p127
    return scaleTypes.reduce(min(max(scale, least), greatest)) { $0.rounded(to: $1) }
  }

  /// `offset` after a round trip through every type that stores it, kept finite.
  public func storable(offset: Float) -> Float {
    if superBlocks != nil { return min(max(offset, -0x1p127), 0x1p127) }
    let greatest: Float = scaleTypes.contains(.float16) ? 0x1p15 : 0x1p127
    return scaleTypes.reduce(min(max(offset, -greatest), greatest)) { $0.rounded(to: $1) }
  }
}

/// How the scales and offsets of a linear's grids are stored.
public enum GridCoding: Sendable, Hashable, Codable {
  /// A float for the scale, and a whole zero point.
  case zeroPoints
  /// A float for each; symmetric grids have no offset to store.
  case offsets
  /// Small whole numbers, and floats for the units that a super-block of groups counts in.
  case superBlocks(SuperBlockCoding)
}

/// Groups that share the units of their scales and offsets, which are kept as float16.
public struct SuperBlockCoding: Sendable, Hashable, Codable {
  /// Groups of a super-block; the last one of a row may have fewer.
  public var groups: Int
  /// The multiples of its unit that a scale may be. Where they have signs, so has the scale of a symmetric grid.
  public var scaleMultiples: ClosedRange<Int>
  /// The multiples of its unit that an offset may be the negative of; nil for symmetric grids.
  public var offsetMultiples: ClosedRange<Int>?

  public init(groups: Int, scaleMultiples: ClosedRange<Int>, offsetMultiples: ClosedRange<Int>? = nil) {
    self.groups = groups
    self.scaleMultiples = scaleMultiples
    self.offsetMultiples = offsetMultiples
  }

  /// Super-blocks of a row of so many groups.
  public func count(groups: Int) -> Int { (groups + self.groups - 1) / self.groups }
}

/// Bits per quantized weight.
public enum BitWidth: Int, Sendable, CaseIterable, Codable {
  case two = 2
  case three = 3
  case four = 4
  case five = 5
  case six = 6
  case eight = 8

  public var maximumCode: Int { (1 << rawValue) - 1 }
}

/// How many neighbouring columns of a row share one grid.
public enum GroupSize: Sendable, Hashable {
  /// One grid for the whole row.
  case channel
  case columns(Int)

  /// Beyond any width, and far from where sums overflow.
  private static let most = 1 << 24

  /// From the notation of recipes and file formats, in which −1 is a whole row.
  public init?(_ notation: Int) {
    switch notation {
    case -1: self = .channel
    case 1...Self.most: self = .columns(notation)
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
