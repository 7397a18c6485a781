import Checkpoint
import SystemIO

/// What of a checkpoint is in a drop, and what is missing.
struct CheckpointParts {
  /// The shards that are needed, present or not; sorted.
  private(set) var shards: [String] = []
  /// nil for GGUF.
  private var format: WeightFormat? = .safetensors
  /// What is missing or too short, for people; empty when the checkpoint is complete.
  private(set) var gaps: [String] = []

  /// What an index says.
  enum WeightMap {
    case shards([String])
    case refused(DropRefusal)
    case unreadable(String)
  }

  /// What was read from the files of one drop.
  struct Memo {
    var lengths = StampedMemo<ShardLength>()
    var weightMaps = StampedMemo<WeightMap>()
    var configurations = StampedMemo<String?>()

    mutating func prune(keeping stamps: [String: FileStamp]) {
      lengths.prune(keeping: stamps)
      weightMaps.prune(keeping: stamps)
      configurations.prune(keeping: stamps)
    }
  }

  private static let configurationName = "config.json"
  /// Of an index: that of a model with a million tensors.
  private static let byteLimit = 100_000_000
  /// Of a configuration, which has some hundreds and no more than a vocabulary's labels.
  private static let valueLimit = 1_000_000

  init(
    _ stamps: [String: FileStamp], in directory: String, memo: inout Memo, now: ContinuousClock.Instant
  ) throws(DropRefusal) {
    memo.prune(keeping: stamps)
    let names = stamps.keys.filter { !$0.contains("/") && !$0.hasPrefix(".") }
    let models = GGUFFiles.models(ofDirectory: names)
    if !models.isEmpty {
      format = nil
      shards = GGUFFiles.parts(of: models[0])
      if models.count > 1 {
        gaps.append(
          "there are \(models.count) models in it, \(models.prefix(3).joined(separator: ", ")): drop one at a time"
        )
      }
      measureShards(stamps, in: directory, memo: &memo, now: now)
      return
    }
    if let stamp = stamps[Self.configurationName] {
      let path = FileSystem.join(directory, Self.configurationName)
      let gap = memo.configurations.value(Self.configurationName, stamp, now: now) {
        Self.configurationGap(path)
      }
      if let gap { gaps.append(gap) }
    } else {
      let inner = Set(
        stamps.keys.compactMap { path -> Substring? in
          let parts = path.split(separator: "/")
          return parts.count == 2 && parts[1] == Self.configurationName ? parts[0] : nil
        }
      ).sorted()
      gaps.append(
        "\(Self.configurationName) is missing"
          + (inner.isEmpty
            ? "" : ", but there is one in \(inner.prefix(3).joined(separator: ", ")): drop that folder"))
    }
    try findShards(stamps, in: directory, memo: &memo, now: now)
    measureShards(stamps, in: directory, memo: &memo, now: now)
  }

  private mutating func measureShards(
    _ stamps: [String: FileStamp], in directory: String, memo: inout Memo, now: ContinuousClock.Instant
  ) {
    for shard in shards {
      guard let stamp = stamps[shard] else {
        gaps.append("\(shard) is missing")
        continue
      }
      let path = FileSystem.join(directory, shard)
      let length = memo.lengths.value(shard, stamp, now: now) { [format] in
        format.map { ShardLength(readingFrom: path, $0) } ?? ShardLength(readingGGUF: path)
      }
      if let gap = length.gap(in: shard, byteCount: stamp.byteCount) { gaps.append(gap) }
    }
  }

  private static func configurationGap(_ path: String) -> String? {
    do {
      let bytes = try FileSystem.contents(of: path, limit: 1 << 24, symlinks: .refuse)
      if try JSONValue(parsing: bytes, maximumValues: valueLimit).object != nil { return nil }
      return "\(configurationName) is not a JSON object"
    } catch {
      return "\(configurationName) is not complete: \(error)"
    }
  }

  /// In the order in which ``ShardIndex`` chooses.
  private mutating func findShards(
    _ stamps: [String: FileStamp], in directory: String, memo: inout Memo, now: ContinuousClock.Instant
  ) throws(DropRefusal) {
    let names = stamps.keys.filter { !$0.contains("/") }
    guard let format = WeightFormat.taken(among: names) else {
      gaps.append(Self.noWeights(among: names))
      return
    }
    self.format = format
    if stamps[format.singleFileName] != nil {
      shards = [format.singleFileName]
    } else if let stamp = stamps[format.indexName] {
      let path = FileSystem.join(directory, format.indexName)
      switch memo.weightMaps.value(format.indexName, stamp, now: now, read: { Self.weightMap(path) }) {
      case .shards(let names): shards = names
      case .refused(let refusal): throw refusal
      case .unreadable(let gap): gaps.append(gap)
      }
    } else {
      shards = format.shards(among: names)
      gaps += Self.missingOfTheSeries(shards, format)
    }
  }

  private static func weightMap(_ path: String) -> WeightMap {
    let name = FileSystem.name(of: path)
    let shards: Set<String>
    do {
      var scanner = JSONScanner(try FileSystem.contents(of: path, limit: byteLimit, symlinks: .refuse))
      guard let found = scanner.shardNames() else {
        return .unreadable(
          "\(name) is not complete, or has no weight_map that gives every tensor a file")
      }
      shards = found
    } catch {
      return .unreadable("\(name) cannot be read: \(error)")
    }
    if shards.isEmpty { return .unreadable("\(name) has no weight_map") }
    for shard in shards.sorted() where !isPlainName(shard) {
      return .refused(.shardOutside(index: name, shard: shard))
    }
    return .shards(shards.sorted())
  }

  /// Whether a name leads to a file of the directory in which it is looked up.
  static func isPlainName(_ name: String) -> Bool {
    // By scalars: a character may combine a slash with an accent.
    !name.isEmpty && name != "." && name != ".." && !name.unicodeScalars.contains { $0 == "/" || $0 == "\0" }
  }

  private static func noWeights(among names: [String]) -> String {
    let files = WeightFormat.allCases.flatMap { [$0.singleFileName, $0.indexName] }
    let fact = "there is none of \(files.joined(separator: ", "))"
    guard let pickle = names.sorted().first(where: ShardIndex.isOtherPickle) else { return fact }
    return "\(fact), and \(pickle) is not named as weights are: "
      + "convert it with transformers, model.save_pretrained(directory, safe_serialization=True)"
  }

  /// What the names (`model-00001-of-00003.safetensors`) say is there as well. However many they claim,
  /// one gap is told for each series.
  private static func missingOfTheSeries(_ shards: [String], _ format: WeightFormat) -> [String] {
    var series: [NumberedFile.Series: Set<Int>] = [:]
    for shard in shards {
      guard let file = NumberedFile(shard, suffix: format.suffix) else { continue }
      if (1...max(file.series.count, 1)).contains(file.number) {
        series[file.series, default: []].insert(file.number)
      }
    }
    return series.compactMap { member, numbers in
      let missing = member.count - numbers.count
      guard missing > 0, let first = (1...member.count).first(where: { !numbers.contains($0) }) else {
        return nil
      }
      let name = member.name(first)
      return missing == 1 ? "\(name) is missing" : "\(name) and \(missing - 1) more are missing"
    }.sorted()
  }
}
