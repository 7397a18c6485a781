import Checkpoint
import Quantization
import Tensors

/// The dequantized weights, Ŵ + Ĥ, as a checkpoint like any other, in the source's float type.
public struct DenseFormat: OutputFormat {
  public let name = OutputFormatName.dense
  public let storesOutliersApart = false
  public let keepsSourceLayout = true

  public init() {}

  public func scaleTypes(modelType: DType) -> [DType] { [] }

  public func tensors(
    of linear: LinearDescription, grid: GridFormat, inPlaceOf weight: TensorInfo
  ) -> [TensorPlan] {
    guard let part = weight.part else { return [TensorPlan(copying: weight)] }
    return [TensorPlan(name: part.whole, dtype: weight.dtype, shape: part.shape)]
  }

  public func write(_ linear: QuantizedLinear, inPlaceOf weight: TensorInfo, to writer: CheckpointWriter)
    throws
  {
    let (rows, columns) = (linear.outFeatures, linear.inFeatures)
    let panelRows = max(1, min(rows, codesPerPanel / max(columns, 1)))
    let panel = Matrix(rows: panelRows, columns: columns)
    for first in stride(from: 0, to: rows, by: panelRows) {
      let range = first..<min(first + panelRows, rows)
      let weights = panel.prefix(range.count)
      linear.dequantize(rows: range, into: weights)
      try writer.write(weights, firstRow: first, of: weight)
    }
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? { nil }

  public func runtimes(for grid: GridFormat, of traits: ModelTraits) -> [RuntimeSupport] {
    ["vLLM", "transformers"].map { RuntimeSupport(format: name, runtime: $0, loads: true) }
  }
}
