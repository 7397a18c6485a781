import Tensors

/// Why a packed checkpoint cannot be read.
public enum PackedCheckpointError: Error, Equatable, Sendable, CustomStringConvertible {
  /// A kind of quantization that is not read, or a setting of one.
  case unsupported(directory: String, what: String)
  case noScheme(linear: String)
  case missingTensor(String)
  case unexpectedTensor(String, found: [Int], DType, expected: [Int], [DType])
  case notAMatrix(String, found: [Int], DType, [DType])
  case groupOutOfRange(tensor: String, column: Int, group: Int, groups: Int)
  case invalidOutliers(tensor: String, index: Int, value: Int)

  /// What this reader understands.
  static let known = """
    GPTQ (checkpoint_format gptq or gptq_v2, int32 words, no `dynamic`) with 2, 3, 4 or 8 bits, AWQ (version \
    gemm, zero points), and compressed-tensors pack-quantized (int weights alone, by channel or by group) with 2 to 6, or 8 bits
    """

  /// The process's exit status: a data error, after sysexits.h.
  public var exitCode: Int32 { 65 }

  public var description: String {
    switch self {
    case .unsupported(let directory, let what):
      "\(directory): config.json has \(what), which is not read; what is read is \(Self.known)"
    case .noScheme(let linear):
      """
      \(linear) is packed, but no target in config.json's config_groups names it: compare the file with \
      the original
      """
    case .missingTensor(let tensor):
      "the checkpoint has no tensor \(tensor), although it is packed: download it again"
    case .unexpectedTensor(let tensor, let found, let dtype, let expected, let dtypes):
      """
      \(tensor) is \(dtype.rawValue) \(found), where the other tensors and config.json ask for \
      \(Self.list(dtypes)) \(expected): check bits and group_size in config.json (compressed-tensors \
      before 0.18 packed 3 bits differently; convert such files with a newer version)
      """
    case .notAMatrix(let tensor, let found, let dtype, let dtypes):
      """
      \(tensor) is \(dtype.rawValue) \(found), where a \(Self.list(dtypes)) matrix is needed: download \
      the checkpoint again
      """
    case .groupOutOfRange(let tensor, let column, let group, let groups):
      """
      \(tensor) puts column \(column) into group \(group) of \(groups): the file is damaged, download \
      it again
      """
    case .invalidOutliers(let tensor, let index, let value):
      "\(tensor) holds \(value) at index \(index), which is out of range: write the checkpoint again"
    }
  }

  private static func list(_ dtypes: [DType]) -> String {
    dtypes.map(\.rawValue).joined(separator: "/")
  }
}
