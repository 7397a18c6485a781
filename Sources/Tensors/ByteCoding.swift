/// Puts bytes together, in the machine's order of them.
public struct ByteWriter {
  public private(set) var bytes: [UInt8] = []

  public init() {}

  /// Makes room for so many bytes more, which then need not be copied as they grow.
  public mutating func reserve(_ count: Int) { bytes.reserveCapacity(bytes.count + count) }

  public mutating func append<Value: BitwiseCopyable>(_ values: Span<Value>) {
    unsafe values.withUnsafeBytes { unsafe bytes.append(contentsOf: $0) }
  }

  public mutating func append<Value: BitwiseCopyable>(_ values: [Value]) {
    unsafe values.withUnsafeBytes { unsafe bytes.append(contentsOf: $0) }
  }
}

/// Takes bytes apart; nil where they end too early.
public struct ByteReader {
  private var offset = 0

  public init() {}

  public mutating func values<Value: BitwiseCopyable>(
    _ type: Value.Type, count: Int, of bytes: [UInt8]
  ) -> [Value]? {
    unsafe bytes.withUnsafeBytes { unsafe values(type, count: count, of: RawSpan(_unsafeBytes: $0)) }
  }

  public mutating func values<Value: BitwiseCopyable>(
    _ type: Value.Type, count: Int, of bytes: RawSpan
  ) -> [Value]? {
    let (byteCount, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Value>.stride)
    guard !overflow, count >= 0, byteCount <= bytes.byteCount - offset else { return nil }
    let part = bytes.extracting(offset..<offset + byteCount)
    offset += byteCount
    return unsafe [Value](unsafeUninitializedCapacity: count) { buffer, initialized in
      unsafe part.withUnsafeBytes { unsafe UnsafeMutableRawBufferPointer(buffer).copyMemory(from: $0) }
      initialized = count
    }
  }
}
