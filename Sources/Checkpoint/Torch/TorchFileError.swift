/// A file of `torch.save` that is damaged, or that holds something else than tensors.
public struct TorchFileError: FormatError, Equatable, Sendable {
  /// Bytes count from the beginning of the file, those of a pickle from its own.
  public enum Violation: Equatable, Sendable {
    case pointer
    case unknownFormat
    case truncated(String)
    case damagedArchive(String)
    case compressedRecord(String)
    case bigEndian
    case damagedPickle(String, byte: Int)
    case forbidden(String, byte: Int)
    case tooLarge(String)
    case notADictionary
    case notATensor(key: String)
    case duplicateTensor(String)
    case notContiguous(tensor: String, strides: [Int])
    case impossibleTensor(String, reason: String)
  }

  public let file: String
  public let violation: Violation

  public var fact: String {
    switch violation {
    case .pointer:
      GitLFSPointer.fact
    case .unknownFormat:
      "it does not begin like a file of torch.save"
    case .truncated(let what):
      "it is not complete: \(what)"
    case .damagedArchive(let reason):
      "the zip archive is damaged: \(reason)"
    case .compressedRecord(let name):
      "record '\(name)' of the zip archive is compressed or encrypted, which torch.save never does"
    case .bigEndian:
      "the weights were saved on a big-endian machine"
    case .damagedPickle(let reason, let byte):
      "the pickle is damaged or no state dict: \(reason) at its byte \(byte)"
    case .forbidden(let name, let byte):
      "the pickle asks for '\(name)' at its byte \(byte), which no weights need and which is not done"
    case .tooLarge(let what):
      "\(what), more than a checkpoint has"
    case .notADictionary:
      "it holds no state dict, which is a dictionary of tensors by their names"
    case .notATensor(let key):
      "'\(key)' in the state dict is not a tensor"
    case .duplicateTensor(let name):
      "tensor \(name) is there twice"
    case .notContiguous(let tensor, let strides):
      "tensor \(tensor) does not lie in one piece (its strides are \(strides))"
    case .impossibleTensor(let tensor, let reason):
      "tensor \(tensor): \(reason)"
    }
  }

  public var mend: String {
    switch violation {
    case .pointer: GitLFSPointer.mend
    case .truncated: "copy or download the file again"
    case .unknownFormat: "check that it holds weights, and download it again if it does"
    case .notADictionary, .notATensor:
      "give the model's weights alone, as transformers saves them: model.save_pretrained(directory)"
    case .forbidden:
      "do not open it elsewhere either unless you trust who made it; ask them for safetensors"
    case .damagedArchive, .damagedPickle: "download the file again"
    default:
      "save the weights as safetensors where you trust them, with transformers: "
        + "model.save_pretrained(directory, safe_serialization=True)"
    }
  }
}
