import SystemIO
import TestSupport
import Testing

@Suite(.serialized) struct ProcessMemoryTests {
  @Test func `the peak is at least what is resident now`() throws {
    let memory = try ProcessMemory.current()
    #expect(memory.anonymousBytes > 0)
    #expect(memory.peakResidentBytes >= memory.anonymousBytes)
  }

  /// In a process of its own: other tests take memory, too.
  @Test func `the sampler sees memory that is gone when it stops`() async {
    await #expect(processExitsWith: .success) {
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
  }

  @Test func `memory that is available is what the kernel says`() throws {
    let directory = try TemporaryDirectory()
    let meminfo = try directory.write(
      "MemTotal:  2000 kB\nMemFree:  100 kB\nMemAvailable:  1500 kB\nHugePages_Total:  7\n", to: "meminfo")
    #expect(try ProcessMemory.availableBytes(meminfo: meminfo) == 1_500 * 1024)
  }

  @Test func `without meminfo the memory nodes count, less a reserve for the kernel`() throws {
    let directory = try TemporaryDirectory()
    for node in 0...1 {
      try FileSystem.createDirectories(directory.file("node\(node)"))
      try directory.write(
        """
        Node \(node) MemTotal:       33554432 kB
        Node \(node) MemFree:        1048576 kB
        Node \(node) Active(file):   4194304 kB
        Node \(node) Inactive(file): 2097152 kB
        Node \(node) Shmem:          8388608 kB
        Node \(node) SReclaimable:   1048576 kB
        Node \(node) HugePages_Total:     3

        """, to: "node\(node)/meminfo")
    }
    try directory.write("0-1", to: "online")
    let available = try ProcessMemory.availableBytes(
      meminfo: directory.file("absent"), nodes: directory.path)
    // Of each node's 32 GiB 8 are free or cached, and a part in 32 is the kernel's.
    #expect(available == 2 * (8 - 1) << 30)
  }

  @Test func `the limit of a control group counts, its own or one above it, less what is used and no cache`()
    throws
  {
    let directory = try TemporaryDirectory()
    let meminfo = try directory.write("MemAvailable:  1000000 kB\n", to: "meminfo")
    let membership = try directory.write("0::/system.slice/quanteased.service\n", to: "cgroup")
    let service = "groups/system.slice/quanteased.service"
    try FileSystem.createDirectories(directory.file(service))
    func available() throws -> Int {
      try ProcessMemory.availableBytes(
        meminfo: meminfo, controlGroup: membership, controlGroups: directory.file("groups"))
    }
    func write(_ text: String, to name: String) throws {
      try AtomicFile.write(text, to: directory.file(name))
    }
    #expect(try available() == 1_024_000_000)
    for group in [service, "groups/system.slice"] {
      try write("max\n", to: "\(group)/memory.max")
      try write("max\n", to: "\(group)/memory.high")
      try write("300000000\n", to: "\(group)/memory.current")
      try write("anon 100\nactive_file 50000000\ninactive_file 100000000\n", to: "\(group)/memory.stat")
    }
    #expect(try available() == 1_024_000_000)
    try write("500000000\n", to: "\(service)/memory.max")
    #expect(try available() == 350_000_000)
    try write("400000000\n", to: "groups/system.slice/memory.high")
    #expect(try available() == 250_000_000)
    try write("100000000\n", to: "\(service)/memory.max")
    #expect(try available() == 0)
  }

  @Test func `with neither, what nothing uses is a lower bound`() throws {
    let directory = try TemporaryDirectory()
    let free = try ProcessMemory.availableBytes(meminfo: directory.file("absent"), nodes: directory.path)
    #expect(free > 0)
    #expect(free <= (try ProcessMemory.availableBytes()) * 5 / 4)
  }

  @Test func `the nodes of this machine give no more than the kernel's own estimate by much`() throws {
    let (whole, nodes) = (
      try ProcessMemory.availableBytes(), try ProcessMemory.availableBytes(meminfo: "/absent/meminfo")
    )
    #expect(nodes > 0)
    #expect(nodes <= whole * 5 / 4)
  }

  private static func sleep(milliseconds: Int) throws {
    let clock = ContinuousClock()
    let end = clock.now + .milliseconds(milliseconds)
    while clock.now < end { _ = try ProcessMemory.current() }
  }
}
