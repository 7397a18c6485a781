import Glibc
import SystemPackage

extension SystemCall {
  /// Bytes of the machine's memory that nothing uses, caches included among what uses it.
  static func freeMemoryBytes() throws(Errno) -> Int {
    let pages = sysconf(Int32(_SC_AVPHYS_PAGES))
    guard pages >= 0 else { throw Errno(rawValue: Glibc.errno) }
    return pages * sysconf(Int32(_SC_PAGESIZE))
  }
}
