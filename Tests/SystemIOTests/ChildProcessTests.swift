import Glibc
import SystemIO
import Testing

@Suite struct ChildProcessTests {
  /// A library may open a descriptor that programs inherit. A child that has the other side of a connection keeps it open
  /// for as long as it runs, and whoever waits for its end waits for the child's.
  @Test func `a child has none of its parent's descriptors but the three streams`() throws {
    var ends: [Int32] = [0, 0]
    try #require(unsafe pipe(&ends) == 0)
    defer { ends.forEach { close($0) } }
    let script = "for end in \(ends[0]) \(ends[1]); do [ ! -e /proc/$$/fd/$end ] || echo $end; done"
    let child = try ChildProcess("/bin/sh", arguments: ["-c", script], environment: [:])
    var output: [UInt8] = []
    while case let bytes = try child.read(), !bytes.isEmpty { output += bytes }
    #expect(try child.wait() == .exited(status: 0))
    #expect(String(decoding: output, as: UTF8.self) == "")
  }
}
