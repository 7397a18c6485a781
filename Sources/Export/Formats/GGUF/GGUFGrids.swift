import Checkpoint
import Quantization
import Tensors

extension GGUFTensorType {
  /// The grid that a solver sees; nil for a type that nothing is quantized to.
  public var gridFormat: GridFormat? {
    guard Self.quantized.contains(self), let blocks, let bitWidth = BitWidth(rawValue: blocks.bits) else {
      return nil
    }
    var coding = blocks.middle == nil ? GridCoding.offsets : .zeroPoints
    if let scales = blocks.scaleMultiples {
      coding = .superBlocks(
        SuperBlockCoding(
          groups: blocks.groups, scaleMultiples: scales, offsetMultiples: blocks.offsetMultiples))
    }
    return GridFormat(
      bitWidth: bitWidth, groupSize: .columns(blocks.groupSize), isSymmetric: blocks.middle != nil,
      coding: coding,
      scaleTypes: [.float16])
  }

  /// The type that holds a grid.
  public init?(_ grid: GridFormat) {
    guard let type = Self.quantized.first(where: { $0.gridFormat?.hasSameLayout(as: grid) ?? false }) else {
      return nil
    }
    self = type
  }

  /// The blocks of some rows, row after row.
  /// - Parameter linear: with scales as they are stored, see ``QuantizedLinear/withStoredScales``
  func packed(_ linear: QuantizedLinear, rows: Range<Int>) -> [UInt8] {
    guard let blocks else { preconditionFailure("nothing is quantized to \(name)") }
    let grid = linear.grid
    let perRow = linear.inFeatures / blockSize
    var bytes: [UInt8] = []
    bytes.reserveCapacity(rows.count * perRow * blockBytes)
    for row in rows {
      for block in 0..<perRow {
        let start = row * linear.inFeatures + block * blockSize
        let codes = linear.codes.span.extracting(start..<start + blockSize)
        let groups = block * blocks.groups..<(block + 1) * blocks.groups
        guard let units = grid.units else {
          blocks.append(
            codes, unit: grid.scales[row, block], offsetUnit: grid.shifts[row, block], scales: [],
            offsets: [],
            byteCount: blockBytes, to: &bytes)
          continue
        }
        let (unit, offsetUnit) = (units.scales[row, block], units.offsets?[row, block] ?? 0)
        blocks.append(
          codes, unit: unit, offsetUnit: offsetUnit,
          scales: groups.map { multiple(of: unit, grid.scales[row, $0]) },
          offsets: units.offsets == nil ? [] : groups.map { multiple(of: offsetUnit, -grid.shifts[row, $0]) },
          byteCount: blockBytes, to: &bytes)
      }
    }
    return bytes
  }

  private func multiple(of unit: Float, _ value: Float) -> Int {
    let multiple = (value / unit).rounded(.toNearestOrEven)
    precondition(unit * multiple == value, "a scale that is no multiple of its super-block's unit")
    return Int(multiple)
  }
}
