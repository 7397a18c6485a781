// JSON values as text: sorted keys, so that the same values always give the same bytes.

extension JSONValue {
  /// The document with two spaces per level and a newline at its end.
  public var prettyText: String {
    var text = ""
    append(to: &text, lineBreak: "\n")
    return text + "\n"
  }

  /// The document on one line, without spaces.
  public var compactText: String {
    var text = ""
    append(to: &text, lineBreak: nil)
    return text
  }

  private func append(to text: inout String, lineBreak: String?) {
    switch self {
    case .object(let members):
      let sorted = members.sorted { $0.key < $1.key }
      appendList(sorted, between: ("{", "}"), to: &text, lineBreak: lineBreak) { text, member, inner in
        text += "\(Self.quoted(member.key)):" + (lineBreak == nil ? "" : " ")
        member.value.append(to: &text, lineBreak: inner)
      }
    case .array(let elements):
      appendList(elements, between: ("[", "]"), to: &text, lineBreak: lineBreak) { text, element, inner in
        element.append(to: &text, lineBreak: inner)
      }
    case .string(let string): text += Self.quoted(string)
    case .integer(let value): text += "\(value)"
    // Not JSON, but what Python writes and reads, whose files these are.
    case .number(let value):
      text += value.isNaN ? "NaN" : value.isFinite ? "\(value)" : value < 0 ? "-Infinity" : "Infinity"
    case .bool(let flag): text += flag ? "true" : "false"
    case .null: text += "null"
    }
  }

  private func appendList<Element>(
    _ elements: [Element], between brackets: (String, String), to text: inout String,
    lineBreak: String?, appendElement: (inout String, Element, String?) -> Void
  ) {
    text += brackets.0
    let inner = lineBreak.map { $0 + "  " }
    for (index, element) in elements.enumerated() {
      if index > 0 { text += "," }
      if let inner { text += inner }
      appendElement(&text, element, inner)
    }
    if let lineBreak, !elements.isEmpty { text += lineBreak }
    text += brackets.1
  }

  /// A string literal: quotes, backslashes and control characters escaped, the rest as it is.
  static func quoted(_ string: String) -> String {
    var text = "\""
    for scalar in string.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\n": text += "\\n"
      case "\r": text += "\\r"
      case "\t": text += "\\t"
      case "\0"..<" ":
        let digits = String(scalar.value, radix: 16)
        text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: text.unicodeScalars.append(scalar)
      }
    }
    return text + "\""
  }
}
