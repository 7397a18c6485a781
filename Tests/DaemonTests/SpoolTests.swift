import Daemon
import SystemIO
import TestSupport
import Testing

struct SpoolTests {
  @Test func `a spool is made whole, and again without harm`() throws {
    let directory = try TemporaryDirectory()
    let spool = Spool(root: directory.file("spool"))
    try spool.create()
    try spool.create()
    #expect(
      try FileSystem.names(in: spool.root) == [
        ".hooks", ".requests", "done", "failed", "incoming", "output", "working",
      ])
    #expect(try FileSystem.names(in: spool.output) == [".partial"])
  }
}
