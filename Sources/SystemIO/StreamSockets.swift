import Glibc
import SystemPackage

/// A socket that other programs connect to. Nothing here waits: ``DescriptorWaiting`` does.
public final class ListeningSocket: Sendable {
  private let socket: Descriptor

  /// Takes over a descriptor that already listens, e.g. one from systemd.
  /// - Throws: ``SocketError``, ENOTSOCK or ENOTCONN if it is none; it then stays as it was.
  public init(adopting number: Int32) throws(SocketError) {
    let name = "descriptor \(number)"
    try SocketError.attempt(.listen, name) { () throws(Errno) in
      // Before it is ours, a copy answers: a mistaken number must not close someone else's file.
      let copy = Descriptor(owning: try SystemCall.retrying { fcntl(number, F_DUPFD_CLOEXEC, 0) })
      guard try SystemCall.option(copy, SO_ACCEPTCONN) != 0 else { throw .socketNotConnected }
      try SystemCall.closeOnExec(number)
      // A connection that goes away between the wait and the accept would leave the accept waiting.
      try SystemCall.neverBlock(copy)
    }
    socket = Descriptor(owning: number)
  }

  /// Opens a socket on an address and listens. Who calls it owns the descriptor.
  /// - Throws: ``SocketError``
  public static func open(on address: InternetAddress, name: String) throws(SocketError) -> Int32 {
    let address = SocketAddress(address)
    let socket = try SocketError.attempt(.open, name) { () throws(Errno) in
      try SystemCall.socket(address.family, SOCK_STREAM)
    }
    try SocketError.attempt(.bind, name) { () throws(Errno) in
      // Otherwise the port is taken for a minute after the last connection.
      try SystemCall.setOption(socket, SO_REUSEADDR, 1)
      if address.family == AF_INET6 {
        try SystemCall.setOption(socket, level: Int32(IPPROTO_IPV6), IPV6_V6ONLY, 1)
      }
      try SystemCall.bind(socket, to: address)
    }
    return try listen(socket, name)
  }

  private static func listen(_ socket: borrowing Descriptor, _ name: String) throws(SocketError) -> Int32 {
    do throws(Errno) {
      try SystemCall.listen(socket, backlog: 16)
      return try SystemCall.duplicate(socket)
    } catch { throw SocketError(socket: name, operation: .listen, errno: error) }
  }

  /// Opens a socket at a path of this machine, in the place of one that nobody listens on any more, for every user, and
  /// listens. Who calls it owns the descriptor, and sees to it that no other process has the path.
  /// - Throws: ``SocketError``
  public static func open(atPath path: String) throws(SocketError) -> Int32 {
    let socket = try SocketError.attempt(.open, path) { () throws(Errno) in
      try SystemCall.socket(AF_UNIX, SOCK_STREAM)
    }
    try SocketError.attempt(.bind, path) { () throws(Errno) in
      guard let address = SocketAddress(.path(path)) else { throw .fileNameTooLong }
      try? SystemCall.unlink(path)
      try SystemCall.bind(socket, to: address)
      try SystemCall.openToAll(path)
    }
    return try listen(socket, path)
  }

  public var descriptor: Int32 { socket.number }

  /// The TCP port, which the system chose if 0 was asked for; nil for a local socket.
  public func port() throws(SocketError) -> UInt16? {
    try SocketError.attempt(.listen, "descriptor \(descriptor)") { () throws(Errno) in
      try SystemCall.port(socket)
    }
  }

  /// The next connection; nil if there is none now.
  public func accept() throws(SocketError) -> StreamConnection? {
    do {
      return StreamConnection(try SystemCall.accept(socket))
    } catch {
      switch error {
      case .wouldBlock, .connectionAbort: return nil
      default: throw SocketError(socket: "descriptor \(descriptor)", operation: .accept, errno: error)
      }
    }
  }
}

/// One connection, closed when it goes.
public final class StreamConnection: Sendable {
  private let socket: Descriptor

  init(_ socket: consuming Descriptor) { self.socket = socket }

  /// Connects to a socket at a path of this machine.
  /// - Throws: ``SocketError``, ENOENT or ECONNREFUSED if nobody listens there
  public init(toPath path: String) throws(SocketError) {
    socket = try SocketError.attempt(.connect, path) { () throws(Errno) in
      guard let address = SocketAddress(.path(path)) else { throw .fileNameTooLong }
      let socket = try SystemCall.socket(AF_UNIX, SOCK_STREAM)
      try SystemCall.connect(socket, to: address)
      return socket
    }
  }

  public var descriptor: Int32 { socket.number }

  /// Receives what has come, at most as much as fits.
  /// - Returns: the bytes received, 0 at the end; nil if nothing is there now
  public func receive(into buffer: inout [UInt8]) throws(SocketError) -> Int? {
    do {
      return try SystemCall.receive(socket, into: &buffer, flags: Int32(MSG_DONTWAIT))
    } catch {
      if error == .wouldBlock { return nil }
      throw SocketError(socket: "a connection", operation: .receive, errno: error)
    }
  }

  /// Sends as much as the other side takes now.
  /// - Returns: the bytes taken; nil if none can be now
  public func send(_ bytes: ArraySlice<UInt8>) throws(SocketError) -> Int? {
    do {
      return try SystemCall.send(socket, bytes, flags: Int32(MSG_DONTWAIT))
    } catch {
      if error == .wouldBlock { return nil }
      throw SocketError(socket: "a connection", operation: .send, errno: error)
    }
  }

  /// Says to the other side that nothing more comes.
  public func finishSending() {
    // A connection that is gone already needs no goodbye.
    try? SystemCall.finishSending(socket)
  }
}
