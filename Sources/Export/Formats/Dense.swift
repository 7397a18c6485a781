import Checkpoint
import Quantization
import Tensors

/// The dequantized weights, Ŵ + Ĥ, as a checkpoint like any other, in the source's float type.
public struct DenseFormat: OutputFormat {
  public let name = OutputFormatName.dense
  public let storesOutliersApart = false

  public init() {}

  public func scaleTypes(modelType: DType) -> [DType] { [] }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    [TensorPlan(name: weight.name, dtype: weight.dtype, shape: weight.storedShape)]
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    let (rows, columns) = (linear.outFeatures, linear.inFeatures)
    let width = weight.dtype.byteWidth
    let panelRows = max(1, min(rows, codesPerPanel / max(columns, 1)))
    let panel = Matrix(rows: panelRows, columns: columns)
    for first in stride(from: 0, to: rows, by: panelRows) {
      let range = first..<min(first + panelRows, rows)
      let weights = panel.prefix(range.count)
      linear.dequantize(rows: range, into: weights)
      guard weight.isTransposed else {
        let bytes = weights.withSpan { encode($0, as: weight.dtype) }
        try writer.write(weight.name, bytes, at: first * columns * width)
        continue
      }
      for column in 0..<columns {
        let line = Matrix(rows: 1, columns: range.count, (0..<range.count).map { weights[$0, column] })
        let bytes = line.withSpan { encode($0, as: weight.dtype) }
        try writer.write(weight.name, bytes, at: (column * rows + first) * width)
      }
    }
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? { nil }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    ["vLLM", "transformers"].map { RuntimeSupport(format: name, runtime: $0, loads: true) }
  }
}
