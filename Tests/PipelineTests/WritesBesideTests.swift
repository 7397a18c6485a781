import Synchronization
import Testing

@testable import Pipeline

struct WritesBesideTests {
  private struct FullDisk: Error {}

  @Test(arguments: [true, false]) func `all is written in its order`(_ isBeside: Bool) throws {
    let writes = WritesBeside(isBeside: isBeside)
    let written = Mutex<[Int]>([])
    for number in 0..<50 {
      try writes.add { written.withLock { $0.append(number) } }
      // The one before is done, so that there are never three results.
      #expect(written.withLock { $0.count } >= number)
    }
    try writes.finish()
    #expect(written.withLock { $0 } == Array(0..<50))
  }

  @Test(arguments: [true, false]) func `after an error nothing is written, and whoever waits learns of it`(
    _ isBeside: Bool
  ) {
    let writes = WritesBeside(isBeside: isBeside)
    let written = Mutex(0)
    #expect(throws: FullDisk.self) {
      try writes.add { throw FullDisk() }
      try writes.add { written.withLock { $0 += 1 } }
      try writes.finish()
    }
    if isBeside { #expect(throws: FullDisk.self) { try writes.finish() } }
    #expect(written.withLock { $0 } == 0)
  }
}
