import Glibc
import SystemPackage

/// A socket of this machine for messages that arrive whole or not at all.
public final class DatagramSocket: Sendable {
  private let socket: Descriptor
  private let name: String

  /// A socket that only sends.
  /// - Parameter timeoutMilliseconds: for how long a receiver with no room is waited for
  public init(timeoutMilliseconds: Int = 1000) throws(SocketError) {
    name = "a local socket"
    socket = try SocketError.attempt(.open, name) { () throws(Errno) in
      let socket = try SystemCall.socket(AF_UNIX, SOCK_DGRAM)
      try SystemCall.setTimeout(socket, SO_SNDTIMEO, milliseconds: timeoutMilliseconds)
      return socket
    }
  }

  /// A socket that receives at an address.
  /// - Parameter timeoutMilliseconds: for how long a message is waited for
  public init(boundTo address: LocalAddress, timeoutMilliseconds: Int = 1000) throws(SocketError) {
    name = "\(address)"
    socket = try SocketError.attempt(.bind, name) { () throws(Errno) in
      guard let place = SocketAddress(address) else { throw .fileNameTooLong }
      let socket = try SystemCall.socket(AF_UNIX, SOCK_DGRAM)
      try SystemCall.setTimeout(socket, SO_RCVTIMEO, milliseconds: timeoutMilliseconds)
      try SystemCall.bind(socket, to: place)
      return socket
    }
  }

  public var descriptor: Int32 { socket.number }

  /// Sends one message.
  /// - Throws: ``SocketError``, EAGAIN if the receiver had no room in time
  public func send(_ message: [UInt8], to address: LocalAddress) throws(SocketError) {
    try SocketError.attempt(.send, "\(address)") { () throws(Errno) in
      guard let place = SocketAddress(address) else { throw .fileNameTooLong }
      _ = try SystemCall.send(socket, message[...], to: place)
    }
  }

  /// Waits for one message.
  /// - Parameter limit: the bytes of it that are kept
  /// - Returns: nil if none came in time
  public func receive(limit: Int = 65_536) throws(SocketError) -> [UInt8]? {
    var buffer = [UInt8](repeating: 0, count: limit)
    do {
      let count = try SystemCall.receive(socket, into: &buffer)
      return Array(buffer[..<count])
    } catch {
      if error == .wouldBlock { return nil }
      throw SocketError(socket: name, operation: .receive, errno: error)
    }
  }
}
