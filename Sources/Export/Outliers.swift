import Checkpoint
import Quantization
import Tensors

/// How many outliers a linear keeps beside its codes.
public enum OutlierLayout: Sendable, Equatable {
  case unstructured(count: Int)
  /// Whole columns.
  case structured(columns: Int)

  init(_ outliers: Outliers) {
    self =
      switch outliers {
      case .unstructured(let values, _, _): .unstructured(count: values.count)
      case .structured(_, let columns): .structured(columns: columns.count)
      }
  }
}

/// The tensors that hold outliers, in a file of their own.
///
/// That file stands in a subdirectory: runtimes know nothing of outliers, and some load every
/// safetensors file that lies beside the weights.
///
/// | tensor | type | shape |
/// |---|---|---|
/// | `outliers.values` | fp16 | [count], or [out, columns] if whole columns are kept |
/// | `outliers.columns` | int32 | [count] or [columns] |
/// | `outliers.row_offsets`, single entries only | int64 | [out + 1] |
enum OutlierFile {
  static let directoryName = "outliers"
  static let path = "\(directoryName)/\(WeightFormat.safetensors.singleFileName)"
  static let valueType = DType.float16

  /// What `quantization_config` says under `outliers`.
  static let configuration: JSONValue = ["file": .string(path), "dtype": "float16"]

  static func values(of linear: String) -> String { "\(linear).outliers.values" }
  static func columns(of linear: String) -> String { "\(linear).outliers.columns" }
  static func rowOffsets(of linear: String) -> String { "\(linear).outliers.row_offsets" }

  static func tensors(of linear: LinearDescription) -> [TensorPlan] {
    let name = linear.name
    return switch linear.outliers {
    case nil: []
    case .unstructured(let count):
      [
        TensorPlan(name: values(of: name), dtype: valueType, shape: [count]),
        TensorPlan(name: columns(of: name), dtype: .int32, shape: [count]),
        TensorPlan(name: rowOffsets(of: name), dtype: .int64, shape: [linear.outFeatures + 1]),
      ]
    case .structured(let count):
      [
        TensorPlan(name: values(of: name), dtype: valueType, shape: [linear.outFeatures, count]),
        TensorPlan(name: columns(of: name), dtype: .int32, shape: [count]),
      ]
    }
  }

  static func write(_ outliers: Outliers, of linear: String, to writer: CheckpointWriter) throws {
    switch outliers {
    case .unstructured(let values, let columns, let rowOffsets):
      try write(values, columns, of: linear, to: writer)
      let offsets = rowOffsets.map(\.littleEndian)
      try writer.write(self.rowOffsets(of: linear), littleEndian: offsets)
    case .structured(let values, let columns):
      try write(values, columns, of: linear, to: writer)
    }
  }

  private static func write(
    _ values: [Float], _ columns: [Int32], of linear: String, to writer: CheckpointWriter
  ) throws {
    let name = self.values(of: linear)
    let encoded = try encodeChecked(values.span, as: valueType, tensor: name)
    try writer.write(name, encoded)
    try writer.write(self.columns(of: linear), littleEndian: columns.map(\.littleEndian))
  }
}
