/// Targets of a compressed-tensors configuration, which say to which modules a scheme applies: a
/// module's name, a class of modules, or `re:` and a regular expression.
enum ModulePattern {
  private static let marker = "re:"
  private static let linearClass = "Linear"
  private static let anyPrefix = "(.*\\.)?"

  /// A target for the module `name` alone. Checkpoints of some families leave the outermost prefix of
  /// their modules' names away (`h.0.mlp` for `transformer.h.0.mlp`), so one may stand before it.
  static func matching(_ name: String) -> String { marker + expression(name: name) }

  static func expression(name: String) -> String { "\(anyPrefix)\(escaped(name))$" }

  /// The name that a target of ``matching(_:)`` is for; nil of another target.
  static func name(of target: String) -> String? {
    let (start, end) = (marker + anyPrefix, "$")
    guard target.hasPrefix(start), target.hasSuffix(end), target.count > start.count else { return nil }
    var name = ""
    var isEscaped = false
    for character in target.dropFirst(start.count).dropLast(end.count) {
      let isPlain = character.isLetter || character.isNumber || character == "_" || character == "-"
      if character == "\\", !isEscaped {
        isEscaped = true
        continue
      }
      // What is special and not escaped, or plain and escaped, means something else.
      guard isPlain != isEscaped else { return nil }
      name.append(character)
      isEscaped = false
    }
    return isEscaped ? nil : name
  }

  /// A target for all modules that stand below one of the name `tower`, wherever that stands: programs that load a
  /// checkpoint move its towers.
  static func matching(tower: String) -> String { marker + expression(tower: tower) }

  static func expression(tower: String) -> String { "\(anyPrefix)\(escaped(tower))\\..*" }

  private static func escaped(_ name: String) -> String {
    var pattern = ""
    for scalar in name.unicodeScalars {
      if !scalar.properties.isAlphabetic && !("0"..."9" ~= scalar) && scalar != "_" && scalar != "-" {
        pattern += "\\"
      }
      pattern.unicodeScalars.append(scalar)
    }
    return pattern
  }

  /// How well `target` fits a linear: its name best, then a pattern, then the class. nil: not at all.
  static func rank(of target: String, for name: String) -> Int? {
    if target == name { return 0 }
    if target.hasPrefix(marker) {
      // A pattern that does not parse matches nothing, and the linear is then reported without scheme.
      guard let pattern = try? Regex(String(target.dropFirst(marker.count))) else { return nil }
      return (try? pattern.prefixMatch(in: name)) == nil ? nil : 1
    }
    return target == linearClass ? 2 : nil
  }

  /// Whether a target is a pattern or a class, and no name.
  static func isForSeveral(_ target: String) -> Bool { target.hasPrefix(marker) || target == linearClass }
}

/// The targets of one scheme. A mixture has tens of thousands, by name, and as many linears that ask for theirs.
struct ModuleTargets: Sendable {
  private var names: Set<String> = []
  /// Of patterns for one module each, behind whatever prefix.
  private var endings: Set<String> = []
  private var others: [String] = []

  init(_ targets: [String]) {
    for target in targets {
      if let name = ModulePattern.name(of: target) {
        endings.insert(name)
      } else if ModulePattern.isForSeveral(target) {
        others.append(target)
      } else {
        names.insert(target)
      }
    }
  }

  /// How well the targets fit a linear, by that one which fits best; see ``ModulePattern/rank(of:for:)``.
  func rank(of name: String) -> Int? {
    if names.contains(name) { return 0 }
    var ending = Substring(name)
    while true {
      if endings.contains(String(ending)) { return 1 }
      guard let dot = ending.firstIndex(of: ".") else { break }
      ending = ending[ending.index(after: dot)...]
    }
    return others.compactMap { ModulePattern.rank(of: $0, for: name) }.min()
  }
}
