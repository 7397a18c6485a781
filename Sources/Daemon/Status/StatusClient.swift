import SystemIO

/// Asks a running daemon, by the local socket in its spool.
public enum StatusClient {
  private static let seconds = 5.0
  /// As much as a hundred thousand jobs take.
  private static let byteLimit = 1 << 28

  /// What the daemon of a spool knows; nil if there is none, or none of this version that answers.
  public static func details(of spool: Spool) -> StatusDetails? {
    guard let answer = try? answer(to: "/details.json", at: spool.socket),
      answer.starts(with: Array("HTTP/1.1 200 ".utf8)),
      let end = answer.firstRange(of: Array("\r\n\r\n".utf8))
    else { return nil }
    return try? StatusDetails(json: answer[end.upperBound...])
  }

  /// - Throws: ``SocketError``
  private static func answer(to path: String, at socket: String) throws(SocketError) -> [UInt8] {
    let connection = try StreamConnection(toPath: socket)
    let deadline = MonotonicClock.seconds() + seconds
    var request = Array("GET \(path) HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8)[...]
    var answer: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while MonotonicClock.seconds() < deadline, answer.count < byteLimit {
      let direction: DescriptorWaiting.Interest.Direction = request.isEmpty ? .reading : .writing
      _ = try DescriptorWaiting.wait(
        for: [.init(connection.descriptor, direction)], seconds: deadline - MonotonicClock.seconds())
      if !request.isEmpty {
        request = request.dropFirst(try connection.send(request) ?? 0)
      } else if let count = try connection.receive(into: &buffer) {
        if count == 0 { return answer }
        answer += buffer[..<count]
      }
    }
    throw SocketError(socket: socket, operation: .receive, errno: .timedOut)
  }
}
