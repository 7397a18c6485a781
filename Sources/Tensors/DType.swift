/// The type of one element of a stored tensor, by its name in a safetensors header.
///
/// The format gets new types: a name that is not known here is a type all the same, whose tensors are copied as they are.
public enum DType: RawRepresentable, Sendable, Hashable, Codable {
  case bool, uint8, int8, int16, uint16, int32, uint32, int64, uint64
  /// Two of four bits in a byte.
  case float4
  case float6E2M3, float6E3M2
  case float8E5M2, float8E4M3
  /// A power of two.
  case float8E8M0
  case float16, bfloat16, float32, float64, complex64
  /// By its name.
  case other(String)

  private static let known: [DType] = [
    .bool, .uint8, .int8, .int16, .uint16, .int32, .uint32, .int64, .uint64, .float4, .float6E2M3,
    .float6E3M2,
    .float8E5M2, .float8E4M3, .float8E8M0, .float16, .bfloat16, .float32, .float64, .complex64,
  ]
  private static let byName = Dictionary(uniqueKeysWithValues: known.map { ($0.rawValue, $0) })

  public init(rawValue: String) { self = Self.byName[rawValue] ?? .other(rawValue) }

  public init(from decoder: any Decoder) throws {
    self.init(rawValue: try decoder.singleValueContainer().decode(String.self))
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(rawValue)
  }

  public var rawValue: String {
    switch self {
    case .bool: "BOOL"
    case .uint8: "U8"
    case .int8: "I8"
    case .int16: "I16"
    case .uint16: "U16"
    case .int32: "I32"
    case .uint32: "U32"
    case .int64: "I64"
    case .uint64: "U64"
    case .float4: "F4"
    case .float6E2M3: "F6_E2M3"
    case .float6E3M2: "F6_E3M2"
    case .float8E5M2: "F8_E5M2"
    case .float8E4M3: "F8_E4M3"
    case .float8E8M0: "F8_E8M0"
    case .float16: "F16"
    case .bfloat16: "BF16"
    case .float32: "F32"
    case .float64: "F64"
    case .complex64: "C64"
    case .other(let name): name
    }
  }

  /// Bits that one element takes; nil of a type that is not known.
  public var bitWidth: Int? {
    switch self {
    case .float4: 4
    case .float6E2M3, .float6E3M2: 6
    case .bool, .uint8, .int8, .float8E5M2, .float8E4M3, .float8E8M0: 8
    case .int16, .uint16, .float16, .bfloat16: 16
    case .int32, .uint32, .float32: 32
    case .int64, .uint64, .float64, .complex64: 64
    case .other: nil
    }
  }

  /// Bytes that one element takes, of a type of whole bytes.
  public var byteWidth: Int {
    guard let bitWidth, bitWidth.isMultiple(of: 8) else {
      preconditionFailure("an element of \(rawValue) is no whole number of bytes")
    }
    return bitWidth / 8
  }

  /// Whether the engine reads weights and stores hidden states in this type.
  public var isSupportedFloat: Bool {
    switch self {
    case .float32, .float16, .bfloat16: true
    default: false
    }
  }
}
