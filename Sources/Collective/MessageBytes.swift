/// The bytes of a message: written once, and from then on shared by all who send, receive and read them.
@safe public final class MessageBytes: @unchecked Sendable {
  let memory: UnsafeMutableRawBufferPointer

  public var count: Int { unsafe memory.count }

  /// - Parameter byteCount: of memory that holds whatever stood there
  init(uninitializedCount byteCount: Int) {
    unsafe memory = .allocate(byteCount: byteCount, alignment: 64)
  }

  /// - Parameter write: sets all of them; 64-byte aligned
  public convenience init(count: Int, _ write: (UnsafeMutableRawBufferPointer) throws -> Void) rethrows {
    self.init(uninitializedCount: count)
    try unsafe write(memory)
  }

  public convenience init(_ bytes: [UInt8]) {
    self.init(uninitializedCount: bytes.count)
    unsafe memory.copyBytes(from: bytes)
  }

  /// Of a message whose label says all.
  static let none = MessageBytes([])

  deinit { unsafe memory.deallocate() }

  public var array: [UInt8] { unsafe Array(memory) }

  /// Lends the bytes, 64-byte aligned.
  public func withUnsafeBytes<Result>(
    _ body: (UnsafeRawBufferPointer) throws -> Result
  ) rethrows -> Result {
    try unsafe body(UnsafeRawBufferPointer(memory))
  }

  /// A message goes in pieces, as transports count in 32 bits.
  func piece(at offset: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(rebasing: memory[offset..<min(offset + 1 << 30, memory.count)])
  }
}
