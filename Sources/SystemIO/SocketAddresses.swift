import Glibc

/// Where a socket of this machine is: at a path, or under a name that only the kernel keeps.
public enum LocalAddress: Sendable, Equatable, CustomStringConvertible {
  case path(String)
  case abstract(String)

  /// Reads `/run/x`, or `@name` for an abstract one, as systemd writes them; nil for anything else.
  public init?(_ text: String) {
    if text.hasPrefix("/") {
      self = .path(text)
    } else if text.hasPrefix("@"), text.utf8.count > 1 {
      self = .abstract(String(text.dropFirst()))
    } else {
      return nil
    }
  }

  public var description: String {
    switch self {
    case .path(let path): path
    case .abstract(let name): "@\(name)"
    }
  }
}

/// An IP address and a TCP port.
public struct InternetAddress: Sendable, Equatable {
  /// 4 bytes or 16.
  public let host: [UInt8]
  public let port: UInt16

  /// Reads `127.0.0.1:8188`, `[::1]:8188` or `localhost:8188`; nil for anything else. No name is looked up.
  public init?(_ text: String) {
    guard let colon = text.utf8.lastIndex(of: UInt8(ascii: ":")) else { return nil }
    let digits = text[text.utf8.index(after: colon)...]
    guard digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let port = UInt16(digits) else {
      return nil
    }
    var name = String(text[..<colon])
    if name == "localhost" { name = "127.0.0.1" }
    let isBracketed = name.hasPrefix("[") && name.hasSuffix("]")
    guard let host = Self.bytes(ofLiteral: isBracketed ? String(name.dropFirst().dropLast()) : name),
      isBracketed == (host.count == 16)
    else { return nil }
    self.host = host
    self.port = port
  }

  /// The bytes of an IP address written out, 4 or 16; nil if it is none.
  public static func bytes(ofLiteral text: String) -> [UInt8]? {
    guard !text.utf8.contains(0) else { return nil }
    for (family, count) in [(AF_INET, 4), (AF_INET6, 16)] {
      var bytes = [UInt8](repeating: 0, count: count)
      let isRead = unsafe bytes.withUnsafeMutableBytes { unsafe inet_pton(family, text, $0.baseAddress) == 1 }
      if isRead { return bytes }
    }
    return nil
  }
}
