import Glibc
import SystemPackage

/// What was being done with a socket; the raw value completes "cannot …".
public enum SocketOperation: String, Sendable {
  case open = "open a socket for"
  case bind = "bind to"
  case listen = "listen on"
  case connect = "connect to"
  case accept = "accept a connection on"
  case receive = "receive from"
  case send = "send to"
  case wait = "wait for"
}

/// A failed system call on a socket: on which, doing what, and why.
public struct SocketError: Error, Equatable, Sendable, CustomStringConvertible {
  /// What a person calls the socket: an address, or a descriptor's number.
  public let socket: String
  public let operation: SocketOperation
  public let errno: Errno

  public init(socket: String, operation: SocketOperation, errno: Errno) {
    self.socket = socket
    self.operation = operation
    self.errno = errno
  }

  public var description: String {
    let fact = "cannot \(operation.rawValue) \(socket): \(errno)"
    return mend.map { "\(fact); \($0)" } ?? fact
  }

  /// What a person can do about it, where the error number tells.
  public var mend: String? {
    switch errno {
    case .addressInUse: "another program is there already: end it, or choose another address"
    case .addressNotAvailable: "this machine has no such address: choose one that it has, e.g. 127.0.0.1"
    case .permissionDenied where operation == .bind: "choose a port above 1023, and an address you may use"
    case .addressFamilyNotSupported:
      "the service may open no such socket (RestrictAddressFamilies= in the unit): let the socket unit open it"
    case .noSuchFileOrDirectory, .connectionRefused: "nothing listens there: check the address"
    case .fileNameTooLong: "a local socket's path or name has at most 107 bytes: choose a shorter one"
    case .invalidArgument: "check the address: it is an IP address and a port, e.g. 127.0.0.1:8188"
    case .notSocket, .socketNotConnected: "a socket that listens is needed: check the socket unit"
    default: nil
    }
  }

  /// The process's exit status, after sysexits.h.
  public var exitCode: Int32 {
    switch errno {
    case .permissionDenied, .notPermitted: EX_NOPERM
    case .invalidArgument: EX_CONFIG
    case .addressInUse, .addressNotAvailable, .addressFamilyNotSupported: EX_UNAVAILABLE
    default: EX_IOERR
    }
  }

  /// Runs system calls and adds to their error what they were for.
  static func attempt<Result: ~Copyable>(
    _ operation: SocketOperation, _ socket: String, _ body: () throws(Errno) -> Result
  ) throws(SocketError) -> Result {
    do {
      return try body()
    } catch {
      throw SocketError(socket: socket, operation: operation, errno: error)
    }
  }
}
