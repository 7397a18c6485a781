import Tensors

/// How a quantized type of GGUF stores its blocks: where every bit of a code, a scale and an offset stands. One declaration
/// serves reading and writing.
///
/// A weight is s · (q − middle), or s · q − o, for its code q and its group's scale s and offset o. In types of super-blocks s
/// is a small whole number times the block's unit, and so is o.
public struct GGUFBlocks: Sendable {
  /// Some bits of a block: the low ones from one byte, and the others, if there are any, from another.
  struct Field: Sendable {
    var byte: UInt16
    var shift: UInt8
    var bits: UInt8
    var highByte: UInt16 = 0
    var highShift: UInt8 = 0
    var highBits: UInt8 = 0
  }

  public let bits: Int
  /// Columns that share a scale.
  public let groupSize: Int
  /// The code that stands for 0; nil where there is an offset.
  public let middle: Int?
  /// The whole numbers that a scale, and an offset, may be in units of the block's; nil where each is a float.
  public let scaleMultiples: ClosedRange<Int>?
  public let offsetMultiples: ClosedRange<Int>?

  let size: Int
  let codes: [Field]
  /// What a stored code is combined with by exclusive or.
  let codeFlip: UInt8
  /// Where the float16 unit of scales stands, and that of offsets.
  let unitByte: Int
  let offsetUnitByte: Int
  let scaleFields: [Field]
  let offsetFields: [Field]

  private init(
    bits: Int, groupSize: Int, size: Int = 32, middle: Int? = nil, unit: Int, offsetUnit: Int = 0,
    codeFlip: UInt8 = 0, scaleMultiples: ClosedRange<Int>? = nil, offsetMultiples: ClosedRange<Int>? = nil,
    scales: ((Int) -> Field)? = nil, offsets: ((Int) -> Field)? = nil, code: (Int) -> Field
  ) {
    self.bits = bits
    self.groupSize = groupSize
    self.size = size
    self.middle = middle
    self.scaleMultiples = scaleMultiples
    self.offsetMultiples = offsetMultiples
    self.codeFlip = codeFlip
    unitByte = unit
    offsetUnitByte = offsetUnit
    codes = (0..<size).map(code)
    scaleFields = scales.map { (0..<size / groupSize).map($0) } ?? []
    offsetFields = offsets.map { (0..<size / groupSize).map($0) } ?? []
  }

  /// Groups of a block.
  public var groups: Int { size / groupSize }

  /// nil for a type whose blocks are not read.
  init?(_ type: GGUFTensorType) {
    guard let known = Self.known[type.name] else { return nil }
    self = known
  }

  // MARK: The types
  //
  // Layouts after ggml-common.h; the half of a block that an element is in by h, which of its bits by k, and its place there
  // by l.

