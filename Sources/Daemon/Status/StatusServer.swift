import Dispatch
import Synchronization
import SystemIO

/// The status endpoint: `/`, `/metrics` and `/status.json` by HTTP/1.1, for browsers, Prometheus and curl.
///
/// It serves a socket that it is given, since an HTTP library that opens its own, as FlyingFox does, cannot
/// work in a unit with `RestrictAddressFamilies=AF_UNIX`.
///
/// One thread serves some connections at a time. Each is closed after its answer, and in any case when its
/// time is over. One that says nothing loses its place sooner if all places are taken: browsers open such connections
/// in advance. A request that names a host other than this machine's is refused, for it comes from a page
/// that had its own name lead here (DNS rebinding).
public final class StatusServer: Sendable {
  /// What may take how long, and how many.
  public struct Limits: Sendable {
    /// For a connection from its beginning to its end.
    public var seconds = 5.0
    /// For a client to read on after the answer was sent.
    public var lingerSeconds = 1.0
    /// Connections at a time; further ones wait in the kernel.
    public var connections = 32
    /// After that time a connection that has said nothing gives way to others, where all places are taken.
    public var silentSeconds = 2.0

    public init() {}
  }

  /// The TCP port; nil for a local socket.
  public let port: UInt16?

  /// Until the thread takes it, and with the thread it goes.
  private let socket: Mutex<ListeningSocket?>
  private let hostNames: Set<String>
  private let limits: Limits
  private let snapshot: @Sendable () -> StatusSnapshot
  private let details: (@Sendable () -> StatusDetails)?
  private let onFailure: @Sendable (SocketError) -> Void
  private let wake: WakeEvent
  private let isStopping = Atomic(false)
  private let isDone = DispatchSemaphore(value: 0)

  /// Begins to serve.
  /// - Parameters:
  ///   - descriptor: a socket that listens; it belongs to the server from now on
  ///   - hostNames: names under which the endpoint may be asked for, beside `localhost` and IP addresses
  ///   - onFailure: called on the server's thread when the socket fails; the server goes on after a pause
  ///   - details: what `/details.json` gives; nil where there is no such thing
  ///   - snapshot: called on the server's thread for each request
  /// - Throws: ``SocketError`` if the descriptor is no socket that listens.
  public init(
    listening descriptor: Int32, hostNames: [String] = [], limits: Limits = Limits(),
    onFailure: @escaping @Sendable (SocketError) -> Void = { _ in },
    details: (@Sendable () -> StatusDetails)? = nil,
    snapshot: @escaping @Sendable () -> StatusSnapshot
  ) throws(SocketError) {
    wake = try WakeEvent()
    let socket = try ListeningSocket(adopting: descriptor)
    port = try socket.port()
    self.socket = Mutex(socket)
    self.hostNames = Set(hostNames.map { $0.lowercased() })
    self.limits = limits
    self.snapshot = snapshot
    self.details = details
    self.onFailure = onFailure
    DispatchQueue(label: "status endpoint").async { [self] in
      serve()
      isDone.signal()
    }
  }

  /// Opens a socket on an address such as `127.0.0.1:8188`, where no systemd does.
  /// - Returns: the descriptor, for ``init(listening:hostNames:limits:onFailure:snapshot:)``
  /// - Throws: ``SocketError``, EINVAL if `address` is none
  public static func listen(on address: String) throws(SocketError) -> Int32 {
    guard let parsed = InternetAddress(address) else {
      throw SocketError(socket: "“\(address)”", operation: .listen, errno: .invalidArgument)
    }
    return try ListeningSocket.open(on: parsed, name: address)
  }

  /// Opens a socket at a path, for the commands of every user of this machine.
  /// - Returns: the descriptor
  public static func listen(atPath path: String) throws(SocketError) -> Int32 {
    try ListeningSocket.open(atPath: path)
  }

