import SystemIO

/// Which files of a directory hold a checkpoint's tensors.
public struct ShardIndex: Sendable, Equatable {
  public let format: WeightFormat
  /// The names of the shards, sorted.
  public let shards: [String]
  /// The shard of each tensor, where an index says so.
  public let shardOfTensor: [String: String]

  /// In this order: `model.safetensors`, its index, the same of `pytorch_model.bin`; every `*.safetensors` in the
  /// directory, every `pytorch_model*.bin`.
  /// - Throws: ``CheckpointError`` or ``FileError``.
  public init(directory: String, symlinks: SymlinkPolicy) throws {
    guard try FileSystem.kind(of: directory) == .directory else {
      throw CheckpointError.noDirectory(directory)
    }
    let names = try FileSystem.names(in: directory)
    guard let format = WeightFormat.taken(among: names) else {
      if let other = names.first(where: Self.isOtherPickle) {
        throw CheckpointError.otherPickle(file: FileSystem.join(directory, other))
      }
      throw CheckpointError.noWeights(directory: directory)
    }
    self.format = format
    let required: [String]
    if names.contains(format.singleFileName) {
      shards = [format.singleFileName]
      shardOfTensor = [:]
      required = shards
    } else if names.contains(format.indexName) {
      shardOfTensor = try Self.weightMap(
        FileSystem.join(directory, format.indexName), format, symlinks: symlinks)
      shards = Set(shardOfTensor.values).sorted()
      required = shards
    } else {
      shards = format.shards(among: names)
      shardOfTensor = [:]
      required = Self.allOfTheSeries(shards, format)
    }
    for shard in required where !names.contains(shard) {
      throw CheckpointError.missingShard(directory: directory, shard: shard)
    }
  }

  /// Whether a name is that of a pickle that is not laid out as transformers does.
  public static func isOtherPickle(_ name: String) -> Bool {
    [".bin", ".pt", ".pth", ".ckpt"].contains { name.hasSuffix($0) }
  }

  private static func weightMap(
    _ path: String, _ format: WeightFormat, symlinks: SymlinkPolicy
  ) throws -> [String: String] {
    let json = try JSONValue(contentsOf: path, symlinks: symlinks)
    guard let members = json["weight_map"]?.object, !members.isEmpty else {
      throw CheckpointError.noWeightMap(index: path)
    }
    return try members.mapValues(\.string).reduce(into: [:]) { map, entry in
      guard let shard = entry.value else { throw CheckpointError.noWeightMap(index: path) }
      // A single name cannot lead out of the directory.
      guard !shard.isEmpty, shard != ".", shard != "..", !shard.contains("/"), !shard.contains("\0")
      else {
        throw CheckpointError.shardOutsideDirectory(index: path, tensor: entry.key, shard: shard)
      }
      guard shard.hasSuffix(format.suffix) else { throw CheckpointError.noWeightMap(index: path) }
      map[entry.key] = shard
    }
  }

  /// The shards, and those that their names (`model-00001-of-00003.safetensors`) say exist as well.
  private static func allOfTheSeries(_ shards: [String], _ format: WeightFormat) -> [String] {
    var all = Set(shards)
    for shard in shards {
      let stem = shard.dropLast(format.suffix.count)
      guard let match = stem.wholeMatch(of: /(.+-)([0-9]{5})-of-([0-9]{5})/), let count = Int(match.3)
      else { continue }
      for number in 1...max(count, 1) {
        all.insert(
          seriesName(prefix: String(match.1), number: number, count: count, suffix: format.suffix))
      }
    }
    return all.sorted()
  }

  /// The name of a shard, as transformers writes it.
  static func seriesName(
    prefix: String = "model-", number: Int, count: Int, suffix: String = WeightFormat.safetensors.suffix
  ) -> String {
    func padded(_ value: Int) -> String {
      let digits = String(value)
      return String(repeating: "0", count: max(5 - digits.count, 0)) + digits
    }
    return "\(prefix)\(padded(number))-of-\(padded(count))\(suffix)"
  }
}

extension JSONValue {
  /// Reads a configuration file.
  /// - Throws: ``FileError``, or ``CheckpointError/notJSON(file:_:)``.
  public init(contentsOf path: String, symlinks: SymlinkPolicy = .follow) throws {
    // The longest sensible one is the index of a model with a million tensors.
    let bytes = try FileSystem.contents(of: path, limit: 200_000_000, symlinks: symlinks)
    do {
      self = try JSONValue(parsing: bytes)
    } catch {
      throw CheckpointError.notJSON(file: path, error)
    }
  }
}
