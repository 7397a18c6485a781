import Foundation

/// One key of the configuration: how its value is read, where it goes, how it is written again.
struct Setting<Subject>: Sendable {
  typealias Path<Value> = any WritableKeyPath<Subject, Value> & Sendable

  let key: String
  /// What a value must be; completes "expected …".
  let expected: String
  let help: String
  /// What separates the elements of a list that is given as one text; nil if the key takes a single value.
  var separator: Character?
  /// Puts the value in; false if it is not what is expected. A key that is no list gets exactly one text.
  let apply: @Sendable (inout Subject, [String]) -> Bool
  /// The value as YAML writes it.
  let show: @Sendable (Subject) -> String

  func lifted<Outer>(_ path: any WritableKeyPath<Outer, Subject> & Sendable) -> Setting<Outer> {
    Setting<Outer>(
      key: key, expected: expected, help: help, separator: separator,
      apply: { apply(&$0[keyPath: path], $1) }, show: { show($0[keyPath: path]) })
  }

  /// A single value: what `parse` refuses is not possible.
  static func value<Value: Sendable>(
    _ key: String, _ path: Path<Value>, expected: String, _ help: String,
    parse: @escaping @Sendable (String) -> Value?,
    show: @escaping @Sendable (Value) -> String = { "\($0)" }
  ) -> Setting {
    Setting(
      key: key, expected: expected, help: help,
      apply: { subject, texts in
        guard let text = texts.first, let value = parse(text) else { return false }
        subject[keyPath: path] = value
        return true
      }, show: { show($0[keyPath: path]) })
  }

  /// A name that another program knows, in one word; nil, which is empty, leaves the choice to it.
  static func name(_ key: String, _ path: Path<String?>, _ help: String) -> Setting {
    value(
      key, path, expected: "a name", help,
      parse: { text -> String?? in
        if text.isEmpty { return .some(nil) }
        let isWord = !text.hasPrefix("-") && text.allSatisfy { !$0.isWhitespace && $0 != "\0" }
        return isWord ? .some(text) : nil
      }, show: { $0.map { YAMLText.scalar($0) } ?? "null" })
  }

  /// A number above 0, or nil, which is `auto` and leaves the choice to the job.
  static func automatic(
    _ key: String, _ path: Path<Double?>, upTo largest: Int, expected: String, _ help: String
  ) -> Setting {
    value(
      key, path, expected: "auto, or \(expected), above 0 and up to \(largest)", help,
      parse: { text -> Double?? in
        if text == "auto" { return .some(nil) }
        return Double(text).flatMap { $0 > 0 && $0 <= Double(largest) ? .some($0) : nil }
      }, show: { $0.map { "\($0)" } ?? "auto" })
  }

  static func integer(_ key: String, _ path: Path<Int>, _ range: ClosedRange<Int>, _ help: String) -> Setting
  {
    value(
      key, path, expected: "a whole number from \(range.lowerBound) to \(range.upperBound)", help,
      parse: { Int($0).flatMap { range.contains($0) ? $0 : nil } })
  }

  static func flag(_ key: String, _ path: Path<Bool>, _ help: String) -> Setting {
    value(key, path, expected: "true or false", help, parse: truth)
  }

  /// A flag, or nil, which is `auto` and leaves the choice to the job.
  static func automatic(_ key: String, _ path: Path<Bool?>, _ help: String) -> Setting {
    value(
      key, path, expected: "auto, true or false", help,
      parse: { text -> Bool?? in text == "auto" ? .some(nil) : truth(text).map { .some($0) } },
      show: { $0.map { "\($0)" } ?? "auto" })
  }

  private static func truth(_ text: String) -> Bool? {
    switch text.lowercased() {
    case "true", "yes", "on": true
    case "false", "no", "off": false
    default: nil
    }
  }

  static func choice<Value: RawRepresentable<String> & CaseIterable & Sendable>(
    _ key: String, _ path: Path<Value>, _ help: String
  ) -> Setting {
    value(
      key, path, expected: alternatives(Value.allCases.map(\.rawValue)), help,
      parse: { Value(rawValue: $0) }, show: { $0.rawValue })
  }

  /// A directory of the daemon's own.
  static func directory(_ key: String, _ path: Path<String>, _ help: String) -> Setting {
    value(
      key, path, expected: "an absolute path", help,
      parse: { $0.hasPrefix("/") && !$0.contains("\0") ? $0 : nil }, show: { YAMLText.scalar($0) })
  }

  static func list<Value: Sendable>(
    _ key: String, _ path: Path<[Value]>, separator: Character, expected: String, _ help: String,
    parse: @escaping @Sendable (String) -> Value?, show: @escaping @Sendable (Value) -> String
  ) -> Setting {
    Setting(
      key: key, expected: expected, help: help, separator: separator,
      apply: { subject, texts in
        let values = texts.compactMap(parse)
        guard values.count == texts.count else { return false }
        subject[keyPath: path] = values
        return true
      },
      show: { "[\($0[keyPath: path].map { YAMLText.scalar(show($0)) }.joined(separator: ", "))]" })
  }

  /// `a, b or c`
  private static func alternatives(_ names: [String]) -> String {
    guard let last = names.last, names.count > 1 else { return names.joined() }
    return names.dropLast().joined(separator: ", ") + " or " + last
  }
}

/// Writing of YAML, as far as a listing of settings needs it.
enum YAMLText {
  /// Plain where nobody could misread it, and otherwise in double quotes.
  static func scalar(_ text: String) -> String {
    let isPlain =
      text.first.map { $0.isASCII && ($0.isLetter || $0 == "/") } == true
      && text.unicodeScalars.allSatisfy {
        $0.isASCII
          && ($0.properties.isAlphabetic || ("0"..."9").contains($0) || "/._-".unicodeScalars.contains($0))
      }
      && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(text.lowercased())
    return isPlain ? text : quoted(text)
  }

  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"", "\\": result += "\\" + String(scalar)
      case _ where scalar.value < 0x20 || (0x7F...0x9F).contains(scalar.value):
        let digits = String(scalar.value, radix: 16)
        result += "\\x" + (digits.count < 2 ? "0" : "") + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}
