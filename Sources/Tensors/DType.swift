/// The type of one element of a stored tensor, by its name in a safetensors header.
///
/// The format gets new types: a name that is not known here is a type all the same, whose tensors are copied as they are.
public struct DType: RawRepresentable, Sendable, Hashable, Codable {
  public let rawValue: String

  public init(rawValue: String) { self.rawValue = rawValue }

  public static let bool = DType(rawValue: "BOOL")
  public static let uint8 = DType(rawValue: "U8")
  public static let int8 = DType(rawValue: "I8")
  /// Two of four bits in a byte.
  public static let float4 = DType(rawValue: "F4")
  public static let float6E2M3 = DType(rawValue: "F6_E2M3")
  public static let float6E3M2 = DType(rawValue: "F6_E3M2")
  public static let float8E5M2 = DType(rawValue: "F8_E5M2")
  public static let float8E4M3 = DType(rawValue: "F8_E4M3")
  /// A power of two.
  public static let float8E8M0 = DType(rawValue: "F8_E8M0")
  public static let int16 = DType(rawValue: "I16")
  public static let uint16 = DType(rawValue: "U16")
  public static let float16 = DType(rawValue: "F16")
  public static let bfloat16 = DType(rawValue: "BF16")
  public static let int32 = DType(rawValue: "I32")
  public static let uint32 = DType(rawValue: "U32")
  public static let float32 = DType(rawValue: "F32")
  public static let float64 = DType(rawValue: "F64")
  public static let int64 = DType(rawValue: "I64")
  public static let uint64 = DType(rawValue: "U64")
  public static let complex64 = DType(rawValue: "C64")

  private static let bitWidths: [DType: Int] = [
    .float4: 4, .float6E2M3: 6, .float6E3M2: 6,
    .bool: 8, .uint8: 8, .int8: 8, .float8E5M2: 8, .float8E4M3: 8, .float8E8M0: 8,
    .int16: 16, .uint16: 16, .float16: 16, .bfloat16: 16,
    .int32: 32, .uint32: 32, .float32: 32,
    .float64: 64, .int64: 64, .uint64: 64, .complex64: 64,
  ]

  /// Bits that one element takes; nil of a type that is not known.
  public var bitWidth: Int? { Self.bitWidths[self] }

  /// Bytes that one element takes, of a type of whole bytes.
  public var byteWidth: Int {
    switch self {
    case .float32, .int32, .uint32: return 4
    case .float16, .bfloat16, .int16, .uint16: return 2
    default:
      guard let bitWidth, bitWidth.isMultiple(of: 8) else {
        preconditionFailure("an element of \(rawValue) is no whole number of bytes")
      }
      return bitWidth / 8
    }
  }

  /// Whether the engine reads weights and stores hidden states in this type.
  public var isSupportedFloat: Bool {
    self == .float32 || self == .float16 || self == .bfloat16
  }
}
