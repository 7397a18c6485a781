import Glibc
import SystemIO
import SystemPackage
import TestSupport
import Testing

@testable import Daemon

/// A client that sends what it likes.
private final class Client {
  private let number: Int32

  init(port: UInt16) throws {
    number = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    let result = unsafe withUnsafeBytes(of: &address) { raw in
      guard let base = raw.baseAddress else { return Int32(-1) }
      return unsafe connect(number, base.assumingMemoryBound(to: sockaddr.self), socklen_t(raw.count))
    }
    try #require(result == 0)
    // A test that would hang fails instead.
    var time = timeval(tv_sec: 20, tv_usec: 0)
    _ = unsafe setsockopt(number, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { close(number) }

  /// - Returns: whether the other side still takes it
  @discardableResult
  func send(_ text: String) -> Bool {
    let bytes = Array(text.utf8)
    return unsafe bytes.withUnsafeBytes {
      unsafe Glibc.send(number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) == $0.count
    }
  }

  func finishSending() { shutdown(number, Int32(SHUT_WR)) }

  /// Everything until the other side closes; nil if it does not, or resets the connection.
  func rest() -> String? {
    var all: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65_536)
    while true {
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe recv(number, $0.baseAddress, $0.count, 0) }
      if count == 0 { return String(decoding: all, as: UTF8.self) }
      if count < 0 { return nil }
      all += buffer[..<count]
    }
  }
}

/// A server on a port that the system chooses, ended with its object.
private final class Endpoint {
  let server: StatusServer
  let port: UInt16

  init(
    _ snapshot: StatusSnapshot = SampleSnapshots.working, seconds: Double = 60,
    _ change: (inout StatusServer.Limits) -> Void = { _ in }
  ) throws {
    var limits = StatusServer.Limits()
    limits.seconds = seconds
    change(&limits)
    server = try StatusServer(
      listening: StatusServer.listen(on: "127.0.0.1:0"), hostNames: ["Quant.example"], limits: limits
    ) { snapshot }
    port = try #require(server.port)
  }

  deinit { server.stop() }

  func ask(_ request: String) throws -> String {
    let client = try Client(port: port)
    client.send(request)
    return try #require(client.rest())
  }

  func get(_ path: String, method: String = "GET") throws -> String {
    try ask("\(method) \(path) HTTP/1.1\r\nHost: localhost:\(port)\r\nUser-Agent: test\r\n\r\n")
  }
}

private func body(_ answer: String) throws -> String {
  let parts = answer.split(separator: "\r\n\r\n", maxSplits: 1, omittingEmptySubsequences: false)
  try #require(parts.count == 2)
  return String(parts[1])
}

struct StatusServerTests {
  @Test func `page, metrics and JSON are served`() throws {
    let endpoint = try Endpoint()
    let page = try endpoint.get("/")
    #expect(page.hasPrefix("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"))
    #expect(try body(page) == StatusPage(SampleSnapshots.working).html)
    let metrics = try endpoint.get("/metrics?debug=1")
    #expect(metrics.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"))
    #expect(try body(metrics) == Metrics(SampleSnapshots.working).text)
    let json = try endpoint.get("/status.json")
    #expect(json.contains("\r\nContent-Type: application/json\r\n"))
    #expect(try StatusSnapshot(json: Array(body(json).utf8)) == SampleSnapshots.working)
  }

