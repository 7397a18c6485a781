import Glibc
import Synchronization
import Tensors

/// Memory of matrices that can be touched while it is open and is a crash at any other time.
@safe final class GuardedMemory: MatrixMemory, @unchecked Sendable {
  @unsafe let pointer: UnsafeMutablePointer<Float>
  private let byteCount: Int
  /// Who has it open, several where operations overlap.
  private let users = Mutex(0)

  /// Zeros, closed.
  init(elements: Int) {
    let page = sysconf(Int32(_SC_PAGESIZE))
    byteCount = (max(elements, 1) * MemoryLayout<Float>.stride + page - 1) / page * page
    let mapping = unsafe mmap(nil, byteCount, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let mapping = unsafe mapping, unsafe mapping != MAP_FAILED else { fatalError("out of memory") }
    unsafe pointer = mapping.bindMemory(to: Float.self, capacity: elements)
  }

  deinit { unsafe munmap(pointer, byteCount) }

  func open() {
    users.withLock { users in
      users += 1
      if users == 1 { protect(PROT_READ | PROT_WRITE) }
    }
  }

  func close() {
    users.withLock { users in
      users -= 1
      if users == 0 { protect(PROT_NONE) }
    }
  }

  private func protect(_ protection: Int32) {
    guard unsafe mprotect(pointer, byteCount, protection) == 0 else { fatalError("mprotect: \(errno)") }
  }
}
