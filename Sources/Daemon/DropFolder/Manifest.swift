import SystemIO

/// The list that `sha256sum` writes, `SHA256SUMS`.
struct Manifest: Equatable, Sendable {
  static let name = "SHA256SUMS"
  static let byteLimit = 1 << 24

  struct Entry: Equatable, Sendable {
    /// Relative to the manifest's directory.
    let path: String
    /// 64 hexadecimal digits, in lower case.
    let digest: String

    /// The entry as `sha256sum` writes it, its line feed included.
    var line: String {
      let escaped = path.replacing("\\", with: "\\\\").replacing("\n", with: "\\n").replacing(
        "\r", with: "\\r")
      // The mark stands only where it is needed, so that other readers of plain names need not know it.
      let isPlain = !path.utf8.contains { $0 == 0x0A || $0 == 0x0D } && !path.hasPrefix("\\")
      return isPlain ? "\(digest)  \(path)\n" : "\\\(digest)  \(escaped)\n"
    }
  }

  enum Reading {
    case manifest(Manifest)
    case unreadable(String)
    case refused(DropRefusal)
  }

  let entries: [Entry]

  static func read(_ path: String) -> Reading {
    do {
      return parse(try FileSystem.contents(of: path, limit: byteLimit, symlinks: .refuse))
    } catch {
      return .unreadable("\(error)")
    }
  }

  /// Reads lines of a digest, two spaces (or a space and an asterisk) and a path.
  static func parse(_ text: [UInt8]) -> Reading {
    var entries: [Entry] = []
    for (number, line) in text.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
      .enumerated()
    {
      var line = line.last == UInt8(ascii: "\r") ? line.dropLast() : line
      if line.isEmpty { continue }
      let isEscaped = line.first == UInt8(ascii: "\\")
      if isEscaped { line.removeFirst() }
      let separator = line.dropFirst(64).prefix(2)
      guard line.prefix(64).allSatisfy(isHexadecimal), line.count > 66,
        separator.elementsEqual("  ".utf8) || separator.elementsEqual(" *".utf8)
      else {
        return .unreadable("line \(number + 1) of \(name) is not what sha256sum writes")
      }
      var path = String(
        decoding: isEscaped ? unescaped(line.dropFirst(66)) : line.dropFirst(66), as: UTF8.self)
      while path.hasPrefix("./") { path.removeFirst(2) }
      let parts = path.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
      guard parts.allSatisfy(CheckpointParts.isPlainName) else {
        return .refused(.listedOutside(manifest: name, path: path))
      }
      // Its own digest cannot be in it.
      if path == name { continue }
      let digest = String(decoding: line.prefix(64), as: UTF8.self).lowercased()
      entries.append(Entry(path: path, digest: digest))
    }
    if entries.isEmpty { return .unreadable("\(name) is empty") }
    return .manifest(Manifest(entries: entries))
  }

  /// A path of a line that begins with a backslash: line feeds, carriage returns and backslashes are spelled out.
  private static func unescaped(_ path: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
    var bytes: [UInt8] = []
    var rest = path
    while let byte = rest.popFirst() {
      guard byte == UInt8(ascii: "\\"), let kind = rest.popFirst() else {
        bytes.append(byte)
        continue
      }
      switch kind {
      case UInt8(ascii: "n"): bytes.append(0x0A)
      case UInt8(ascii: "r"): bytes.append(0x0D)
      default: bytes.append(kind)
      }
    }
    return bytes[...]
  }

  private static func isHexadecimal(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "f"),
      UInt8(ascii: "A")...UInt8(ascii: "F"):
      true
    default: false
    }
  }
}
