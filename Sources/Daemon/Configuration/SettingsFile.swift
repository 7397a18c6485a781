import SystemIO
import Yams

/// A file of settings in YAML. The position of every key is kept, a key that stands twice is an error, and nothing
/// in the file can make reading it long.
struct SettingsFile {
  static let limitBytes = 1 << 20

  private let path: String
  private let text: String

  /// Reads the file; nil if it is not there and need not be.
  init?(path: String, symlinks: SymlinkPolicy, isRequired: Bool) throws(ConfigurationError) {
    self.path = path
    do {
      if try !isRequired && !FileSystem.exists(path) { return nil }
      let file = try InputFile(path: path, symlinks: symlinks)
      var (bytes, buffer) = ([UInt8](), [UInt8](repeating: 0, count: 65_536))
      while bytes.count <= Self.limitBytes {
        let count = try file.read(into: &buffer)
        if count == 0 { break }
        bytes += buffer[..<count]
      }
      guard bytes.count <= Self.limitBytes else {
        throw ConfigurationError(
          .file(path, nil), problem: "longer than 1 MiB", mend: "settings alone belong here")
      }
      guard let text = String(validating: bytes, as: UTF8.self) else {
        throw ConfigurationError(.file(path, nil), problem: "not UTF-8", mend: "save it as UTF-8 text")
      }
      self.text = text
    } catch let error as ConfigurationError {
      throw error
    } catch let error as FileError {
      throw ConfigurationError(
        .file(path, nil), problem: "cannot \(error.operation.rawValue): \(error.errno)", mend: error.mend)
    } catch {
      throw ConfigurationError(.file(path, nil), problem: "\(error)")
    }
  }

  /// The entries at the top level. A section, a mapping that stands under one of the `sections`, is taken apart
  /// by `entries(in:)`.
  func entries() throws(ConfigurationError) -> [SettingEntry] { try entries(sections: []).top }

  func entries(
    sections: Set<String>
  ) throws(ConfigurationError) -> (top: [SettingEntry], sections: [String: [SettingEntry]]) {
    guard let root = try compose() else { return ([], [:]) }
    var bySection: [String: [SettingEntry]] = [:]
    let top = try entries(of: root) { key, value throws(ConfigurationError) in
      guard sections.contains(key) else { return false }
      bySection[key] = try entries(of: value) { _, _ throws(ConfigurationError) in false }
      return true
    }
    return (top, bySection)
  }

  private func entries(
    of node: Node, section: (String, Node) throws(ConfigurationError) -> Bool
  ) throws(ConfigurationError) -> [SettingEntry] {
    if let scalar = node.scalar, isNull(scalar) { return [] }
    guard let mapping = node.mapping else {
      throw error(at: node, problem: "not a list of settings", mend: "write KEY: VALUE, one on each line")
    }
    var (result, seen) = ([SettingEntry](), Set<String>())
    for (keyNode, valueNode) in mapping {
      guard let key = keyNode.scalar?.string else {
        throw error(at: keyNode, problem: "a key that is no word", mend: "write KEY: VALUE")
      }
      guard seen.insert(key).inserted else {
        throw error(at: keyNode, key: key, problem: "stands twice", mend: "keep one of them")
      }
      if try !section(key, valueNode) {
        result.append(SettingEntry(key: key, value: try value(valueNode, key), origin: origin(keyNode)))
      }
    }
    return result
  }

  private func value(_ node: Node, _ key: String) throws(ConfigurationError) -> SettingEntry.Value {
    if let scalar = node.scalar { return .text(isNull(scalar) ? "" : scalar.string) }
    guard let sequence = node.sequence else { return .section }
    var elements: [String] = []
    for element in sequence {
      guard let scalar = element.scalar else {
        throw error(
          at: element, key: key, problem: "a list of something other than values", mend: "write - VALUE")
      }
      elements.append(scalar.string)
    }
    return .list(elements)
  }

