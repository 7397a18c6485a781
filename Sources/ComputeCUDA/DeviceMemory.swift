import Compute
import Tensors

/// Memory of a GPU: its addresses have elements for the backend's operations alone.
@safe final class DeviceMemory: MatrixMemory, @unchecked Sendable {
  @unsafe let pointer: UnsafeMutablePointer<Float>
  private let context: DeviceContext
  let address: UInt64

  init(bytes: Int, _ context: DeviceContext) {
    self.context = context
    address = context.allocate(bytes: bytes)
    guard let pointer = unsafe UnsafeMutablePointer<Float>(bitPattern: UInt(address)) else {
      preconditionFailure("an allocation succeeded without an address")
    }
    unsafe self.pointer = pointer
  }

  deinit { context.free(address) }
}

extension DeviceContext {
  /// Memory until the last reference to it goes; what stands there is whatever stood there before.
  func scratch(bytes: Int) -> DeviceMemory { DeviceMemory(bytes: bytes, self) }

  func scratch(floats: Int) -> DeviceMemory { DeviceMemory(bytes: floats * MemoryLayout<Float>.stride, self) }

  /// A copy of an array of the host's.
  func uploaded<Element: BitwiseCopyable>(_ values: [Element]) -> DeviceMemory {
    let memory = scratch(bytes: values.count * MemoryLayout<Element>.stride)
    unsafe values.withUnsafeBytes { bytes in
      if let base = bytes.baseAddress { unsafe upload(base, to: memory.address, bytes: bytes.count) }
    }
    return memory
  }

  /// What memory holds, from its beginning.
  func downloaded<Element: BitwiseCopyable>(_ memory: DeviceMemory, count: Int, of zero: Element) -> [Element]
  {
    downloaded(memory.address, count: count, of: zero)
  }

  /// - Returns: zeros where a call has failed
  func downloaded<Element: BitwiseCopyable>(_ address: UInt64, count: Int, of zero: Element) -> [Element] {
    var values = [Element](repeating: zero, count: count)
    unsafe values.withUnsafeMutableBytes { bytes in
      if let base = bytes.baseAddress { unsafe download(address, to: base, bytes: bytes.count) }
    }
    return values
  }
}

extension Matrix {
  /// Where it begins in the device's memory.
  var address: UInt64 { UInt64(UInt(bitPattern: unsafe pointer)) }

  var operand: DeviceContext.Operand { .init(address: address, stride: columns) }
}

/// Memory of the host's that a device copies from and to.
@safe final class PinnedBuffer: MatrixMemory, @unchecked Sendable {
  @unsafe let memory: UnsafeMutableRawPointer
  @unsafe let pointer: UnsafeMutablePointer<Float>
  let bytes: Int
  let isPinned: Bool

  init(_ memory: UnsafeMutableRawPointer, bytes: Int, isPinned: Bool) {
    unsafe self.memory = memory
    unsafe pointer = memory.bindMemory(to: Float.self, capacity: bytes / MemoryLayout<Float>.stride)
    self.bytes = bytes
    self.isPinned = isPinned
  }

  func copy(from source: UnsafeRawBufferPointer, threads: Int) {
    precondition(source.count <= bytes, "there is no room")
    unsafe Self.copy(source, to: UnsafeMutableRawBufferPointer(start: memory, count: bytes), threads)
  }

  func copy(to destination: UnsafeMutableRawBufferPointer, threads: Int) {
    precondition(destination.count <= bytes, "there is not as much")
    unsafe Self.copy(
      UnsafeRawBufferPointer(start: memory, count: destination.count), to: destination, threads)
  }

  /// Bytes that a thread copies at a time.
  private static let part = 2 << 20

  /// Copies, several threads at a time: one alone is slower than the device is.
  private static func copy(
    _ source: UnsafeRawBufferPointer, to destination: UnsafeMutableRawBufferPointer, _ threads: Int
  ) {
    guard let first = source.baseAddress, let place = destination.baseAddress else { return }
    nonisolated(unsafe) let (from, to) = unsafe (first, place)
    let count = source.count
    ThreadTeam(threads: threads).run(chunks: (count + part - 1) / part) { index in
      let start = index * part
      unsafe (to + start).copyMemory(from: from + start, byteCount: min(part, count - start))
    }
  }
}

