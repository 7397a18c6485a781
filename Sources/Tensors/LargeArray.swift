import Glibc

extension Array where Element == UInt8 {
  private static let leastByteCountOfLargePages = 4 << 20

  /// Bytes that are whatever stood in their memory: for those who write each before they read it.
  ///
  /// Where there are many they are in large pages, which the kernel hands out several times as fast.
  public static func uninitialized(count: Int) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, initializedCount in
      initializedCount = count
      guard count >= leastByteCountOfLargePages, let base = buffer.baseAddress else { return }
      let page = UInt(sysconf(Int32(_SC_PAGESIZE)))
      let start = (UInt(bitPattern: base) + page - 1) / page * page
      let end = (UInt(bitPattern: base) + UInt(count)) / page * page
      unsafe madvise(UnsafeMutableRawPointer(bitPattern: start), Int(end - start), Int32(MADV_HUGEPAGE))
    }
  }
}
