/// Where the elements of a tensor stand in the one that files have: an expert of a stack, or a matrix that is turned.
public struct TensorPart: Sendable, Hashable {
  /// The tensor that files have, by its name and extents.
  public let whole: String
  public let shape: [Int]
  /// The place of the first element in it, and the elements from one row, or column, to the next.
  public let first: Int
  public let rowStride: Int
  public let columnStride: Int
  /// The place of the element that ``TensorInfo/byteRange`` begins with.
  public let start: Int

  /// The element in row `row` and column `column`.
  public func place(row: Int, column: Int) -> Int { first + row * rowStride + column * columnStride }
}

extension TensorInfo {
  /// Where its elements stand, if that is not one behind the other.
  var scatteredPart: TensorPart? {
    guard let part else { return nil }
    let (rows, columns) = matrixDimensions
    let isWhole =
      part.first == part.start && part.columnStride == 1 && (rows == 1 || part.rowStride == columns)
    return isWhole ? nil : part
  }

  /// Whether its bytes in the file are its elements, in their order.
  public var isStoredPlainly: Bool { coding == nil && scatteredPart == nil }

  /// Of what kind the blocks are that it stands in.
  public var blocks: GGUFTensorType? {
    if case .blocks(let type) = coding { type } else { nil }
  }

  /// How a GGUF file has it.
  public var ggufType: GGUFTensorType? { blocks ?? GGUFTensorType(dtype) }

  /// The bytes that hold some rows, among others perhaps.
  func bytes(ofRows rows: Range<Int>, columns: Int) -> Range<Int> {
    switch coding {
    case .computed: return 0..<0
    case .blocks(let type):
      let width = columns / type.blockSize * type.blockBytes
      return rows.lowerBound * width..<rows.upperBound * width
    case .float8: return rows.lowerBound * columns..<rows.upperBound * columns
    case .microscaled(let coding):
      guard !rows.isEmpty else { return 0..<0 }
      let width = columns / 2
      return coding.storedRow(rows.lowerBound) * width..<(coding.storedRow(rows.upperBound - 1) + 1) * width
    case nil:
      if scatteredPart != nil { return 0..<byteRange.count }
      let width = columns * dtype.byteWidth
      return rows.lowerBound * width..<rows.upperBound * width
    }
  }
}
