import Glibc

/// The memory of matrices, zeroed, and given back with the last matrix over it.
///
/// From a size on it is mapped directly. The C library would keep freed blocks of this size for later, in pieces
/// between smaller ones, and a run's memory would grow with the number of layers; mapped pages also come zeroed,
/// and may be large ones.
@safe final class MatrixMemory: @unchecked Sendable {
  /// 64-byte aligned.
  @unsafe let pointer: UnsafeMutablePointer<Float>
  private let mappedByteCount: Int?

  private static let leastMappedByteCount = 1 << 20
  private static let leastByteCountOfLargePages = 4 << 20

  init(elements: Int) {
    let byteCount = max(elements, 1) * MemoryLayout<Float>.stride
    guard byteCount >= Self.leastMappedByteCount else {
      mappedByteCount = nil
      unsafe pointer = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 64)
        .bindMemory(to: Float.self, capacity: max(elements, 1))
      unsafe pointer.initialize(repeating: 0, count: max(elements, 1))
      return
    }
    let mapping = unsafe mmap(
      nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else {
      preconditionFailure("out of memory: a matrix of \(byteCount) bytes cannot be mapped")
    }
    if byteCount >= Self.leastByteCountOfLargePages {
      unsafe madvise(mapping, byteCount, Int32(MADV_HUGEPAGE))
    }
    mappedByteCount = byteCount
    unsafe pointer = mapping.bindMemory(to: Float.self, capacity: elements)
  }

  deinit {
    if let mappedByteCount {
      unsafe munmap(pointer, mappedByteCount)
    } else {
      unsafe pointer.deallocate()
    }
  }
}