  private static let known: [String: GGUFBlocks] = [
    "Q4_0": GGUFBlocks(bits: 4, groupSize: 32, middle: 8, unit: 0) { half(2, $0) },
    "Q4_1": GGUFBlocks(bits: 4, groupSize: 32, unit: 0, offsetUnit: 2) { half(4, $0) },
    "Q5_0": GGUFBlocks(bits: 5, groupSize: 32, middle: 16, unit: 0) {
      half(6, $0).with(1, 2 + $0 / 8, $0 % 8)
    },
    "Q5_1": GGUFBlocks(bits: 5, groupSize: 32, unit: 0, offsetUnit: 2) {
      half(8, $0).with(1, 4 + $0 / 8, $0 % 8)
    },
    "Q8_0": GGUFBlocks(bits: 8, groupSize: 32, middle: 128, unit: 0, codeFlip: 0x80) { Field(8, 2 + $0, 0) },
    "Q2_K": GGUFBlocks(
      bits: 2, groupSize: 16, size: 256, unit: 80, offsetUnit: 82, scaleMultiples: 0...15,
      offsetMultiples: 0...15, scales: { Field(4, $0, 0) }, offsets: { Field(4, $0, 4) }
    ) { Field(2, 16 + 32 * ($0 / 128) + $0 % 32, 2 * ($0 % 128 / 32)) },
    "Q3_K": GGUFBlocks(
      bits: 3, groupSize: 16, size: 256, middle: 4, unit: 108, scaleMultiples: -32...31,
      scales: { Field(4, 96 + $0 % 8, 4 * ($0 / 8)).with(2, 104 + $0 % 4, 2 * ($0 / 4)) }
    ) { Field(2, 32 + 32 * ($0 / 128) + $0 % 32, 2 * ($0 % 128 / 32)).with(1, $0 % 32, $0 / 32) },
    "Q4_K": GGUFBlocks(
      bits: 4, groupSize: 32, size: 256, unit: 0, offsetUnit: 2, scaleMultiples: 0...63,
      offsetMultiples: 0...63,
      scales: { packedScale(4, $0) }, offsets: { packedOffset(4, $0) }
    ) { Field(4, 16 + 32 * ($0 / 64) + $0 % 32, 4 * ($0 % 64 / 32)) },
    "Q5_K": GGUFBlocks(
      bits: 5, groupSize: 32, size: 256, unit: 0, offsetUnit: 2, scaleMultiples: 0...63,
      offsetMultiples: 0...63,
      scales: { packedScale(4, $0) }, offsets: { packedOffset(4, $0) }
    ) { Field(4, 48 + 32 * ($0 / 64) + $0 % 32, 4 * ($0 % 64 / 32)).with(1, 16 + $0 % 32, $0 / 32) },
    "Q6_K": GGUFBlocks(
      bits: 6, groupSize: 16, size: 256, middle: 32, unit: 208, scaleMultiples: -128...127,
      scales: { Field(8, 192 + $0, 0) }
    ) { index in
      let (h, k, l) = (index / 128, index % 128 / 32, index % 32)
      return Field(4, 64 * h + 32 * (k % 2) + l, 4 * (k / 2)).with(2, 128 + 32 * h + l, 2 * k)
    },
  ]

  /// Four bits of an element of 32: the first half in the low ones of 16 bytes, the second in the high ones.
  private static func half(_ start: Int, _ index: Int) -> Field {
    Field(4, start + index % 16, index < 16 ? 0 : 4)
  }

  /// Six bits of the scales of Q4_K and Q5_K, and of their offsets: 12 bytes for eight of each.
  private static func packedScale(_ start: Int, _ group: Int) -> Field {
    group < 4
      ? Field(6, start + group, 0)
      : Field(4, start + group + 4, 0).with(2, start + group - 4, 6)
  }

  private static func packedOffset(_ start: Int, _ group: Int) -> Field {
    group < 4
      ? Field(6, start + group + 4, 0)
      : Field(4, start + group + 4, 4).with(2, start + group, 6)
  }
}

extension GGUFBlocks.Field {
  init(_ bits: Int, _ byte: Int, _ shift: Int) {
    self.init(byte: UInt16(byte), shift: UInt8(shift), bits: UInt8(bits))
  }

  /// The same with higher bits from another place.
  func with(_ bits: Int, _ byte: Int, _ shift: Int) -> Self {
    var field = self
    (field.highByte, field.highShift, field.highBits) = (UInt16(byte), UInt8(shift), UInt8(bits))
    return field
  }

  /// - Parameter start: of the block
  fileprivate func value(_ bytes: RawSpan, _ start: Int) -> UInt8 {
    let low = unsafe bytes.unsafeLoad(fromByteOffset: start + Int(byte), as: UInt8.self)
    let high = unsafe bytes.unsafeLoad(fromByteOffset: start + Int(highByte), as: UInt8.self)
    return low >> shift & Self.mask(bits) | (high >> highShift & Self.mask(highBits)) << bits
  }

