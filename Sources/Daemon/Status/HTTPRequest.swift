import SystemIO

/// The head of a request, as far as the status endpoint needs it.
struct HTTPRequest: Equatable {
  /// How many bytes a head may have.
  static let headLimit = 8192

  var method: String
  /// Without the query.
  var path: String
  /// The name that the client asked, without a port; nil where an HTTP/1.0 client gave none.
  var host: String?

  enum Reading: Equatable {
    case incomplete
    case complete(HTTPRequest)
    case refused(HTTPStatus)
  }

  /// Reads what has come so far. What cannot become a request any more is refused at once.
  static func read(_ bytes: [UInt8]) -> Reading {
    // Empty lines before a request are left over from a sloppy client's last one.
    let start = bytes.firstIndex { $0 != 0x0D && $0 != 0x0A } ?? bytes.endIndex
    var lines: [ArraySlice<UInt8>] = []
    var begin = start
    while let end = bytes[begin...].firstIndex(of: 0x0A) {
      if end >= headLimit { return .refused(.headTooLarge) }
      guard end > begin, bytes[end - 1] == 0x0D else { return .refused(.badRequest) }
      let line = bytes[begin..<end - 1]
      guard line.allSatisfy(isText) else { return .refused(.badRequest) }
      if line.isEmpty { return parse(lines) }
      lines.append(line)
      begin = end + 1
    }
    // The carriage return may have come before its line feed.
    guard bytes[begin...].allSatisfy({ isText($0) || $0 == 0x0D }) else { return .refused(.badRequest) }
    return bytes.count >= headLimit ? .refused(.headTooLarge) : .incomplete
  }

  private static func isText(_ byte: UInt8) -> Bool { byte >= 0x20 && byte != 0x7F || byte == 0x09 }

  private static func parse(_ lines: [ArraySlice<UInt8>]) -> Reading {
    guard let first = lines.first else { return .refused(.badRequest) }
    let words = first.split(separator: 0x20, omittingEmptySubsequences: false).map(text)
    guard words.count == 3, !words[0].isEmpty, words[0].utf8.allSatisfy(isToken) else {
      return .refused(.badRequest)
    }
    let version = words[2]
    guard version == "HTTP/1.1" || version == "HTTP/1.0" else {
      return .refused(version.hasPrefix("HTTP/") ? .versionNotSupported : .badRequest)
    }
    var hosts: [String] = []
    for line in lines.dropFirst() {
      guard let colon = line.firstIndex(of: 0x3A), colon > line.startIndex,
        line[..<colon].allSatisfy(isToken)
      else { return .refused(.badRequest) }
      if text(line[..<colon]).lowercased() == "host" {
        hosts.append(trimmed(text(line[line.index(after: colon)...])))
      }
    }
    guard hosts.count < 2, hosts.count == 1 || version == "HTTP/1.0" else { return .refused(.badRequest) }

    var target = words[1]
    var authority = hosts.first
    // A target with a scheme names the host itself, and that counts.
    if target.lowercased().hasPrefix("http://") {
      let rest = target.dropFirst("http://".count)
      let slash = rest.firstIndex { $0 == "/" || $0 == "?" } ?? rest.endIndex
      authority = String(rest[..<slash])
      target = rest[slash...].hasPrefix("/") ? String(rest[slash...]) : "/\(rest[slash...])"
    }
    guard target.hasPrefix("/") else { return .refused(.badRequest) }
    var host: String?
    if let authority {
      guard let name = hostName(authority) else { return .refused(.badRequest) }
      host = name
    }
    let path = target.prefix { $0 != "?" }
    return .complete(HTTPRequest(method: words[0], path: String(path), host: host))
  }

  /// `name`, `name:80`, `127.0.0.1:80` or `[::1]:80` without the port, in lower case; nil if it is none.
  private static func hostName(_ authority: String) -> String? {
    var name = authority[...]
    var port: Substring = ""
    if let bracket = name.lastIndex(of: "]") {
      port = name[name.index(after: bracket)...]
      name = name[...bracket]
    } else if let colon = name.firstIndex(of: ":") {
      port = name[colon...]
      name = name[..<colon]
    }
    guard !name.isEmpty, port.isEmpty || port.hasPrefix(":"),
      port.dropFirst().utf8.allSatisfy({ (0x30...0x39).contains($0) })
    else { return nil }
    // A dot at the end is the same name.
    return (name.hasSuffix(".") ? name.dropLast() : name).lowercased()
  }

  private static func isToken(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
    default: Array("!#$%&'*+-.^_`|~".utf8).contains(byte)
    }
  }

  private static func text(_ bytes: ArraySlice<UInt8>) -> String { String(decoding: bytes, as: UTF8.self) }

  private static func trimmed(_ text: String) -> String {
    let isBlank: (Character) -> Bool = { $0 == " " || $0 == "\t" }
    let start = text.drop(while: isBlank)
    return String(start.reversed().drop(while: isBlank).reversed())
  }
}
