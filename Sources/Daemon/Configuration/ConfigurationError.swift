import Glibc

/// A place in a text file; both count from 1.
public struct TextPosition: Sendable, Equatable {
  public let line: Int
  public let column: Int

  public init(line: Int, column: Int) {
    self.line = line
    self.column = column
  }
}

/// Where a setting's value comes from, weakest first.
public enum SettingOrigin: Sendable, Equatable, CustomStringConvertible {
  case builtIn
  /// Without a position for what concerns the whole file.
  case file(String, TextPosition?)
  case environment
  case commandLine

  public var description: String {
    switch self {
    case .builtIn: "default"
    case .file(let path, let position?): "\(path):\(position.line):\(position.column)"
    case .file(let path, nil): path
    case .environment: "environment"
    case .commandLine: "command line"
    }
  }
}

/// A configuration that cannot be taken as it stands: where, which key, what is wrong, and the mend.
public struct ConfigurationError: Error, Equatable, Sendable, CustomStringConvertible {
  public let origin: SettingOrigin
  /// The key as its source writes it: `group-size`, or `QUANTEASED_GROUP_SIZE` in the environment.
  public let key: String?
  public let problem: String
  public let mend: String?
  /// By sysexits(3): 78 for the daemon's configuration, 65 for a job's own file.
  public let exitCode: Int32

  init(
    _ origin: SettingOrigin, key: String? = nil, problem: String, mend: String? = nil,
    exitCode: Int32 = EX_CONFIG
  ) {
    self.origin = origin
    self.key = key
    self.problem = problem
    self.mend = mend
    self.exitCode = exitCode
  }

  public var file: String? {
    if case .file(let path, _) = origin { path } else { nil }
  }

  public var position: TextPosition? {
    if case .file(_, let position) = origin { position } else { nil }
  }

  /// One line, whatever stands in the file: `FILE:LINE:COLUMN: key: what is wrong; mend`.
  public var description: String {
    let facts = ([origin.description] + [key.map { Excerpt.bare($0) }, problem].compactMap(\.self))
      .joined(separator: ": ")
    return mend.map { "\(facts); \($0)" } ?? facts
  }

  func withExitCode(_ code: Int32) -> ConfigurationError {
    ConfigurationError(origin, key: key, problem: problem, mend: mend, exitCode: code)
  }
}

/// Text from outside, made fit for one line of a log.
enum Excerpt {
  private static let longest = 80

  /// Without control characters and no longer than a line bears.
  static func bare(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars.prefix(longest) {
      switch scalar.properties.generalCategory {
      case .control, .format, .lineSeparator, .paragraphSeparator, .privateUse, .unassigned:
        result += "\\u{\(String(scalar.value, radix: 16))}"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return text.unicodeScalars.count > longest ? result + "…" : result
  }

  static func quoted(_ text: String) -> String { "\"\(bare(text))\"" }
}

/// Finds the name that was meant.
enum NearestName {
  /// The candidate that fewest single-character edits turn `name` into; nil if even that one is another word.
  static func of(_ name: String, among candidates: some Sequence<String>) -> String? {
    // No key is this long, and the time grows with the length.
    guard name.utf8.count <= 64 else { return nil }
    let ranked = candidates.map { (name: $0, distance: distance(name, $0)) }
      .min { ($0.distance, $0.name) < ($1.distance, $1.name) }
    guard let ranked, ranked.distance <= max(2, name.count / 3) else { return nil }
    return ranked.name
  }

  /// Insertions, deletions, replacements and swaps of neighbours that lead from one word to the other.
  static func distance(_ first: String, _ second: String) -> Int {
    let (a, b) = (Array(first), Array(second))
    var beforeLast = [Int](repeating: 0, count: b.count + 1)
    var last = Array(0...b.count)
    for i in a.indices {
      var row = [i + 1]
      for j in b.indices {
        var best = min(last[j] + (a[i] == b[j] ? 0 : 1), last[j + 1] + 1, row[j] + 1)
        if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { best = min(best, beforeLast[j - 1] + 1) }
        row.append(best)
      }
      (beforeLast, last) = (last, row)
    }
    return last[b.count]
  }
}
