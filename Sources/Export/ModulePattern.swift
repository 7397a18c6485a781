/// Targets of a compressed-tensors configuration, which say to which modules a scheme applies: a
/// module's name, a class of modules, or `re:` and a regular expression.
enum ModulePattern {
  private static let marker = "re:"

  /// A target for the module `name` alone. Checkpoints of some families leave the outermost prefix of
  /// their modules' names away (`h.0.mlp` for `transformer.h.0.mlp`), so one may stand before it.
  static func matching(_ name: String) -> String { marker + expression(name: name) }

  static func expression(name: String) -> String { "(.*\\.)?\(escaped(name))$" }

  /// A target for all modules that stand below one of the name `tower`, wherever that stands: programs that load a
  /// checkpoint move its towers.
  static func matching(tower: String) -> String { marker + expression(tower: tower) }

  static func expression(tower: String) -> String { "(.*\\.)?\(escaped(tower))\\..*" }

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
    return target == "Linear" ? 2 : nil
  }
}
