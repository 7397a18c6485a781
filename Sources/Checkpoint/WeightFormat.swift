/// The formats that checkpoints are published in, the one that is taken where there are several first.
public enum WeightFormat: Sendable, CaseIterable {
  case safetensors
  /// `torch.save`, read without Python; see ``TorchFile``.
  case torch

  /// The file of a checkpoint that is not cut into shards.
  public var singleFileName: String {
    switch self {
    case .safetensors: "model.safetensors"
    case .torch: "pytorch_model.bin"
    }
  }

  /// Says in which shard every tensor is.
  public var indexName: String { singleFileName + ".index.json" }

  /// What the names of shards end in.
  public var suffix: String {
    switch self {
    case .safetensors: ".safetensors"
    case .torch: ".bin"
    }
  }

  init(ofShard path: String) { self = path.hasSuffix(Self.torch.suffix) ? .torch : .safetensors }

  /// The format of the weights among the files of a directory: one whose names say so, or else one that has files. Other
  /// safetensors, token ids to calibrate with, may stand beside a `pytorch_model.bin`.
  public static func taken(among names: [String]) -> WeightFormat? {
    allCases.first { names.contains($0.singleFileName) || names.contains($0.indexName) }
      ?? allCases.first { !$0.shards(among: names).isEmpty }
  }

  /// The files among those of a directory that are shards where no index says which are; sorted.
  public func shards(among names: some Sequence<String>) -> [String] {
    let candidates = names.filter { name in
      switch self {
      case .safetensors: name.hasSuffix(suffix)
      // Trainers leave other pickles beside the weights.
      case .torch: name.hasPrefix("pytorch_model") && name.hasSuffix(suffix)
      }
    }
    // The same weights in another layout, which some publish beside the shards.
    let consolidated = candidates.filter { $0.hasPrefix("consolidated") }
    return
      (consolidated.count < candidates.count
      ? candidates.filter { !consolidated.contains($0) } : candidates).sorted()
  }
}
