import Tensors

/// One quantized linear: the codes of its weights, their grids, and the outliers beside them.
public struct QuantizedLinear: Sendable {
  /// The module's name in the checkpoint, without `.weight`.
  public let name: String
  /// `[outFeatures, inFeatures]`, row-major, in the checkpoint's column order.
  public let codes: [UInt8]
  public let grid: Grid
  public let outliers: Outliers?

  public init(name: String, codes: [UInt8], grid: Grid, outliers: Outliers? = nil) {
    precondition(codes.count == grid.outFeatures * grid.inFeatures, "codes do not fill the linear")
    self.name = name
    self.codes = codes
    self.grid = grid
    self.outliers = outliers
  }

  public var outFeatures: Int { grid.outFeatures }
  public var inFeatures: Int { grid.inFeatures }

  /// Stored bits over weights: codes, scales, zero points or offsets, and outliers with their indices.
  public var bitsPerWeight: Double {
    let width = grid.format.bitWidth.rawValue
    let gridBits = grid.outFeatures * grid.format.storedBits(groups: grid.groups)
    let weights = Double(outFeatures * inFeatures)
    return Double(width) + Double(gridBits + (outliers?.storedBits ?? 0)) / max(weights, 1)
  }

  /// The same linear as files without zero points hold it: where more levels lie above zero than below, the scale is
  /// negative and the codes count downwards. Every weight stays what it is, to the last bit.
  public var withStoredScales: QuantizedLinear {
    let format = grid.format
    guard format.isSymmetric else { return self }
    let middle = Float(format.middleCode)
    let isStored = grid.shifts.withSpan { shifts in shifts.indices.allSatisfy { shifts[$0] == middle } }
    if isStored { return self }
    let stored = grid.map { $0.copy() }
    var codes = codes
    let maximum = UInt8(format.maximumCode)
    for row in 0..<outFeatures {
      for group in 0..<grid.groups where grid.shifts[row, group] != middle {
        stored.scales[row, group] = -grid.scales[row, group]
        stored.shifts[row, group] = middle
        for column in grid.columns(ofGroup: group) {
          codes[row * inFeatures + column] = maximum - codes[row * inFeatures + column]
        }
      }
    }
    return QuantizedLinear(name: name, codes: codes, grid: stored, outliers: outliers)
  }

  /// The weights that the codes and outliers stand for: Ŵ + Ĥ, `[outFeatures, inFeatures]`.
  public func dequantized() -> Matrix {
    let weights = Matrix(rows: outFeatures, columns: inFeatures)
    dequantize(rows: 0..<outFeatures, into: weights)
    return weights
  }

  /// Writes Ŵ + Ĥ of some rows into `panel`, `[rows.count, inFeatures]`.
  public func dequantize(rows: Range<Int>, into panel: Matrix) {
    precondition(panel.rows == rows.count && panel.columns == inFeatures, "the panel has another shape")
    let hasOffsets = grid.format.hasOwnOffsets
    panel.withMutableSpan { weights in
      for (panelRow, row) in rows.enumerated() {
        for group in 0..<grid.groups {
          let scale = grid.scales[row, group]
          let shift = grid.shifts[row, group]
          for column in grid.columns(ofGroup: group) {
            let code = Float(codes[row * inFeatures + column])
            weights[panelRow * inFeatures + column] =
              hasOffsets ? scale * code + shift : scale * (code - shift)
          }
        }
      }
    }
    outliers?.add(rows: rows, to: panel)
  }
}

/// The sparse matrix Ĥ of full-precision corrections beside the integer grid, kept as 16-bit floats.
public enum Outliers: Sendable {
  /// Single entries in compressed sparse row form. Row i holds entries `rowOffsets[i] ..< rowOffsets[i + 1]`.
  case unstructured(values: [Float], columns: [Int32], rowOffsets: [Int64])
  /// Whole columns: `values` is `[outFeatures, columns.count]`, row-major.
  case structured(values: [Float], columns: [Int32])

  /// Stored entries.
  public var count: Int {
    switch self {
    case .unstructured(let values, _, _), .structured(let values, _): values.count
    }
  }

  /// Bits of the values and of the indices that place them.
  public var storedBits: Int {
    switch self {
    case .unstructured(let values, let columns, let rowOffsets):
      16 * values.count + 32 * columns.count + 64 * rowOffsets.count
    case .structured(let values, let columns): 16 * values.count + 32 * columns.count
    }
  }

  func add(rows: Range<Int>, to panel: Matrix) {
    switch self {
    case .unstructured(let values, let columns, let rowOffsets):
      for (panelRow, row) in rows.enumerated() {
        for entry in Int(rowOffsets[row])..<Int(rowOffsets[row + 1]) {
          panel[panelRow, Int(columns[entry])] += values[entry]
        }
      }
    case .structured(let values, let columns):
      for (panelRow, row) in rows.enumerated() {
        for (index, column) in columns.enumerated() {
          panel[panelRow, Int(column)] += values[row * columns.count + index]
        }
      }
    }
  }
}
