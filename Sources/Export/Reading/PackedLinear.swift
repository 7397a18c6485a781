import Checkpoint
import Quantization
import Tensors

/// A packed linear as its tensors describe it.
struct PackedLinear: Sendable {
  let name: String
  let outFeatures: Int
  let inFeatures: Int
  let bitWidth: BitWidth
  let isSymmetric: Bool
  let groups: Int
  /// Columns of a group, if the groups follow one another.
  let columnsPerGroup: Int
  /// The tensor that gives the group of each column, where there is one.
  let groupIndexTensor: String?
  var outliers: OutlierLayout?

  var bits: Int { bitWidth.rawValue }
}

/// Some rows of a packed linear, unpacked.
struct UnpackedRows {
  /// `[rows, inFeatures]`
  var codes: [UInt8]
  /// `[rows, groups]`
  var scales: [Float]
  /// `[rows, groups]`
  var zeroPoints: [Float]
}

/// The tensors of one packed format, for reading.
protocol PackedLayout: Sendable {
  /// The suffix of the tensor that tells a packed linear from others.
  var codesSuffix: String { get }

  /// The suffixes of all tensors that a packed linear's weights may take, that one first.
  var codesSuffixes: [String] { get }

  /// Describes the linear `name` and checks that its tensors agree with each other.
  func linear(_ name: String, in reader: CheckpointReader) throws -> PackedLinear

  func unpack(_ rows: Range<Int>, of linear: PackedLinear, in reader: CheckpointReader) throws -> UnpackedRows
}

extension CheckpointReader {
  /// Checks that a tensor exists with the given shape and one of the given types.
  func require(
    _ tensor: String, _ dtypes: [DType], shape: [Int]
  ) throws(PackedCheckpointError) {
    guard let info = tensors[tensor] else { throw .missingTensor(tensor) }
    guard info.shape == shape, dtypes.contains(info.dtype) else {
      throw .unexpectedTensor(tensor, found: info.shape, info.dtype, expected: shape, dtypes)
    }
  }

  /// The extents of a matrix of the given type, none of them zero.
  func matrixShape(
    _ tensor: String, _ dtypes: [DType]
  ) throws(PackedCheckpointError) -> (rows: Int, columns: Int) {
    guard let info = tensors[tensor] else { throw .missingTensor(tensor) }
    guard info.shape.count == 2, info.shape.allSatisfy({ $0 > 0 }), dtypes.contains(info.dtype) else {
      throw .notAMatrix(tensor, found: info.shape, info.dtype, dtypes)
    }
    return (info.shape[0], info.shape[1])
  }
}

extension [DType] {
  /// Types that scales are stored in.
  static var scales: [DType] { [.float16, .bfloat16, .float32] }
}
