import Daemon
import Glibc
import Synchronization
import SystemIO
import TestSupport
import Testing

/// Variables that stand in for the process's own.
private final class Variables: Sendable {
  private let values: Mutex<[String: String]>

  init(_ values: [String: String]) { self.values = Mutex(values) }

  var left: [String] { values.withLock { $0.keys.sorted() } }

  var environment: ProcessEnvironment {
    ProcessEnvironment(
      value: { [self] name in values.withLock { $0[name] } },
      remove: { [self] name in values.withLock { $0[name] = nil } })
  }
}

struct ServiceNotifierTests {
  private let directory: TemporaryDirectory
  private let manager: DatagramSocket

  init() throws {
    directory = try TemporaryDirectory()
    manager = try DatagramSocket(boundTo: .path(directory.file("notify")))
  }

  private func notifier(_ more: [String: String] = [:]) -> ServiceNotifier {
    let variables = ["NOTIFY_SOCKET": directory.file("notify")].merging(more) { $1 }
    return ServiceNotifier(environment: Variables(variables).environment, processID: 77)
  }

  private func message() throws -> String? {
    try manager.receive().map { String(decoding: $0, as: UTF8.self) }
  }

  @Test func `each message is one datagram of the protocol`() throws {
    let notifier = notifier(["WATCHDOG_USEC": "30000000"])
    notifier.ready(status: "idle")
    #expect(try message() == "READY=1\nSTATUS=idle")
    notifier.status("falcon-180b layer 37/80 · 2 queued")
    #expect(try message() == "STATUS=falcon-180b layer 37/80 · 2 queued")
    notifier.watchdog()
    #expect(try message() == "WATCHDOG=1")
    notifier.stopping()
    #expect(try message() == "STOPPING=1")
    #expect(notifier.isActive && notifier.failureCount == 0)
  }

  @Test func `reloading carries the monotonic clock`() throws {
    let before = MonotonicClock.microseconds()
    notifier().reloading()
    let lines = try #require(try message()).split(separator: "\n")
    #expect(lines.count == 2 && lines[0] == "RELOADING=1")
    let time = try #require(lines[1].wholeMatch(of: #/MONOTONIC_USEC=(\d+)/#).flatMap { Int($0.1) })
    #expect(time >= before && time <= MonotonicClock.microseconds())
  }

  @Test func `a status cannot smuggle in another message, and is not too long`() throws {
    let notifier = notifier()
    notifier.status("name\nREADY=1\r\u{0}\u{85}\u{1B}[31m")
    #expect(try message() == "STATUS=name READY=1    [31m")
    notifier.status(String(repeating: "é", count: 5_000))
    let long = try #require(try message())
    #expect(long == "STATUS=" + String(repeating: "é", count: 512) + "…")
  }

  @Test func `an abstract address is reached`() throws {
    let name = "@quantease-test-\(UInt64.random(in: 0...UInt64.max))"
    let manager = try DatagramSocket(boundTo: #require(LocalAddress(name)))
    let notifier = ServiceNotifier(environment: Variables(["NOTIFY_SOCKET": name]).environment)
    notifier.ready()
    #expect(try manager.receive() == Array("READY=1".utf8))
  }

  @Test func `without the variable nothing is sent and nothing fails`() throws {
    let notifier = ServiceNotifier(environment: Variables([:]).environment)
    notifier.ready()
    notifier.status("x")
    notifier.stopping()
    #expect(!notifier.isActive && notifier.failureCount == 0 && notifier.watchdogInterval == nil)
  }

  @Test(arguments: [
    "relative/path", "vsock:2:1234", "@", "/nowhere/at/all", "/" + String(repeating: "x", count: 200),
  ])
  func `a message that cannot be sent is counted, told and no error`(address: String) {
    let told = Mutex<[String]>([])
    let notifier = ServiceNotifier(
      environment: Variables(["NOTIFY_SOCKET": address]).environment,
      onFailure: { text in told.withLock { $0.append(text) } })
    notifier.ready()
    #expect(notifier.failureCount == 1)
    #expect(told.withLock { $0.first?.contains(address) } == true)
  }

  @Test func `a manager that does not read holds nobody up for long`() {
    let notifier = notifier()
    let begin = MonotonicClock.seconds()
    while notifier.failureCount == 0, MonotonicClock.seconds() - begin < 10 { notifier.status("again") }
    #expect(notifier.failureCount == 1)
    #expect(MonotonicClock.seconds() - begin < 5)
  }

  @Test func `the watchdog is pinged twice in its time, by the process that it is meant for`() throws {
    #expect(notifier(["WATCHDOG_USEC": "30000000"]).watchdogInterval == .seconds(15))
    #expect(notifier(["WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"]).watchdogTimeout == .seconds(30))
    #expect(notifier(["WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"]).watchdogTimeout == nil)
    #expect(notifier(["WATCHDOG_USEC": "soon"]).watchdogTimeout == nil)
    #expect(notifier(["WATCHDOG_USEC": "0"]).watchdogTimeout == nil)
    let unwatched = notifier()
    unwatched.watchdog()
    unwatched.status("first")
    #expect(try message() == "STATUS=first")
  }

  @Test func `programs started later do not see the variables`() {
    let variables = Variables([
      "NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin",
    ])
    _ = ServiceNotifier(environment: variables.environment)
    #expect(variables.left == ["PATH"])
  }
}

struct ListenDescriptorsTests {
  @Test func `descriptors meant for this process are taken, with their names`() throws {
    let first = try StatusServer.listen(on: "127.0.0.1:0")
    defer { close(first) }
    _ = fcntl(first, F_SETFD, 0)
    let variables = Variables([
      "LISTEN_PID": "42", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "status", "HOME": "/",
    ])
    let taken = try ListenDescriptors.fromEnvironment(variables.environment, processID: 42, first: first)
    #expect(taken.map(\.descriptor) == [first] && taken.map(\.name) == ["status"])
    #expect(fcntl(first, F_GETFD) & FD_CLOEXEC != 0)
    #expect(variables.left == ["HOME"])
    let server = try StatusServer(listening: fcntl(first, F_DUPFD_CLOEXEC, 0)) { SampleSnapshots.idle }
    #expect(server.port ?? 0 > 0)
    server.stop()
  }

  @Test(arguments: [
    [:], ["LISTEN_FDS": "1"], ["LISTEN_PID": "41", "LISTEN_FDS": "1"],
    ["LISTEN_PID": "42", "LISTEN_FDS": "-1"], ["LISTEN_PID": "42", "LISTEN_FDS": "many"],
    ["LISTEN_PID": "42", "LISTEN_FDS": "9999999"], ["LISTEN_PID": "42"],
  ])
  func `what is missing, broken or meant for another is left alone`(values: [String: String]) throws {
    let variables = Variables(values)
    #expect(try ListenDescriptors.fromEnvironment(variables.environment, processID: 42).isEmpty)
    #expect(variables.left.isEmpty)
  }

  @Test func `a descriptor that is not open is an error`() {
    let variables = Variables(["LISTEN_PID": "42", "LISTEN_FDS": "1"])
    #expect(throws: SocketError.self) {
      try ListenDescriptors.fromEnvironment(variables.environment, processID: 42, first: 900_000)
    }
  }
}
