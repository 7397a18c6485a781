import FoundationEssentials
import Glibc
import Synchronization
import SystemIO
import TestSupport
import Testing

@testable import Daemon

struct LogTests {
  private func line(
    _ priority: Log.Priority = .info, _ event: String, _ fields: Log.Field...
  ) -> String {
    String(decoding: Log.line("<\(priority.rawValue)>", event, fields), as: UTF8.self)
  }

  @Test func `a line says what happened, to what, and how urgent it is`() {
    #expect(
      line(.info, "linear quantized", .job("9f31"), .layer(36), .linear("mlp.down_proj"), .seconds(1.23456))
        == "<6>linear quantized job=9f31 layer=36 linear=mlp.down_proj seconds=1.235\n")
    #expect(line(.error, "job failed", .code(65)) == "<3>job failed code=65\n")
  }

  @Test func `where nobody else dates it, a line begins with its time and says that it warns`() {
    let time = Date(timeIntervalSince1970: 1_795_475_702)
    #expect(Log.dated(.notice, time) == "2026-11-23T23:15:02Z ")
    #expect(Log.dated(.warning, time) == "2026-11-23T23:15:02Z warning: ")
    #expect(Log.dated(.critical, time) == "2026-11-23T23:15:02Z error: ")
  }

  @Test(arguments: [
    ("plain-1.0_x/y", "plain-1.0_x/y"), ("", #""""#), ("two words", #""two words""#), ("a=b", #""a=b""#),
    (#"say "hi""#, #""say \"hi\"""#), (#"back\slash"#, #""back\\slash""#), ("Größe", "Größe"),
    ("line\nfeed", #""line\nfeed""#), ("\u{1B}[2J", #""\u{1b}[2J""#), ("\u{0}", #""\u{0}""#),
    ("right\u{202E}left", #""right\u{202e}left""#), ("\u{2028}", #""\u{2028}""#), ("\u{9B}", #""\u{9b}""#),
    ("a\u{A0}b", "\"a\u{A0}b\""),
  ])
  func `a value is quoted where it has to be`(value: String, written: String) {
    #expect(line(.info, "seen", .name(value)) == "<6>seen name=\(written)\n")
  }

  @Test func `an event cannot begin another line`() {
    #expect(line(.info, "one\n<0>two\r") == "<6>one\\n<0>two\\r\n")
  }

  @Test func `an endless name is cut between characters`() {
    let bytes = Log.line("<6>", String(repeating: "é", count: 20_000), [])
    #expect(bytes.count <= Log.byteLimit)
    #expect(String(validating: bytes, as: UTF8.self)?.hasSuffix("é…\n") == true)
  }

  @Test func `lines of several threads do not mix, and what is not urgent is dropped`() throws {
    // A socket keeps each write apart.
    var ends: [Int32] = [0, 0]
    let made = unsafe ends.withUnsafeMutableBufferPointer {
      unsafe socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, $0.baseAddress)
    }
    try #require(made == 0)
    let (reading, writing) = (ends[0], ends[1])
    defer {
      close(reading)
      close(writing)
    }
    let log = Log(least: .notice, form: .journal, descriptor: writing)
    log.info("not this")
    log.notice("this", .job("a b"))
    log.critical("and this")
    var buffer = [UInt8](repeating: 0, count: 4096)
    var lines: [String] = []
    while lines.count < 2 {
      let count = unsafe buffer.withUnsafeMutableBytes {
        unsafe recv(reading, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
      }
      try #require(count > 0)
      lines.append(String(decoding: buffer[..<count], as: UTF8.self))
    }
    #expect(lines == ["<5>this job=\"a b\"\n", "<2>and this\n"])
  }
}
