import FoundationEssentials
import SystemIO

/// The daemon's log: one line per event on standard error, `what happened key=value …`.
///
/// The journal dates lines itself and reads the priority from `<N>` at a line's beginning. On a terminal or in a file
/// that would only disturb: there a line begins with its time, and a warning says that it is one. That standard error is
/// a socket decides it, and not `JOURNAL_STREAM`: shells inherit that from a desktop's services.
public struct Log: Sendable {
  /// As in syslog.h.
  public enum Priority: Int, Sendable, Comparable {
    case critical = 2, error, warning, notice, info

    /// What a dated line says of it; of what is as it should be, nothing.
    var word: String? {
      switch self {
      case .critical, .error: "error: "
      case .warning: "warning: "
      case .notice, .info: nil
      }
    }

    /// The more urgent is the smaller.
    public static func < (one: Priority, other: Priority) -> Bool { one.rawValue < other.rawValue }
  }

  /// A fact about the event. The same thing has the same key in every line.
  public struct Field: Sendable, Equatable {
    public let key: String
    public let value: String

    public init(_ key: String, _ value: String) {
      self.key = key
      self.value = value
    }

    public static func job(_ id: String) -> Field { Field("job", id) }
    /// The name that a checkpoint was dropped with.
    public static func name(_ name: String) -> Field { Field("name", name) }
    /// From 0.
    public static func layer(_ layer: Int) -> Field { Field("layer", "\(layer)") }
    public static func linear(_ name: String) -> Field { Field("linear", name) }
    public static func path(_ path: String) -> Field { Field("path", path) }
    public static func code(_ status: Int) -> Field { Field("code", "\(status)") }
    public static func seconds(_ seconds: Double) -> Field {
      let rounded = (seconds * 1000).rounded() / 1000
      return Field("seconds", "\(rounded)")
    }
    /// A relative error, as a share.
    public static func relativeError(_ error: Double) -> Field { Field("error", "\(error)") }
    /// What a person can do about it.
    public static func mend(_ text: String) -> Field { Field("mend", text) }
  }

  /// Longer lines are cut: a name of a megabyte is no message.
  static let byteLimit = 8192

  /// Lines that are less urgent are dropped.
  public var least: Priority
  private let form: Form
  private let descriptor: Int32

  /// Who reads it.
  public enum Form: Sendable, Equatable {
    case journal
    /// People, with nobody between who would date it.
    case dated
  }

  public init(
    least: Priority = .info, form: Form = StandardError.isSocket ? .journal : .dated,
    descriptor: Int32 = StandardError.descriptor
  ) {
    self.least = least
    self.form = form
    self.descriptor = descriptor
  }

  public func critical(_ event: String, _ fields: Field...) { write(.critical, event, fields) }
  public func error(_ event: String, _ fields: Field...) { write(.error, event, fields) }
  public func warning(_ event: String, _ fields: Field...) { write(.warning, event, fields) }
  public func notice(_ event: String, _ fields: Field...) { write(.notice, event, fields) }
  public func info(_ event: String, _ fields: Field...) { write(.info, event, fields) }

  public func write(_ priority: Priority, _ event: String, _ fields: [Field]) {
    if priority > least { return }
    let beginning =
      switch form {
      case .journal: "<\(priority.rawValue)>"
      case .dated: Self.dated(priority, Date())
      }
    StandardError.write(Self.line(beginning, event, fields), to: descriptor)
  }

  // MARK: Lines

  /// `2026-11-23T23:15:02Z warning: `
  static func dated(_ priority: Priority, _ time: Date) -> String {
    "\(time.formatted(.iso8601)) \(priority.word ?? "")"
  }

  static func line(_ beginning: String, _ event: String, _ fields: [Field]) -> [UInt8] {
    let facts = fields.map { " \($0.key)=\(quoted($0.value))" }.joined()
    var line = Array((beginning + visible(event) + facts).utf8)
    if line.count >= byteLimit {
      // Not within a character.
      var end = byteLimit - 4
      while line[end] & 0xC0 == 0x80 { end -= 1 }
      line = line[..<end] + Array("…".utf8)
    }
    return line + [UInt8(ascii: "\n")]
  }

  /// A value, in quotation marks where it would not be told from what follows.
  private static func quoted(_ value: String) -> String {
    let isPlain =
      !value.isEmpty
      && value.unicodeScalars.allSatisfy { scalar in
        !isHidden(scalar) && scalar != "\"" && scalar != "\\" && scalar != "="
          && !scalar.properties.isWhitespace
      }
    if isPlain { return value }
    let inner = value.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"")
    return "\"\(visible(inner))\""
  }

  /// `text` with what would begin a line, move the cursor or turn the direction of writing spelled out.
  private static func visible(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      case _ where isHidden(scalar): result += "\\u{\(String(scalar.value, radix: 16))}"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }

  private static func isHidden(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator: true
    default: false
    }
  }
}