  /// Sets the bits, which are 0 before.
  fileprivate func set(_ value: UInt8, in bytes: inout [UInt8], at start: Int) {
    bytes[start + Int(byte)] |= (value & Self.mask(bits)) << shift
    if highBits > 0 { bytes[start + Int(highByte)] |= (value >> bits & Self.mask(highBits)) << highShift }
  }

  private static func mask(_ bits: UInt8) -> UInt8 { UInt8(truncatingIfNeeded: (1 << UInt16(bits)) - 1) }
}

extension GGUFBlocks {
  /// A whole number as its field has it: moved up to 0 in Q3_K, and of two's complement in Q6_K.
  private func multiple(_ stored: UInt8, in range: ClosedRange<Int>) -> Int {
    range.lowerBound == -128 ? Int(Int8(bitPattern: stored)) : Int(stored) + range.lowerBound
  }

  private func stored(_ multiple: Int, in range: ClosedRange<Int>) -> UInt8 {
    precondition(range.contains(multiple), "a multiple that its field does not hold")
    return range.lowerBound == -128
      ? UInt8(bitPattern: Int8(multiple)) : UInt8(multiple - range.lowerBound)
  }

  private func half(_ bytes: RawSpan, _ place: Int) -> Float {
    Float(
      float16Bits: UInt16(
        littleEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: place, as: UInt16.self)))
  }

  /// Reads one block as the weights that it stands for, with the roundings of llama.cpp.
  /// - Parameters:
  ///   - start: of the block
  ///   - values: takes its weights from `first` on
  func read(_ bytes: RawSpan, at start: Int, into values: inout MutableSpan<Float>, from first: Int) {
    let unit = half(bytes, start + unitByte)
    let offsetUnit = middle == nil ? half(bytes, start + offsetUnitByte) : 0
    for group in 0..<groups {
      var (scale, offset) = (unit, offsetUnit)
      if let range = scaleMultiples {
        scale = unit * Float(multiple(scaleFields[group].value(bytes, start), in: range))
      }
      if let range = offsetMultiples {
        offset = -offsetUnit * Float(multiple(offsetFields[group].value(bytes, start), in: range))
      }
      for element in group * groupSize..<(group + 1) * groupSize {
        let code = Int(codes[element].value(bytes, start) ^ codeFlip)
        values[first + element] =
          middle.map { scale * Float(code - $0) } ?? (scale * Float(code) + offset)
      }
    }
  }

  /// Appends a block.
  /// - Parameters:
  ///   - block: its codes, one a byte
  ///   - unit: of the scales, or the one scale
  ///   - offsetUnit: of the offsets, or the one offset
  ///   - scales: multiples of the unit, one a group; empty where the scale is a float
  ///   - offsets: the same for offsets
  public func append(
    _ block: Span<UInt8>, unit: Float, offsetUnit: Float, scales: [Int], offsets: [Int],
    byteCount: Int, to bytes: inout [UInt8]
  ) {
    let start = bytes.count
    bytes += repeatElement(0, count: byteCount)
    func set(_ value: Float, at place: Int) {
      let bits = value.float16Bits
      bytes[start + place] = UInt8(truncatingIfNeeded: bits)
      bytes[start + place + 1] = UInt8(truncatingIfNeeded: bits >> 8)
    }
    set(unit, at: unitByte)
    if middle == nil { set(offsetUnit, at: offsetUnitByte) }
    if let range = scaleMultiples {
      for (field, multiple) in zip(scaleFields, scales) {
        field.set(stored(multiple, in: range), in: &bytes, at: start)
      }
    }
    if let range = offsetMultiples {
      for (field, multiple) in zip(offsetFields, offsets) {
        field.set(stored(multiple, in: range), in: &bytes, at: start)
      }
    }
    for index in block.indices { codes[index].set(block[index] ^ codeFlip, in: &bytes, at: start) }
  }
}
