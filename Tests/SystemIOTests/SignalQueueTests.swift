import Glibc
import Testing

@testable import SystemIO

struct SignalQueueTests {
  @Test func `signals are read in the order in which they came`() async {
    await #expect(processExitsWith: .success) {
      let queue = try SignalQueue([SIGUSR1, SIGUSR2])
      #expect(try queue.next() == nil)
      raise(SIGUSR2)
      raise(SIGUSR1)
      #expect(try queue.wait() == SIGUSR2)
      #expect(try queue.wait() == SIGUSR1)
      #expect(try queue.next() == nil)
    }
  }

  @Test func `without its queue a signal does again what it does by default`() async {
    await #expect(processExitsWith: .signal(SIGUSR1)) {
      do { _ = try SignalQueue([SIGUSR1]) }
      raise(SIGUSR1)
    }
  }
}