  @Test func `every answer says how it is to be treated`() throws {
    let endpoint = try Endpoint()
    for answer in try [endpoint.get("/"), endpoint.get("/nothing"), endpoint.ask("?\r\n\r\n")] {
      for header in [
        "Connection: close", "Cache-Control: no-store", "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri",
        "Content-Length: \(try body(answer).utf8.count)",
      ] { #expect(answer.contains("\r\n\(header)"), "\(header)") }
    }
  }

  @Test func `HEAD has the head of GET and no body`() throws {
    let endpoint = try Endpoint()
    let get = try endpoint.get("/metrics")
    let head = try endpoint.get("/metrics", method: "HEAD")
    #expect(head.hasSuffix("\r\n\r\n"))
    #expect(try get == head + body(get))
  }

  @Test(arguments: [
    ("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
    ("GET /metrics/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
    ("GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
    ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", "405"),
    ("brew / HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
    ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
    ("GET / HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", "421"),
    ("GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n", "421"),
    ("GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n", "421"),
    ("POST / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
    ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "421"),
    ("GET http://localhost HTTP/1.1\r\nHost: evil.example\r\n\r\n", "200"),
    ("GET / HTTP/1.1\r\nHost: 127.0.0.1:8188\r\n\r\n", "200"),
    ("GET / HTTP/1.1\r\nhOST:\t[::1]:8188 \r\n\r\n", "200"),
    ("GET / HTTP/1.1\r\nHost: LOCALHOST.\r\n\r\n", "200"),
    ("GET / HTTP/1.1\r\nHost: quant.EXAMPLE\r\n\r\n", "200"),
    ("GET / HTTP/1.1\r\nHost: 192.168.1.7\r\n\r\n", "200"),
    ("\r\n\r\nGET / HTTP/1.0\r\n\r\n", "200"),
    ("GET / HTTP/1.1\r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\nHost: \r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\nHost: localhost:abc\r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", "400"),
    ("GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", "400"),
    ("GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
    ("GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
    ("GET /\r\n\r\n", "400"),
    ("GET / HTTP/1.0\n\n", "400"),
    ("\u{16}\u{3}\u{1}\u{2}\u{0}", "400"),
    ("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", "505"),
    ("GET /\(String(repeating: "x", count: 9_000)) HTTP/1.1\r\nHost: localhost\r\n\r\n", "431"),
    ("GET / HTTP/1.1\r\nHost: localhost\r\nX: \(String(repeating: "x", count: 9_000))", "431"),
    ("GET / HTTP/1.1\r\n" + String(repeating: "X: y\r\n", count: 2_000), "431"),
  ])
  func `a request is answered with its status`(request: String, status: String) throws {
    #expect(try Endpoint().ask(request).hasPrefix("HTTP/1.1 \(status) "))
  }

  @Test func `a method that is not served is told which are`() throws {
    let answer = try Endpoint().get("/", method: "DELETE")
    #expect(answer.contains("\r\nAllow: GET, HEAD\r\n"))
  }

  @Test func `a request that comes byte by byte is read`() throws {
    let endpoint = try Endpoint()
    let client = try Client(port: endpoint.port)
    for character in "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".unicodeScalars {
      client.send(String(character))
      usleep(500)
    }
    #expect(try #require(client.rest()).hasPrefix("HTTP/1.1 200 "))
  }

  @Test func `what follows a request is dropped, and its answer arrives all the same`() throws {
    let endpoint = try Endpoint()
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    let answer = try endpoint.ask(request + request + String(repeating: "\0garbage", count: 4_000))
    #expect(try body(answer) == Metrics(SampleSnapshots.working).text)
  }

  @Test func `clients that say nothing or little do not hold up others`() throws {
    let endpoint = try Endpoint()
    let silent = try (0..<6).map { _ in try Client(port: endpoint.port) }
    silent[0].send("GET / HT")
    let begin = MonotonicClock.seconds()
    #expect(try endpoint.get("/metrics").hasPrefix("HTTP/1.1 200 "))
    // Behind them it would be a minute.
    #expect(MonotonicClock.seconds() - begin < 15)
  }

  @Test func `with all places taken the next request waits no longer than the timeout`() throws {
    let endpoint = try Endpoint(seconds: 2) { $0.connections = 8 }
    let slow = try (0..<20).map { _ in try Client(port: endpoint.port) }
    for client in slow { client.send("GET / HTTP/1.1\r\nX: ") }
    defer { withExtendedLifetime(slow) {} }
    let begin = MonotonicClock.seconds()
    #expect(try endpoint.get("/metrics").hasPrefix("HTTP/1.1 200 "))
    // Two rounds of eight go before it, and the rest of the third beside it.
    #expect(MonotonicClock.seconds() - begin < 12)
  }

  @Test func `a client that says nothing loses its place to one that does`() throws {
    // They would keep it for longer than the client waits.
    let endpoint = try Endpoint(seconds: 60) { ($0.connections, $0.silentSeconds) = (3, 0.1) }
    let silent = try (0..<25).map { _ in try Client(port: endpoint.port) }
    defer { withExtendedLifetime(silent) {} }
    #expect(try endpoint.get("/metrics").hasPrefix("HTTP/1.1 200 "))
  }

  @Test func `as long as there is room, nobody has to hurry`() throws {
    let endpoint = try Endpoint(seconds: 60) { ($0.connections, $0.silentSeconds) = (3, 0.1) }
    let client = try Client(port: endpoint.port)
    usleep(400_000)
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    #expect(try #require(client.rest()).hasPrefix("HTTP/1.1 200 "))
  }

  @Test func `who asks by another name is told by which ones to ask`() throws {
    let answer = try Endpoint().ask("GET / HTTP/1.1\r\nHost: gpu-box\r\n\r\n")
    #expect(try body(answer).contains("ssh -L 8188:127.0.0.1:8188 HOST"))
  }

  @Test func `commands ask by a local socket, and what nobody listens on any more is taken over`() throws {
    let fixture = try LedgerFixture()
    #expect(StatusClient.details(of: fixture.spool) == nil)
    for _ in 0..<2 {
      // A first daemon was killed, and left its socket.
      let socket = try StatusServer.listen(atPath: fixture.spool.socket)
      #expect(close(socket) == 0)
      #expect(StatusClient.details(of: fixture.spool) == nil)
    }
    var details = StatusDetails(
      snapshot: SampleSnapshots.hostile, jobs: [LedgerFixture.job()],
      drops: [
        Drop(name: "a", state: .waiting(reasons: ["b"]), arrival: 1),
        Drop(name: "c", state: .ready(.marker), arrival: 2),
        Drop(name: "d", state: .refused(.init(reason: "e", mend: "f")), arrival: 3),
      ])
    details.snapshot.current?.errorPerLayer = [.infinity, nil]
    details.snapshot.current?.secondsRemaining = 1
    details.snapshot.queue[0].arrivedAt = 1
    let sent = details
    let server = try StatusServer(
      listening: StatusServer.listen(atPath: fixture.spool.socket), details: { sent },
      snapshot: { sent.snapshot })
    defer { server.stop() }
    let told = try #require(StatusClient.details(of: fixture.spool))
    #expect(told.jobs == details.jobs && told.drops == details.drops)
    // Numbers that are none are not even equal to themselves.
    #expect(try told.snapshot.json() == details.snapshot.json())
    // For every user.
    var status = stat()
    #expect(unsafe stat(fixture.spool.socket, &status) == 0 && status.st_mode & 0o777 == 0o666)
  }

  @Test func `details are for the local socket alone`() throws {
    #expect(try Endpoint().get("/details.json").hasPrefix("HTTP/1.1 404 "))
  }

  @Test(arguments: [
    ("127.0.0.1:80", true), ("[::1]:80", true), ("localhost:80", true), ("127.8.9.1:80", true),
    ("0.0.0.0:80", false),
    ("[::]:80", false), ("192.168.1.1:80", false), ("[fe80::1]:80", false), ("[7f00::1]:80", false),
  ])
  func `it is known who reaches an address`(address: String, isOwn: Bool) {
    #expect(StatusServer.isForThisMachine(address) == isOwn)
  }

  @Test func `a request that does not end is told that its time is over`() throws {
    let endpoint = try Endpoint(seconds: 2)
    #expect(try endpoint.ask("GET / HTTP/1.1\r\nX: ").hasPrefix("HTTP/1.1 408 "))
  }

  @Test func `a client that drips is cut off when its time is over`() throws {
    let endpoint = try Endpoint(seconds: 1)
    let client = try Client(port: endpoint.port)
    let begin = MonotonicClock.seconds()
    client.send("GET / HTTP/1.1\r\nX: ")
    while client.send("x"), MonotonicClock.seconds() - begin < 20 { usleep(20_000) }
    #expect(MonotonicClock.seconds() - begin < 10)
  }

  @Test func `a client that does not read its answer is cut off`() throws {
    var snapshot = SampleSnapshots.working
    snapshot.current?.linear = String(repeating: "long", count: 4_000_000)
    let endpoint = try Endpoint(snapshot, seconds: 0.5)
    let client = try Client(port: endpoint.port)
    client.send("GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    usleep(1_500_000)
    let answer = client.rest()
    #expect((answer?.utf8.count ?? 0) < 16_000_000)
  }

  @Test func `a client that leaves early leaves the server standing`() throws {
    let endpoint = try Endpoint()
    for _ in 0..<20 { try Client(port: endpoint.port).send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") }
    let half = try Client(port: endpoint.port)
    half.send("GET /")
    half.finishSending()
    #expect(try #require(half.rest()).hasPrefix("HTTP/1.1 400 "))
    #expect(try endpoint.get("/").hasPrefix("HTTP/1.1 200 "))
  }

  @Test func `stopping frees the address at once, with a client still connected`() throws {
    let endpoint = try Endpoint()
    let client = try Client(port: endpoint.port)
    #expect(try endpoint.get("/").hasPrefix("HTTP/1.1 200 "))
    let begin = MonotonicClock.seconds()
    endpoint.server.stop()
    endpoint.server.stop()
    #expect(MonotonicClock.seconds() - begin < 30)
    #expect(client.rest() == "")
    let again = try StatusServer(
      listening: StatusServer.listen(on: "127.0.0.1:\(endpoint.port)")
    ) { SampleSnapshots.idle }
    again.stop()
  }

  @Test(arguments: [
    "", "localhost", "127.0.0.1", "127.0.0.1:65536", "example.com:80", "::1:80", "127.0.0.1:+5",
  ])
  func `an address that is none says so`(address: String) {
    let error = #expect(throws: SocketError.self) { try StatusServer.listen(on: address) }
    #expect(error?.exitCode == EX_CONFIG)
    #expect(error?.mend?.contains("127.0.0.1:8188") == true)
  }

  @Test func `an address in use is unavailable, and says what to do`() throws {
    let endpoint = try Endpoint()
    let error = #expect(throws: SocketError.self) {
      try StatusServer.listen(on: "127.0.0.1:\(endpoint.port)")
    }
    #expect(error?.errno == .addressInUse && error?.exitCode == EX_UNAVAILABLE && error?.mend != nil)
  }

  @Test func `a descriptor that does not listen is refused and stays open`() throws {
    let socket = try DatagramSocket()
    #expect(throws: SocketError.self) {
      try StatusServer(listening: socket.descriptor) { SampleSnapshots.idle }
    }
    #expect(fcntl(socket.descriptor, F_GETFD) != -1)
  }
}
