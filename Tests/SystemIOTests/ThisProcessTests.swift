import Testing

@testable import SystemIO

struct ThisProcessTests {
  @Test func `a program that was replaced since it was started has the name it had`() {
    #expect(ThisProcess.named("/usr/local/bin/quanteased (deleted)") == "/usr/local/bin/quanteased")
    #expect(ThisProcess.named("/usr/local/bin/quanteased") == "/usr/local/bin/quanteased")
  }
}
