import Tensors

/// How a GGUF file stores a tensor: rows of blocks, each of so many values in so many bytes.
/// - SeeAlso: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
public struct GGUFTensorType: Sendable, Hashable {
  public let number: UInt32
  public let name: String
  public let blockSize: Int
  public let blockBytes: Int

  public static let float16 = GGUFTensorType(
    number: 1, name: DType.float16.rawValue, blockSize: 1, blockBytes: 2)
  public static let q4_0 = of(2, "Q4_0", 32, 18)
  public static let q4_1 = of(3, "Q4_1", 32, 20)
  public static let q5_0 = of(6, "Q5_0", 32, 22)
  public static let q5_1 = of(7, "Q5_1", 32, 24)
  public static let q8_0 = of(8, "Q8_0", 32, 34)
  public static let q2_K = of(10, "Q2_K", 256, 84)
  public static let q3_K = of(11, "Q3_K", 256, 110)
  public static let q4_K = of(12, "Q4_K", 256, 144)
  public static let q5_K = of(13, "Q5_K", 256, 176)
  public static let q6_K = of(14, "Q6_K", 256, 210)

  /// The types that linears are quantized to.
  public static let quantized = [q4_0, q4_1, q5_0, q5_1, q8_0, q2_K, q3_K, q4_K, q5_K, q6_K]

  private init(number: UInt32, name: String, blockSize: Int, blockBytes: Int) {
    self.number = number
    self.name = name
    self.blockSize = blockSize
    self.blockBytes = blockBytes
  }

  /// - Returns: nil for a number that no type is known by
  public init?(number: UInt32) {
    guard let known = Self.known.first(where: { $0.number == number }) else { return nil }
    self = known
  }

  /// The type of a planned tensor: of unquantized values, or one that ``dtype`` names.
  public init?(_ type: DType) {
    guard let known = Self.known.first(where: { $0.dtype == type }) else { return nil }
    self = known
  }

  /// What it is called in plans.
  public var dtype: DType { plainType ?? .other(name) }

  /// What it is called in a file's header, and the values of a block.
  public var plainType: DType? { Self.plain.first { $0.number == number }?.type }

  /// How its blocks are stored; nil if they are not read.
  public var blocks: GGUFBlocks? { GGUFBlocks(self) }

  /// Whether its blocks can be read as the weights that they stand for.
  public var isReadable: Bool { blocks != nil }

  /// Bytes of a row of `columns` values; nil if they are no whole blocks, or too many to count.
  public func byteCount(ofRow columns: Int) -> Int? {
    guard columns.isMultiple(of: blockSize) else { return nil }
    let (bytes, overflow) = (columns / blockSize).multipliedReportingOverflow(by: blockBytes)
    return overflow ? nil : bytes
  }

  private static let plain: [(number: UInt32, type: DType)] = [
    (0, .float32), (1, .float16), (24, .int8), (25, .int16), (26, .int32), (27, .int64), (28, .float64),
    (30, .bfloat16),
  ]

  private static let known: [GGUFTensorType] =
    plain.map {
      GGUFTensorType(number: $0.number, name: $0.type.rawValue, blockSize: 1, blockBytes: $0.type.byteWidth)
    }
    + [
      q4_0, q4_1, q5_0, q5_1, q8_0, q2_K, q3_K, q4_K, q5_K, q6_K, of(9, "Q8_1", 32, 36),
      of(15, "Q8_K", 256, 292), of(16, "IQ2_XXS", 256, 66),
      of(17, "IQ2_XS", 256, 74),
      of(18, "IQ3_XXS", 256, 98), of(19, "IQ1_S", 256, 50), of(20, "IQ4_NL", 32, 18),
      of(21, "IQ3_S", 256, 110),
      of(22, "IQ2_S", 256, 82), of(23, "IQ4_XS", 256, 136), of(29, "IQ1_M", 256, 56),
      of(34, "TQ1_0", 256, 54),
      of(35, "TQ2_0", 256, 66), of(39, "MXFP4", 32, 17), of(40, "NVFP4", 64, 36),
    ]

  private static func of(_ number: UInt32, _ name: String, _ size: Int, _ bytes: Int) -> GGUFTensorType {
    GGUFTensorType(number: number, name: name, blockSize: size, blockBytes: bytes)
  }
}

extension GGUFTensorType {
  /// Reads blocks, one behind the other, as what they stand for.
  /// - Parameters:
  ///   - bytes: at any alignment
  ///   - panel: as many values as the blocks have
  func read(_ bytes: RawSpan, into panel: inout MutableSpan<Float>) {
    guard let blocks else { preconditionFailure("blocks of \(name) are not read") }
    precondition(bytes.byteCount == panel.count / blockSize * blockBytes, "the bytes do not fill the panel")
    for block in 0..<panel.count / blockSize {
      blocks.read(bytes, at: block * blockBytes, into: &panel, from: block * blockSize)
    }
  }
}
