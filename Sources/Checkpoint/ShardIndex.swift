import SystemIO

/// Which files of a directory hold a checkpoint's tensors.
public struct ShardIndex: Sendable, Equatable {
  public static let singleFileName = "model.safetensors"
  public static let fileName = "model.safetensors.index.json"

  /// The names of the shards, sorted.
  public let shards: [String]
  /// The shard of each tensor, where an index says so.
  public let shardOfTensor: [String: String]

  /// In this order: `model.safetensors`, the index, every `*.safetensors` in the directory.
  /// - Throws: ``CheckpointError`` or ``FileError``.
  public init(directory: String, symlinks: SymlinkPolicy) throws {
    guard try FileSystem.kind(of: directory) == .directory else {
      throw CheckpointError.noDirectory(directory)
    }
    let names = try FileSystem.names(in: directory)
    let required: [String]
    if names.contains(Self.singleFileName) {
      shards = [Self.singleFileName]
      shardOfTensor = [:]
      required = shards
    } else if names.contains(Self.fileName) {
      shardOfTensor = try Self.weightMap(directory: directory, symlinks: symlinks)
      shards = Set(shardOfTensor.values).sorted()
      required = shards
    } else {
      shards = names.filter { $0.hasSuffix(".safetensors") }
      shardOfTensor = [:]
      try Self.checkThatThereAreWeights(shards, among: names, directory: directory)
      required = Self.allOfTheSeries(shards)
    }
    for shard in required where !names.contains(shard) {
      throw CheckpointError.missingShard(directory: directory, shard: shard)
    }
  }

  private static func weightMap(
    directory: String, symlinks: SymlinkPolicy
  ) throws -> [String: String] {
    let path = FileSystem.join(directory, fileName)
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
      map[entry.key] = shard
    }
  }

  private static func checkThatThereAreWeights(
    _ shards: [String], among names: [String], directory: String
  ) throws(CheckpointError) {
    if !shards.isEmpty { return }
    if let pickle = names.first(where: { name in
      [".bin", ".pt", ".pth", ".ckpt"].contains { name.hasSuffix($0) }
    }) {
      throw .onlyPickles(file: FileSystem.join(directory, pickle))
    }
    throw .noWeights(directory: directory)
  }

  /// The shards, and those that their names (`model-00001-of-00003.safetensors`) say exist as well.
  private static func allOfTheSeries(_ shards: [String]) -> [String] {
    var all = Set(shards)
    for shard in shards {
      guard let match = shard.wholeMatch(of: /(.+-)([0-9]{5})-of-([0-9]{5})\.safetensors/),
        let count = Int(match.3)
      else { continue }
      for number in 1...max(count, 1) {
        all.insert(seriesName(prefix: String(match.1), number: number, count: count))
      }
    }
    return all.sorted()
  }

  /// The name of a shard, as transformers writes it.
  static func seriesName(prefix: String = "model-", number: Int, count: Int) -> String {
    func padded(_ value: Int) -> String {
      let digits = String(value)
      return String(repeating: "0", count: max(5 - digits.count, 0)) + digits
    }
    return "\(prefix)\(padded(number))-of-\(padded(count)).safetensors"
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
