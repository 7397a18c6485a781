/// A file that breaks a rule of the safetensors format.
public struct SafetensorsError: FormatError, Equatable, Sendable {
  /// The rules, one case each. Offsets that a header states count from the beginning of the data, as
  /// the header does; ranges of bytes count from the beginning of the file.
  public enum Violation: Equatable, Sendable {
    case pointer
    case noHeaderLength(fileByteCount: Int)
    case headerTooLong(byteCount: UInt64)
    case headerTruncated(byteCount: Int, available: Int)
    case headerNotJSON(JSONError)
    case headerNotObject
    case tooManyTensors(Int)
    case duplicateTensor(String, byte: Int)
    case metadataNotStrings
    case invalidField(String, tensor: String)
    case shapeOverflows([Int], tensor: String)
    case offsetsReversed(begin: Int, end: Int, tensor: String)
    case wrongByteCount(Int, expected: Int, tensor: String)
    case outOfRange(end: Int, available: Int, tensor: String)
    case overlap(String, String, byte: Int)
    case hole(Range<Int>, before: String)
    case trailingBytes(Range<Int>)
  }

  public let file: String
  public let violation: Violation

  public var fact: String {
    switch violation {
    case .pointer:
      GitLFSPointer.fact
    case .noHeaderLength(let count):
      "the file has \(count) bytes, too few for the length of a safetensors header (8)"
    case .headerTooLong(let count):
      "the header claims \(count) bytes, the limit is \(SafetensorsHeader.maximumByteCount)"
    case .headerTruncated(let count, let available):
      "the header has \(count) bytes, but \(count - available) of them are missing from the file"
    case .headerNotJSON(let error):
      "the header is not JSON: \(error) of the header"
    case .headerNotObject:
      "the header is not a JSON object"
    case .tooManyTensors(let count):
      "the header names \(count) tensors, the limit is \(SafetensorsHeader.maximumTensorCount)"
    case .duplicateTensor(let key, let byte):
      "'\(key)' stands twice in the header, the second time at byte \(byte)"
    case .metadataNotStrings:
      "\(SafetensorsHeader.metadataKey) is not an object of strings"
    case .invalidField(let field, let tensor):
      "tensor \(tensor): the header's \(field) is missing or malformed"
    case .shapeOverflows(let shape, let tensor):
      "tensor \(tensor): the shape \(shape) has more bytes than can be counted"
    case .offsetsReversed(let begin, let end, let tensor):
      "tensor \(tensor): data_offsets begin at \(begin), after their end at \(end)"
    case .wrongByteCount(let count, let expected, let tensor):
      "tensor \(tensor): data_offsets span \(count) bytes, dtype and shape need \(expected)"
    case .outOfRange(let end, let available, let tensor):
      "tensor \(tensor) ends at byte \(end) of the data, of which the file has \(available): "
        + "\(end - available) bytes are missing"
    case .overlap(let tensor, let other, let byte):
      "tensors \(other) and \(tensor) overlap at byte \(byte)"
    case .hole(let bytes, let tensor):
      "bytes \(bytes.lowerBound) to \(bytes.upperBound), before tensor \(tensor), belong to no tensor"
    case .trailingBytes(let bytes):
      "bytes \(bytes.lowerBound) to \(bytes.upperBound), at the end, belong to no tensor"
    }
  }

  public var mend: String {
    switch violation {
    case .pointer:
      GitLFSPointer.mend
    case .noHeaderLength, .headerTruncated, .outOfRange:
      "copy or download the file again, it is incomplete"
    case .headerTooLong, .headerNotJSON, .headerNotObject:
      "check that it is a safetensors file, and download it again if it is"
    default:
      "the file is damaged or its writer at fault: save it again with the safetensors library"
    }
  }
}
