import SystemIO
import Testing

@Suite(.serialized) struct ProcessMemoryTests {
  @Test func `the peak is at least what is resident now`() throws {
    let memory = try ProcessMemory.current()
    #expect(memory.anonymousBytes > 0)
    #expect(memory.peakResidentBytes >= memory.anonymousBytes)
  }

  @Test func `the sampler sees memory that is gone when it stops`() throws {
    let sampler = PeakMemorySampler()
    let before = try ProcessMemory.current().anonymousBytes
    let byteCount = 256 << 20
    do {
      let block = [UInt8](repeating: 1, count: byteCount)
      // Longer than the sampler's interval: only the thread can see it.
      try withExtendedLifetime(block) { try Self.sleep(milliseconds: 200) }
    }
    let after = try ProcessMemory.current().anonymousBytes
    let peak = sampler.stop()
    #expect(after < before + byteCount / 2)
    #expect(peak > byteCount * 9 / 10)
    #expect(sampler.stop() == peak)
  }

  private static func sleep(milliseconds: Int) throws {
    let clock = ContinuousClock()
    let end = clock.now + .milliseconds(milliseconds)
    while clock.now < end { _ = try ProcessMemory.current() }
  }
}
