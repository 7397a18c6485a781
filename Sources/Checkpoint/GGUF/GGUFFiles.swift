/// Names of GGUF files: a model is one file, or parts that are named `PREFIX-00001-of-00003.gguf`.
public enum GGUFFiles {
  private static let suffix = ".gguf"

  /// Whether a path is that of a GGUF file, by its name.
  public static func isGGUF(_ path: String) -> Bool { path.lowercased().hasSuffix(suffix) }

  /// Whether a file is what makes inputs for a model of pictures or sound, and stands beside it.
  public static func isProjector(_ name: String) -> Bool {
    isGGUF(name) && name.lowercased().hasPrefix("mmproj")
  }

  /// The names of all parts of the model that a file is of, the first one first.
  public static func parts(of name: String) -> [String] {
    guard let series = series(of: name) else { return [name] }
    return (1...series.count).map(series.name)
  }

  public static func firstPart(of name: String) -> String { series(of: name)?.name(1) ?? name }

  /// The models among the files of a directory, each by its first part's name; sorted.
  public static func models(among names: some Sequence<String>) -> [String] {
    Set(names.filter { isGGUF($0) && !isProjector($0) }.map(firstPart)).sorted()
  }

  /// The models of a directory that is none of another format.
  /// - Parameter names: of its files, hidden ones aside
  public static func models(ofDirectory names: [String]) -> [String] {
    // Token ids to calibrate with may stand beside them.
    let hasNamedWeights = WeightFormat.allCases.contains {
      names.contains($0.singleFileName) || names.contains($0.indexName)
    }
    if hasNamedWeights || names.contains("config.json") && WeightFormat.taken(among: names) != nil {
      return []
    }
    return models(among: names)
  }

  /// The name of a model without ending and number.
  public static func stem(of name: String) -> String {
    series(of: name)?.prefix ?? String(name.dropLast(suffix.count))
  }

  /// The series of a part; nil for a model in one file.
  private static func series(of name: String) -> NumberedFile.Series? {
    guard isGGUF(name), let file = NumberedFile(name, suffix: String(name.suffix(suffix.count))),
      (1...max(file.series.count, 1)).contains(file.number), file.series.count > 0
    else { return nil }
    return file.series
  }
}
