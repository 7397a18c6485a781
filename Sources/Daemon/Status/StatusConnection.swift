import SystemIO

/// One connection of the status endpoint: it reads a head, sends an answer, and waits a moment for the client
/// to read it. Used by the server's thread alone.
final class StatusConnection {
  private enum Phase {
    case reading
    case sending([UInt8], sent: Int)
    /// What the client still sends is read and dropped: closed with bytes unread, a connection is reset, and
    /// the client may lose the answer.
    case lingering
    case over
  }

  private let connection: StreamConnection
  private var phase = Phase.reading
  private var head: [UInt8] = []
  private var buffer = [UInt8](repeating: 0, count: 4096)
  /// When the connection ends, whatever it does; on the monotonic clock, in seconds.
  private(set) var deadline: Double
  private let start: Double

  init(_ connection: StreamConnection, start: Double, deadline: Double) {
    self.connection = connection
    self.start = start
    self.deadline = deadline
  }

  /// When it ends if others wait for its place: sooner, as long as it says nothing.
  func deadline(silentSeconds: Double) -> Double {
    if case .reading = phase, head.isEmpty { min(deadline, start + silentSeconds) } else { deadline }
  }

  var isOver: Bool { if case .over = phase { true } else { false } }

  var interest: DescriptorWaiting.Interest {
    if case .sending = phase { return .init(connection.descriptor, .writing) }
    return .init(connection.descriptor, .reading)
  }

  /// Does what can be done without waiting.
  func advance(now: Double, lingerSeconds: Double, answer: (HTTPRequest) -> HTTPResponse) {
    do {
      // First what has come: that the server was late is not the client's fault.
      if case .reading = phase { try read(answer) }
      if case .reading = phase, deadline <= now { try expire() }
      if case .sending(let bytes, let sent) = phase {
        try send(bytes, from: sent, deadline: now + lingerSeconds)
      } else if case .lingering = phase {
        try drop()
      }
      if deadline <= now { phase = .over }
    } catch {
      // The client is gone, and nobody else minds.
      phase = .over
    }
  }

  private func expire() throws(SocketError) {
    if !head.isEmpty {
      // As much as goes out at once; it is a courtesy.
      _ = try connection.send(HTTPResponse(refusing: .timeout).bytes[...])
      connection.finishSending()
    }
    phase = .over
  }

  private func read(_ answer: (HTTPRequest) -> HTTPResponse) throws(SocketError) {
    guard let count = try connection.receive(into: &buffer) else { return }
    head += buffer[..<count]
    switch HTTPRequest.read(head) {
    case .complete(let request): phase = .sending(answer(request).bytes, sent: 0)
    case .refused(let status): phase = .sending(HTTPResponse(refusing: status).bytes, sent: 0)
    case .incomplete where count > 0: break
    case .incomplete where head.isEmpty: phase = .over
    case .incomplete: phase = .sending(HTTPResponse(refusing: .badRequest).bytes, sent: 0)
    }
  }

  private func send(_ bytes: [UInt8], from start: Int, deadline: Double) throws(SocketError) {
    var sent = start
    while sent < bytes.count {
      guard let count = try connection.send(bytes[sent...]) else {
        phase = .sending(bytes, sent: sent)
        return
      }
      sent += count
    }
    connection.finishSending()
    self.deadline = deadline
    phase = .lingering
  }

  private func drop() throws(SocketError) {
    // Once a turn: a client that sends without end gets no more than its share, nor more than its time.
    if try connection.receive(into: &buffer) == 0 { phase = .over }
  }
}
