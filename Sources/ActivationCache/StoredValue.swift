import Tensors

// The layout of one value. All numbers are little-endian.
//
//     0   4  "QEHS"
//     4   1  version
//     5   1  element type: 0 float32, 1 float16, 2 bfloat16
//     6   2  zero
//     8   8  rows
//     16  8  columns
//     24  8  hash of bytes 0 ..< 24 and of the segment table
//     32     the segment table: for each chunk in turn, for each of its planes from the lowest,
//              4  bytes stored
//              4  encoding: 0 as it is, 1 one zstd frame
//              8  hash of the stored bytes
//            the segments, in the same order, without gaps
//
// A chunk is `StoredValue.chunkElements` consecutive elements; only the last one may be shorter.

/// One byte plane of one chunk, as stored.
struct Segment: Equatable {
  enum Encoding: UInt32 { case raw, zstd }

  var byteCount = 0
  var encoding = Encoding.raw
  var hash: UInt64 = 0
}

/// What the head of a value says, checked against the value's length.
struct StoredValue {
  /// Large enough for zstd to work at full speed, small enough for the level-2 cache and for many threads.
  static let chunkElements = 1 << 18
  static let headerBytes = 32
  static let segmentEntryBytes = 16
  private static let magic: [UInt8] = Array("QEHS".utf8)
  private static let version: UInt8 = 1
  private static let elementTypes: [DType] = [.float32, .float16, .bfloat16]

  let elementType: DType
  let rows: Int
  let columns: Int
  let segments: [Segment]

  var elements: Int { rows * columns }
  var rawBytes: Int { elements * elementType.byteWidth }

  static func chunkCount(elements: Int) -> Int { (elements + chunkElements - 1) / chunkElements }

  /// The elements of chunk `index` of a value with `elements` elements.
  static func chunk(_ index: Int, elements: Int) -> Range<Int> {
    index * chunkElements..<min((index + 1) * chunkElements, elements)
  }

  /// Where the segments begin.
  var payloadOffset: Int { Self.headerBytes + segments.count * Self.segmentEntryBytes }

  /// Header and segment table.
  var head: [UInt8] {
    var head = Self.magic
    head.append(Self.version)
    head.append(UInt8(Self.elementTypes.firstIndex(of: elementType) ?? 0))
    head += [0, 0]
    head.append(littleEndian: UInt64(rows))
    head.append(littleEndian: UInt64(columns))
    var table: [UInt8] = []
    table.reserveCapacity(segments.count * Self.segmentEntryBytes)
    for segment in segments {
      table.append(littleEndian: UInt32(segment.byteCount))
      table.append(littleEndian: segment.encoding.rawValue)
      table.append(littleEndian: segment.hash)
    }
    head.append(littleEndian: Self.hash(header: head, table: table))
    return head + table
  }

  private static func hash(header: [UInt8], table: [UInt8]) -> UInt64 {
    let seed = unsafe header.withUnsafeBytes { unsafe blockHash($0) }
    return unsafe table.withUnsafeBytes { unsafe blockHash($0, seed: seed) }
  }
}

extension StoredValue {
  /// Reads and verifies the head of a value. After it, every segment lies within the value.
  /// - Throws: ``CacheError/corrupt(_:byte:reason:)``
  @unsafe init(_ bytes: UnsafeRawBufferPointer, key: HiddenStatesKey) throws(CacheError) {
    func corrupt(_ byte: Int, _ reason: String) -> CacheError { .corrupt(key, byte: byte, reason: reason) }

    guard bytes.count >= Self.headerBytes else { throw corrupt(0, "the header is cut short") }
    let header = unsafe [UInt8](bytes[..<24])
    guard Array(header[..<4]) == Self.magic, header[4] == Self.version else {
      throw corrupt(0, "these are no hidden states")
    }
    guard Int(header[5]) < Self.elementTypes.count else { throw corrupt(5, "unknown element type") }
    elementType = Self.elementTypes[Int(header[5])]
    guard
      let rows = Int(exactly: header.littleEndian(UInt64.self, at: 8)),
      let columns = Int(exactly: header.littleEndian(UInt64.self, at: 16)),
      case (let elements, false) = rows.multipliedReportingOverflow(by: columns),
      elements <= Int.max / (2 * elementType.byteWidth)
    else { throw corrupt(8, "impossible dimensions") }
    self.rows = rows
    self.columns = columns

    let planes = elementType.byteWidth
    let segmentCount = Self.chunkCount(elements: elements) * planes
    guard segmentCount <= (bytes.count - Self.headerBytes) / Self.segmentEntryBytes else {
      throw corrupt(Self.headerBytes, "the segment table is cut short")
    }
    let payloadOffset = Self.headerBytes + segmentCount * Self.segmentEntryBytes
    let table = unsafe [UInt8](bytes[Self.headerBytes..<payloadOffset])
    let hash = unsafe [UInt8](bytes[24..<Self.headerBytes]).littleEndian(UInt64.self, at: 0)
    guard hash == Self.hash(header: header, table: table) else {
      throw corrupt(24, "the header does not match its checksum")
    }

    var segments: [Segment] = []
    segments.reserveCapacity(segmentCount)
    var end = payloadOffset
    for index in 0..<segmentCount {
      let entry = index * Self.segmentEntryBytes
      let byteCount = Int(table.littleEndian(UInt32.self, at: entry))
      let encoding = Segment.Encoding(rawValue: table.littleEndian(UInt32.self, at: entry + 4))
      let hash = table.littleEndian(UInt64.self, at: entry + 8)
      let plane = Self.chunk(index / planes, elements: elements).count
      guard let encoding, encoding == .zstd || byteCount == plane, byteCount <= bytes.count - end else {
        throw corrupt(Self.headerBytes + entry, "an impossible segment")
      }
      segments.append(Segment(byteCount: byteCount, encoding: encoding, hash: hash))
      end += byteCount
    }
    guard end == bytes.count else { throw corrupt(end, "bytes beyond the last segment") }
    self.segments = segments
  }
}

extension [UInt8] {
  fileprivate mutating func append(littleEndian value: some FixedWidthInteger & UnsignedInteger) {
    for byte in 0..<value.bitWidth / 8 { append(UInt8(truncatingIfNeeded: value >> (8 * byte))) }
  }

  fileprivate func littleEndian<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value {
    self[offset..<offset + Value.bitWidth / 8].reversed().reduce(0) { $0 << 8 | Value($1) }
  }
}