  private func isNull(_ scalar: Node.Scalar) -> Bool {
    scalar.style == .plain && ["", "~", "null"].contains(scalar.string)
  }

  private func origin(_ node: Node) -> SettingOrigin {
    .file(path, node.mark.map { TextPosition(line: $0.line, column: $0.column) })
  }

  private func error(at node: Node, key: String? = nil, problem: String, mend: String) -> ConfigurationError {
    ConfigurationError(origin(node), key: key, problem: problem, mend: mend)
  }
}

// MARK: Parsing

extension SettingsFile {
  /// Aliases that a file could hold before it is parsed. The parser puts in a copy for each, so their number bounds
  /// how much can come of a small file; then anchors are looked for exactly.
  private static let possibleAliasLimit = 8

  private func compose() throws(ConfigurationError) -> Node? {
    guard possibleAliasCount <= Self.possibleAliasLimit else {
      throw ConfigurationError(
        .file(path, nil), problem: "many words that begin with *, as YAML's aliases do",
        mend: "write the values out")
    }
    do {
      let parser = try Yams.Parser(yaml: text, encoding: .utf8)
      let root = try parser.singleRoot()
      // Nodes refer to their anchors weakly; the parser keeps them.
      let anchored = withExtendedLifetime(parser) { root.flatMap(Self.firstAnchored) }
      if let anchored {
        throw error(
          at: anchored, problem: "an anchor",
          mend: "write the value out where it is needed; quote it if & is part of it")
      }
      return root
    } catch let error as ConfigurationError {
      throw error
    } catch let error as YamlError {
      throw described(error)
    } catch {
      throw ConfigurationError(.file(path, nil), problem: "not YAML: \(Excerpt.bare("\(error)"))")
    }
  }

  /// How many `*name` there are that could be an alias: at the beginning, after white space, or after one of YAML's
  /// signs. After anything else a star is inside of a word, as in most regular expressions, or no YAML.
  private var possibleAliasCount: Int {
    func isOfName(_ byte: UInt8) -> Bool {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "-"):
        true
      default: false
      }
    }
    let signs = Set(" \t\n\r[{,:?-".utf8)
    let bytes = Array(text.utf8)
    return bytes.indices.count { index in
      guard bytes[index] == UInt8(ascii: "*"), index + 1 < bytes.count, isOfName(bytes[index + 1]) else {
        return false
      }
      // Beyond ASCII are a byte-order mark and line breaks.
      return index == 0 || bytes[index - 1] >= 0x80 || signs.contains(bytes[index - 1])
    }
  }

  private static func firstAnchored(_ node: Node) -> Node? {
    if node.anchor != nil { return node }
    switch node {
    case .mapping(let mapping):
      for (key, value) in mapping {
        if let found = firstAnchored(key) ?? firstAnchored(value) { return found }
      }
    case .sequence(let sequence):
      for element in sequence {
        if let found = firstAnchored(element) { return found }
      }
    case .scalar, .alias: break
    }
    return nil
  }

  private func described(_ error: YamlError) -> ConfigurationError {
    func at(_ mark: Mark, _ problem: String) -> ConfigurationError {
      ConfigurationError(
        .file(path, TextPosition(line: mark.line, column: mark.column)),
        problem: "not YAML: \(Excerpt.bare(problem))",
        mend: "check the indentation, the colons and the quotes around it")
    }
    switch error {
    case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
      .composer(_, let problem, let mark, _):
      return at(mark, problem)
    case .duplicatedKeysInMapping(let duplicates, let context):
      return ConfigurationError(
        .file(path, TextPosition(line: context.mark.line, column: context.mark.column)),
        key: duplicates.first,
        problem: "stands twice", mend: "keep one of them")
    case .reader(let problem, _, _, _):
      return ConfigurationError(.file(path, nil), problem: "not text: \(Excerpt.bare(problem))")
    default:
      return ConfigurationError(.file(path, nil), problem: "not YAML: \(Excerpt.bare("\(error)"))")
    }
  }
}