/// Values that a device has copied to the host's memory and will copy back.
@safe final class HostBlocks: MatrixMemory, @unchecked Sendable {
  private let context: DeviceContext
  private let blocks: [SpareBlocks.Block]
  let bytes: Int

  var pointer: UnsafeMutablePointer<Float> {
    preconditionFailure("what only the device reads has no address for others")
  }

  init(copyOf memory: DeviceMemory, bytes: Int, _ context: DeviceContext) {
    self.context = context
    self.bytes = bytes
    blocks = context.lendBlocks((bytes + SpareBlocks.blockBytes - 1) / SpareBlocks.blockBytes)
    forEachBlock { block, offset, count in
      context.downloadLater(memory.address + UInt64(offset), to: block, bytes: count)
    }
  }

  deinit { context.give(blocks) }

  func copy(to memory: DeviceMemory) {
    forEachBlock { block, offset, count in
      unsafe context.upload(block.memory, to: memory.address + UInt64(offset), bytes: count)
    }
  }

  private func forEachBlock(_ body: (_ block: SpareBlocks.Block, _ offset: Int, _ bytes: Int) -> Void) {
    for (index, block) in blocks.enumerated() {
      let offset = index * SpareBlocks.blockBytes
      body(block, offset, min(SpareBlocks.blockBytes, bytes - offset))
    }
  }
}

/// Blocks of one size, whatever is to stand in them, so that what states of one width leave takes those of another.
struct SpareBlocks {
  @safe struct Block: @unchecked Sendable {
    @unsafe let memory: UnsafeMutableRawPointer
  }

  static let blockBytes = 1 << 20
  /// To pin memory takes long for every call.
  static let slabBytes = 64 << 20

  private var slabs: [PinnedBuffer] = []
  private var spare: [Block] = []

  /// - Returns: nil if there are not as many
  mutating func take(_ count: Int) -> [Block]? {
    if spare.count < count { return nil }
    defer { spare.removeLast(count) }
    return Array(spare.suffix(count))
  }

  mutating func give(_ blocks: [Block]) { spare += blocks }

  mutating func add(_ slab: PinnedBuffer) {
    slabs.append(slab)
    for offset in stride(from: 0, to: slab.bytes, by: Self.blockBytes) {
      spare.append(unsafe Block(memory: slab.memory + offset))
    }
  }

  mutating func removeAll() -> [PinnedBuffer] {
    defer { (slabs, spare) = ([], []) }
    return slabs
  }
}

/// Buffers that have been given back. To pin memory takes longer than to copy it.
struct PinnedBuffers {
  /// Oldest first. The device may still copy from those that are pending.
  private var buffers: [(buffer: PinnedBuffer, isPending: Bool)] = []
  private var bytes = 0

  private static let limit = 2 << 30
  /// Buffers of a size that may be pending before one is waited for: enough for copies to go on meanwhile.
  private static let mostPending = 3

  /// - Returns: a buffer that is large enough and not much larger, if there is one to take
  mutating func take(_ wanted: Int) -> (buffer: PinnedBuffer?, mustWait: Bool) {
    let fitting = buffers.indices.filter { (wanted...2 * wanted).contains(buffers[$0].buffer.bytes) }
    let done = fitting.first { !buffers[$0].isPending }
    guard let index = done ?? (fitting.count < Self.mostPending ? nil : fitting.first) else {
      return (nil, false)
    }
    let taken = buffers.remove(at: index)
    bytes -= taken.buffer.bytes
    return (taken.buffer, taken.isPending)
  }

  /// - Returns: what there is no room for
  mutating func keep(_ buffer: PinnedBuffer) -> [PinnedBuffer] {
    buffers.append((buffer, true))
    bytes += buffer.bytes
    var rest: [PinnedBuffer] = []
    while bytes > Self.limit, buffers.count > 1 {
      let oldest = buffers.removeFirst().buffer
      bytes -= oldest.bytes
      rest.append(oldest)
    }
    return rest
  }

  /// The device is done with all that was asked of it.
  mutating func markDone() {
    for index in buffers.indices { buffers[index].isPending = false }
  }

  mutating func removeAll() -> [PinnedBuffer] {
    defer { (buffers, bytes) = ([], 0) }
    return buffers.map(\.buffer)
  }
}
