import SystemIO

/// What calibration sequences are drawn from: a file, or several with their shares.
///
/// As settings and orders write it, an element a file: `PATH`, or `PATH:WEIGHT`. Of one file of weight 1 it is the path alone.
public struct CalibrationSources: Sendable, Equatable, CustomStringConvertible {
  public struct File: Sendable, Equatable, CustomStringConvertible {
    public var path: String
    /// How many sequences come from it, in proportion to the others'.
    public var weight: Double

    public init(path: String, weight: Double = 1) {
      precondition(weight > 0, "nothing would come of it")
      (self.path, self.weight) = (path, weight)
    }

    /// - Returns: nil of no path, and of a weight that is not above 0
    public init?(_ text: String) {
      guard let colon = text.lastIndex(of: ":"), let weight = Double(text[text.index(after: colon)...]) else {
        if text.isEmpty { return nil }
        self.init(path: text)
        return
      }
      guard colon > text.startIndex, weight > 0, weight.isFinite else { return nil }
      self.init(path: String(text[..<colon]), weight: weight)
    }

    public var description: String {
      // A path may end as one with a weight does.
      if weight == 1, File(path)?.path == path { return path }
      return "\(path):" + (weight == weight.rounded() && weight < 1e15 ? "\(Int(weight))" : "\(weight)")
    }
  }

  public var files: [File]

  public init(_ files: [File]) { self.files = files }

  /// Reads what ``description`` of files says.
  public init?(_ texts: [String]) {
    let files = texts.compactMap(File.init)
    if files.count != texts.count { return nil }
    self.init(files)
  }

  public var description: String { files.map(\.description).joined(separator: ", ") }

  /// The same with other paths.
  public func replacingPaths(_ change: (String) -> String) -> CalibrationSources {
    CalibrationSources(files.map { File(path: change($0.path), weight: $0.weight) })
  }

  /// Without the directories, for people.
  public var names: String { replacingPaths(FileSystem.name(of:)).description }

  /// How many of so many sequences come from each file: in proportion to its weight, and what is left over from those that
  /// are the most short of it.
  func shares(of samples: Int) -> [Int] {
    let total = files.reduce(0) { $0 + $1.weight }
    let exact = files.map { Double(samples) * ($0.weight / total) }
    var shares = exact.map { Int($0) }
    let rest = files.indices.sorted {
      (Double(shares[$0]) - exact[$0], $0) < (Double(shares[$1]) - exact[$1], $1)
    }
    for index in rest.prefix(samples - shares.reduce(0, +)) { shares[index] += 1 }
    return shares
  }
}

extension CalibrationSources: ExpressibleByStringLiteral {
  /// One file.
  public init(stringLiteral path: String) { self.init([File(path: path)]) }
}

extension CalibrationSources: Codable {
  public init(from decoder: any Decoder) throws {
    let container = try decoder.singleValueContainer()
    let texts = try (try? container.decode(String.self)).map { [$0] } ?? container.decode([String].self)
    guard let sources = CalibrationSources(texts) else {
      throw DecodingError.dataCorruptedError(in: container, debugDescription: "no calibration file")
    }
    self = sources
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    let texts = files.map(\.description)
    if texts.count == 1 { try container.encode(texts[0]) } else { try container.encode(texts) }
  }
}

extension CalibrationSet {
  /// Draws sequences from several sources, from each its share. Any beginning of the set has of each in proportion, as nearly as
  /// may be, until a source has no more that overlap none of its others: those that do come last.
  /// - Parameters:
  ///   - sources: the files
  ///   - rows: the tokens of each
  ///   - spare: so many others are drawn beside them, from each source its share, or as many as are left
  /// - Throws: ``CalibrationError``
  public init(
    drawing samples: Int, spare: Int = 0, sequenceLength: Int, from sources: CalibrationSources,
    rows: [TokenRows], seed: UInt64
  ) throws(CalibrationError) {
    precondition(sources.files.count == rows.count, "each has its tokens")
    if rows.count == 1 {
      try self.init(
        drawing: samples, spare: spare, sequenceLength: sequenceLength, from: rows[0], seed: seed)
      return
    }
    var parts: [CalibrationSet] = []
    let spares = sources.shares(of: spare)
    for (index, share) in sources.shares(of: samples).enumerated() {
      let available = rows[index].shiftedWindowCount(length: sequenceLength)
      guard share > 0, available >= share || rows[index].tokenCount == 0 else {
        throw .unlikeShare(source: rows[index].name, share: share, samples: samples, available: available)
      }
      parts.append(
        try CalibrationSet(
          drawing: share, spare: spares[index], sequenceLength: sequenceLength, from: rows[index],
          seed: seed &+ UInt64(index)))
    }
    let turns = parts.indices.flatMap { part in
      (0..<parts[part].samples).map {
        (
          isCutAgain: $0 < parts[part].distinct ? 0 : 1,
          place: (Double($0) + 0.5) / Double(parts[part].samples), part: part, sample: $0
        )
      }
    }
    .sorted { ($0.isCutAgain, $0.place, $0.part) < ($1.isCutAgain, $1.place, $1.part) }
    self.init(
      sequenceLength: sequenceLength,
      tokens: turns.flatMap { parts[$0.part].tokens(of: $0.sample..<$0.sample + 1) },
      spare: parts.flatMap(\.spare),
      idRange: parts.map(\.idRange).reduce(parts[0].idRange) {
        min($0.lowerBound, $1.lowerBound)...max($0.upperBound, $1.upperBound)
      },
      overlapping: parts.reduce(0) { $0 + $1.overlapping })
  }
}
