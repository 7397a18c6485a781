/// Why a file cannot be read as GGUF.
public struct GGUFError: Error, Sendable, Equatable, CustomStringConvertible {
  public enum Reason: Sendable, Equatable {
    case notGGUF
    case version(UInt32)
    case bigEndian
    case truncated(byte: Int)
    /// A count or a length beyond what the file can hold.
    case count(String, byte: Int)
    case duplicate(String)
    case badText(byte: Int)
    case valueType(UInt32, key: String)
    case alignment(String)
    case tensorType(UInt32, tensor: String)
    case shape([Int], tensor: String)
    case place(found: UInt64, expected: Int, tensor: String)
    case outOfFile(tensor: String, missingBytes: Int)
    case missingParts([String])
    case severalModels([String])
    case architecture(String, known: [String])
    case missingKey(String)
    case badKey(String)
    case unreadTensor(String)
  }

  public let file: String
  public let reason: Reason

  /// Whether more bytes may mend it: the file ends, or its counts go beyond its end, as while it is copied.
  public var isOfHeaderThatEnds: Bool {
    switch reason {
    case .truncated, .count: true
    default: false
    }
  }

  /// A data error, after sysexits.h.
  public var exitCode: Int32 { 65 }

  public var description: String { "\(file): \(text)" }

  private var text: String {
    switch reason {
    case .notGGUF:
      "no GGUF file: it does not begin with GGUF; check what it is, and that its download completed"
    case .version(let version): "GGUF version \(version), and 2 and 3 are read; convert the model anew"
    case .bigEndian:
      "a GGUF file of a big-endian machine; convert the model with --outfile on a little-endian one"
    case .truncated(let byte): "ends within its header, at byte \(byte); download it again"
    case .count(let what, let byte):
      "\(what) at byte \(byte) is more than the file can hold; download it again"
    case .duplicate(let name): "\(name) stands in its header twice; convert the model anew"
    case .badText(let byte): "the text at byte \(byte) is not UTF-8; convert the model anew"
    case .valueType(let type, let key): "\(key) has a value of type \(type), which GGUF does not have"
    case .alignment(let value): "general.alignment is \(value), and a power of two from 8 is needed"
    case .tensorType(let type, let tensor): "\(tensor) is of type \(type), which is not known here"
    case .shape(let shape, let tensor):
      "\(tensor) has the extents \(shape), which its type cannot have: one to four, none 0, rows of whole blocks"
    case .place(let found, let expected, let tensor):
      "\(tensor) is said to begin at byte \(found) of the data, and the tensors before it end at \(expected)"
    case .outOfFile(let tensor, let missing):
      "\(tensor) needs \(missing) bytes more than the file has; download it again"
    case .missingParts(let names):
      "\(names.count == 1 ? "a part" : "\(names.count) parts") of the model \(names.count == 1 ? "is" : "are") missing beside it: "
        + "\(names.prefix(3).joined(separator: ", "))\(names.count > 3 ? ", …" : ""); put all parts into one directory"
    case .severalModels(let names):
      "there are \(names.count) models in it, \(names.prefix(3).joined(separator: ", "))\(names.count > 3 ? ", …" : ""): "
        + "name one of the files, or keep one model in a directory"
    case .architecture(let name, let known):
      "general.architecture is \(name); GGUF files are read of \(known.joined(separator: ", "))"
    case .missingKey(let key): "\(key) is missing in its header; convert the model anew"
    case .unreadTensor(let name):
      "\(name) is not known here as a tensor of such a model, which would be another one without it; give the checkpoint "
        + "that the file was made of"
    case .badKey(let key): "\(key) is not the number or text that it should be; convert the model anew"
    }
  }
}