  /// Whether nobody but this machine reaches an address such as `127.0.0.1:8188`.
  public static func isForThisMachine(_ address: String) -> Bool {
    guard let host = InternetAddress(address)?.host else { return false }
    return host.first == 127 && host.count == 4
      || host.count == 16 && host.last == 1 && host.dropLast().allSatisfy { $0 == 0 }
  }

  /// Ends the service and waits for its thread, which has no more than an answer to finish. Connections that
  /// are open are closed. The socket is not shut down, only closed: systemd keeps it for the next start.
  public func stop() {
    if isStopping.exchange(true, ordering: .sequentiallyConsistent) { return }
    wake.signal()
    isDone.wait()
  }

  // MARK: The thread

  private func serve() {
    guard let socket = socket.withLock({ $0.take() }) else { return }
    var connections: [StatusConnection] = []
    while !isStopping.load(ordering: .sequentiallyConsistent) {
      do {
        try turn(socket, &connections)
      } catch {
        onFailure(error)
        // No descriptors left, as a rule. What is open goes on; new ones wait until it is better.
        _ = try? DescriptorWaiting.wait(for: [.init(wake.descriptor, .reading)], seconds: 1)
      }
    }
  }

  /// Waits for something to happen, and does what it asks for.
  private func turn(
    _ socket: ListeningSocket, _ connections: inout [StatusConnection]
  ) throws(SocketError) {
    let hasRoom = connections.count < limits.connections
    var interests = connections.map(\.interest) + [.init(wake.descriptor, .reading)]
    if hasRoom { interests.append(.init(socket.descriptor, .reading)) }
    let end = connections.map { hasRoom ? $0.deadline : $0.deadline(silentSeconds: limits.silentSeconds) }
      .min()
    let ready = try DescriptorWaiting.wait(
      for: interests, seconds: end.map { max(0, $0 - MonotonicClock.seconds()) })

    let now = MonotonicClock.seconds()
    for (index, connection) in connections.enumerated() where ready[index] || connection.deadline <= now {
      connection.advance(now: now, lingerSeconds: limits.lingerSeconds, answer: answer)
    }
    connections.removeAll { connection in
      connection.isOver || !hasRoom && connection.deadline(silentSeconds: limits.silentSeconds) <= now
    }
    if hasRoom, ready[interests.count - 1], let connection = try socket.accept() {
      connections.append(StatusConnection(connection, start: now, deadline: now + limits.seconds))
    }
  }

  // MARK: Answers

  private func answer(_ request: HTTPRequest) -> HTTPResponse {
    guard isOurs(request.host) else { return HTTPResponse(refusing: .misdirected) }
    guard request.method == "GET" || request.method == "HEAD" else {
      return HTTPResponse(refusing: .methodNotAllowed)
    }
    var response = content(of: request.path)
    response.isBodyLeftOut = request.method == "HEAD"
    return response
  }

  private func content(of path: String) -> HTTPResponse {
    switch path {
    case "/": HTTPResponse(StatusPage.contentType, Array(StatusPage(snapshot()).html.utf8))
    case "/metrics": HTTPResponse(Metrics.contentType, Array(Metrics(snapshot()).text.utf8))
    case "/status.json": json { try snapshot().json() }
    case "/details.json":
      details.map { details in json { try details().json() } } ?? HTTPResponse(refusing: .notFound)
    default: HTTPResponse(refusing: .notFound)
    }
  }

  private func json(_ text: () throws -> [UInt8]) -> HTTPResponse {
    (try? text()).map { HTTPResponse("application/json", $0) } ?? HTTPResponse(refusing: .serverError)
  }

  /// Whether a host is this machine. An address written out cannot be rebound to another machine.
  private func isOurs(_ host: String?) -> Bool {
    guard let host else { return true }
    if host == "localhost" || hostNames.contains(host) { return true }
    if host.hasPrefix("["), host.hasSuffix("]") {
      return InternetAddress.bytes(ofLiteral: String(host.dropFirst().dropLast()))?.count == 16
    }
    return InternetAddress.bytes(ofLiteral: host)?.count == 4
  }
}
