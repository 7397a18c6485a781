import Tensors

/// What is wrong with a checkpoint beyond the bytes of a single file.
public enum CheckpointError: Error, Equatable, Sendable, CustomStringConvertible {
  case noDirectory(String)
  case noWeights(directory: String)
  case otherPickle(file: String)
  case missingConfiguration(directory: String)
  case adapter(directory: String)
  case nested(directory: String, inner: [String])
  case notJSON(file: String, JSONError)
  case noWeightMap(index: String)
  case shardOutsideDirectory(index: String, tensor: String, shard: String)
  case missingShard(directory: String, shard: String)
  case tensorNotInShard(tensor: String, shard: String)
  case duplicateTensor(tensor: String, shards: [String])
  case unknownTensor(String)
  case wrongShape(tensor: String, found: [Int], expected: [Int])
  case notAFloat(tensor: String, DType)
  case missingScale(tensor: String)
  case nonFinite(tensor: String, file: String, index: Int, value: Float)
  case incomplete(tensor: String, missingBytes: Int)

  /// The process's exit status, after sysexits.h.
  public var exitCode: Int32 {
    switch self {
    case .noDirectory, .noWeights, .missingConfiguration, .missingShard, .nested: 66  // EX_NOINPUT
    case .incomplete: 70  // EX_SOFTWARE
    default: 65  // EX_DATAERR
    }
  }

  public var description: String { "\(fact); \(mend)" }

  private var fact: String {
    switch self {
    case .noDirectory(let path):
      "\(path): no such directory"
    case .noWeights(let directory):
      "\(directory): there are no weights: neither \(WeightFormat.safetensors.singleFileName) nor "
        + "\(WeightFormat.torch.singleFileName) nor an index of either"
    case .otherPickle(let file):
      "\(file): the only weights here are a pickle that is not named as transformers names one, "
        + "\(WeightFormat.torch.singleFileName)"
    case .missingConfiguration(let directory):
      "\(directory): config.json is missing"
    case .nested(let directory, _):
      "\(directory): there is no config.json here, but one folder further down"
    case .adapter(let directory):
      "\(directory): this is an adapter (LoRA), and not a model"
    case .notJSON(let file, let error):
      "\(file): \(error)"
    case .noWeightMap(let index):
      "\(index): weight_map is missing or does not give a file name for every tensor"
    case .shardOutsideDirectory(let index, let tensor, let shard):
      "\(index): tensor \(tensor) is said to be in '\(shard)', which is no file of this directory"
    case .missingShard(let directory, let shard):
      "\(directory): shard \(shard) is missing"
    case .tensorNotInShard(let tensor, let shard):
      "\(shard): tensor \(tensor) is missing, although the index says it is there"
    case .duplicateTensor(let tensor, let shards):
      "tensor \(tensor) is in two shards: \(shards.joined(separator: " and "))"
    case .unknownTensor(let tensor):
      "the checkpoint has no tensor \(tensor)"
    case .wrongShape(let tensor, let found, let expected):
      "tensor \(tensor) has the shape \(found), config.json asks for \(expected)"
    case .notAFloat(let tensor, let dtype):
      "tensor \(tensor) is of type \(dtype.rawValue), where weights are F32, F16 or BF16"
    case .missingScale(let tensor):
      "tensor \(tensor) is in 8-bit floats, and the scales that belong to it are missing"
    case .nonFinite(let tensor, let file, let index, let value):
      "\(file): tensor \(tensor) holds \(value) at index \(index)"
    case .incomplete(let tensor, let missingBytes):
      "tensor \(tensor) was not written whole: \(missingBytes) bytes are missing"
    }
  }

  private var mend: String {
    switch self {
    case .noDirectory:
      "check the path"
    case .noWeights, .missingShard:
      "download the checkpoint again, or the file that is missing"
    case .otherPickle:
      "convert it on a machine where you trust it, with transformers: "
        + "model.save_pretrained(directory, safe_serialization=True)"
    case .missingConfiguration:
      "add the config.json of the model"
    case .nested(let directory, let inner):
      "give " + inner.map { "\(directory)/\($0)" }.joined(separator: ", or ")
    case .adapter:
      "merge it into its base model with peft: model.merge_and_unload().save_pretrained(directory)"
    case .notJSON, .noWeightMap, .tensorNotInShard, .duplicateTensor, .missingScale:
      "download the files again, or save the checkpoint again with transformers"
    case .shardOutsideDirectory:
      "put the shards beside the index, and plain file names into its weight_map"
    case .unknownTensor, .wrongShape:
      "check that config.json and the weights belong to the same model"
    case .notAFloat:
      "give an unquantized checkpoint"
    case .nonFinite:
      "the weights are damaged: download them again, or ask whoever trained them"
    case .incomplete:
      "please report it as a bug"
    }
  }
}
