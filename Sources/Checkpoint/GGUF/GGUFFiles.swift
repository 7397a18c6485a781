/// Names of GGUF files: a model is one file, or parts that are named `PREFIX-00001-of-00003.gguf`.
public enum GGUFFiles {
  public static let suffix = ".gguf"

  /// Whether a path is that of a GGUF file, by its name.
  public static func isGGUF(_ path: String) -> Bool { path.lowercased().hasSuffix(suffix) }

  /// The names of all parts of the model that a file is of, the first one first.
  public static func parts(of name: String) -> [String] {
    guard let part = Part(name) else { return [name] }
    return (1...part.count).map(part.name)
  }

  /// The models among the files of a directory, each by its first part's name; sorted. Projectors of pictures and sound,
  /// which stand beside the models that they are for, are none.
  public static func models(among names: some Sequence<String>) -> [String] {
    let models = names.filter { isGGUF($0) && !$0.lowercased().hasPrefix("mmproj") }
    return Set(models.map { parts(of: $0)[0] }).sorted()
  }

  /// The name of a model without ending and number.
  public static func stem(of name: String) -> String {
    Part(name)?.prefix ?? String(name.dropLast(suffix.count))
  }

  /// One of several files.
  private struct Part {
    let prefix: String
    let count: Int

    init?(_ name: String) {
      let text = Array(name.utf8)
      let tail = text.suffix(20)  // -00001-of-00003.gguf
      guard text.count > 20, GGUFFiles.isGGUF(name), tail.first == UInt8(ascii: "-"),
        tail.dropFirst(6).prefix(4).elementsEqual("-of-".utf8),
        let number = Self.number(tail.dropFirst(1).prefix(5)),
        let count = Self.number(tail.dropFirst(10).prefix(5)),
        (1...max(count, 1)).contains(number), count > 0
      else { return nil }
      prefix = String(decoding: text.dropLast(20), as: UTF8.self)
      self.count = count
    }

    private static func number(_ digits: ArraySlice<UInt8>) -> Int? {
      digits.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
        ? Int(String(decoding: digits, as: UTF8.self)) : nil
    }

    func name(_ number: Int) -> String {
      func padded(_ value: Int) -> String { String(String(100_000 + value).dropFirst()) }
      return "\(prefix)-\(padded(number))-of-\(padded(count))\(GGUFFiles.suffix)"
    }
  }
}
