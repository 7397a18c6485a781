import Synchronization
import SystemIO

/// Tells systemd how the service is (`sd_notify`), by datagrams to the socket that `NOTIFY_SOCKET` names.
///
/// Without the variable nothing happens. A message that cannot be sent is counted and told to `onFailure`;
/// the work that it was about goes on.
public final class ServiceNotifier: Sendable {
  /// systemd reads no more than 4,096 bytes of a message.
  private static let statusLimit = 1024

  private let address: LocalAddress?
  private let socket: DatagramSocket?
  private let onFailure: @Sendable (String) -> Void
  private let failures = Atomic(0)

  /// How long systemd waits for ``watchdog()`` before it ends the service; nil where it does not watch.
  public let watchdogTimeout: Duration?

  /// Reads the variables and removes them, so that programs started later do not speak for the service. Make
  /// it before there are other threads.
  public init(
    environment: ProcessEnvironment = .process, processID: Int = ProcessEnvironment.processID(),
    onFailure: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    let place = environment.value("NOTIFY_SOCKET")
    let microseconds = environment.value("WATCHDOG_USEC").flatMap { Int($0) } ?? 0
    let watched = environment.value("WATCHDOG_PID")
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] { environment.remove(name) }

    self.onFailure = onFailure
    let isMeant = watched.map { Int($0) == processID } ?? true
    watchdogTimeout = isMeant && microseconds > 0 ? .microseconds(microseconds) : nil

    var failure: String?
    address = place.flatMap { LocalAddress($0) }
    if let place, address == nil { failure = "NOTIFY_SOCKET is no address of this machine: \(place)" }
    var socket: DatagramSocket?
    if address != nil {
      do { socket = try DatagramSocket() } catch { failure = "\(error)" }
    }
    self.socket = socket
    if let failure { fail(failure) }
  }

  /// Whether somebody listens.
  public var isActive: Bool { socket != nil }

  /// How often to call ``watchdog()``: twice in the time that systemd waits.
  public var watchdogInterval: Duration? { watchdogTimeout.map { $0 / 2 } }

  /// Messages that could not be sent.
  public var failureCount: Int { failures.load(ordering: .relaxed) }

  // MARK: Messages

  /// The service has started, or has read its configuration again.
  public func ready(status: String? = nil) {
    send(["READY=1"] + (status.map { [Self.statusLine($0)] } ?? []))
  }

  /// What the service does, in one line for people.
  public func status(_ text: String) { send([Self.statusLine(text)]) }

  /// The work has advanced. Nothing is sent where nobody watches.
  public func watchdog() { if watchdogTimeout != nil { send(["WATCHDOG=1"]) } }

  /// The configuration is being read again; ``ready(status:)`` ends it.
  public func reloading() {
    send(["RELOADING=1", "MONOTONIC_USEC=\(MonotonicClock.microseconds())"])
  }

  public func stopping(status: String? = nil) {
    send(["STOPPING=1"] + (status.map { [Self.statusLine($0)] } ?? []))
  }

  private func send(_ lines: [String]) {
    guard let socket, let address else { return }
    do {
      try socket.send(Array(lines.joined(separator: "\n").utf8), to: address)
    } catch {
      fail("\(error)")
    }
  }

  private func fail(_ text: String) {
    failures.add(1, ordering: .relaxed)
    onFailure(text)
  }

  /// A line feed would begin another message.
  private static func statusLine(_ text: String) -> String {
    var line = ""
    var count = 0
    for scalar in text.unicodeScalars {
      let isPlain = scalar.value >= 0x20 && !(0x7F...0x9F).contains(scalar.value)
      count += isPlain ? UTF8.width(scalar) : 1
      if count > statusLimit { return "STATUS=\(line)…" }
      line.unicodeScalars.append(isPlain ? scalar : " ")
    }
    return "STATUS=\(line)"
  }
}
