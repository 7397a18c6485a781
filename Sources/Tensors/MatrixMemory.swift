import Glibc
import Synchronization

/// The memory of matrices, given back with the last matrix over it.
public protocol MatrixMemory: AnyObject, Sendable {
  /// The first element, 64-byte aligned; on an accelerator an address of its own.
  @unsafe var pointer: UnsafeMutablePointer<Float> { get }
}

/// Memory of this process, zeroed.
///
/// From a size on it is mapped directly. The C library would keep freed blocks of this size for later, in pieces
/// between smaller ones, and a run's memory would grow with the number of layers; mapped pages also come zeroed,
/// and may be large ones.
@safe final class HostMemory: MatrixMemory, @unchecked Sendable {
  @unsafe let pointer: UnsafeMutablePointer<Float>
  private let mappedByteCount: Int?

  private static let leastMappedByteCount = 1 << 17
  private static let leastByteCountOfLargePages = 4 << 20
  private static let spares = Mutex(SpareMappings())

  /// - Parameter isZeroed: false if it makes no difference what the elements are
  init(elements: Int, isZeroed: Bool = true) {
    let byteCount = max(elements, 1) * MemoryLayout<Float>.stride
    guard byteCount >= Self.leastMappedByteCount else {
      mappedByteCount = nil
      unsafe pointer = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 64)
        .bindMemory(to: Float.self, capacity: max(elements, 1))
      unsafe pointer.initialize(repeating: 0, count: max(elements, 1))
      return
    }
    mappedByteCount = byteCount
    if let address = Self.spares.withLock({ $0.take(byteCount) }),
      let spare = unsafe UnsafeMutableRawPointer(bitPattern: address)
    {
      if isZeroed { unsafe memset(spare, 0, byteCount) }
      unsafe pointer = spare.bindMemory(to: Float.self, capacity: elements)
      return
    }
    let mapping = unsafe mmap(
      nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
      // Not a precondition: those say nothing in a release build.
      fatalError("out of memory: a matrix of \(byteCount) bytes cannot be mapped")
    }
    if byteCount >= Self.leastByteCountOfLargePages {
      unsafe madvise(mapping, byteCount, Int32(MADV_HUGEPAGE))
    }
    unsafe pointer = mapping.bindMemory(to: Float.self, capacity: elements)
  }

  deinit {
    guard let mappedByteCount else { return unsafe pointer.deallocate() }
    let address = UInt(bitPattern: unsafe pointer)
    for mapping in Self.spares.withLock({
      $0.keep(SpareMapping(address: address, byteCount: mappedByteCount))
    }) {
      unsafe munmap(UnsafeMutableRawPointer(bitPattern: mapping.address), mapping.byteCount)
    }
  }
}

private struct SpareMapping {
  let address: UInt
  let byteCount: Int
}

/// The last mappings that were given back, for matrices of the same size: layer after layer makes the same ones, and
/// to fault their pages in costs more than to clear them.
private struct SpareMappings {
  /// Oldest first.
  private var mappings: [SpareMapping] = []
  private var byteCount = 0

  /// All that is kept. Larger matrices than half of it have large pages and few faults.
  static let limit = 32 << 20

  mutating func take(_ byteCount: Int) -> UInt? {
    guard let index = mappings.lastIndex(where: { $0.byteCount == byteCount }) else { return nil }
    self.byteCount -= byteCount
    return mappings.remove(at: index).address
  }

  /// - Returns: what there is no room for
  mutating func keep(_ mapping: SpareMapping) -> [SpareMapping] {
    guard mapping.byteCount <= Self.limit / 2 else { return [mapping] }
    mappings.append(mapping)
    byteCount += mapping.byteCount
    var rest: [SpareMapping] = []
    while byteCount > Self.limit {
      let oldest = mappings.removeFirst()
      byteCount -= oldest.byteCount
      rest.append(oldest)
    }
    return rest
  }
}
