import Pipeline

/// A key with its value, as one source writes it.
struct SettingEntry {
  enum Value {
    case text(String)
    case list([String])
    /// A mapping where a value belongs.
    case section
  }

  let key: String
  /// The key as its source spells it.
  var name: String
  let value: Value
  let origin: SettingOrigin

  init(key: String, name: String? = nil, value: Value, origin: SettingOrigin) {
    self.key = key
    self.name = name ?? key
    self.value = value
    self.origin = origin
  }

  func apply<Subject>(_ setting: Setting<Subject>, to subject: inout Subject) throws(ConfigurationError) {
    let texts: [String]
    switch (value, setting.separator) {
    case (.text(let text), nil): texts = [text]
    case (.text(let text), let separator?):
      texts = Self.elements(of: text, separator: separator)
    case (.list(let elements), _?): texts = elements
    case (.list, nil): throw misplaced("a list", expected: setting.expected)
    case (.section, _): throw misplaced("a section", expected: setting.expected)
    }
    if !setting.apply(&subject, texts) {
      let shown = texts.count == 1 ? texts[0] : texts.joined(separator: ", ")
      throw ConfigurationError(
        origin, key: name, problem: shown.isEmpty ? "no value" : "\(Excerpt.quoted(shown)) is not possible",
        mend: "expected \(setting.expected)")
    }
  }

  private func misplaced(_ what: String, expected: String) -> ConfigurationError {
    ConfigurationError(
      origin, key: name, problem: "\(what) where a value belongs", mend: "expected \(expected)")
  }

  /// The elements of a list that is given as one text.
  static func elements(of text: String, separator: Character) -> [String] {
    text.split(separator: separator).map { $0.trimmingSpaces() }.filter { !$0.isEmpty }
  }

  /// - Parameter elsewhere: what to do if the key is one that is known, but not here
  func unknown(known: [String], elsewhere: String? = nil) -> ConfigurationError {
    let nearest = NearestName.of(name, among: known).map { "did you mean \($0)?" }
    return ConfigurationError(
      origin, key: name, problem: elsewhere == nil ? "unknown setting" : "not possible here",
      mend: elsewhere ?? nearest ?? "known are \(known.joined(separator: ", "))")
  }

  /// The key of the file that a refused setting has.
  static func key(of error: SettingsError) -> String { error.key == "rule" ? "rules" : error.key }
}

extension Substring {
  fileprivate func trimmingSpaces() -> String {
    let rest = drop(while: \.isWhitespace)
    return String(rest.reversed().drop(while: \.isWhitespace).reversed())
  }
}
