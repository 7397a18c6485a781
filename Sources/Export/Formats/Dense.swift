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
    of linear: LinearDescription, grid: GridFormat, modelType: DType
  ) -> [TensorPlan] {
    [
      TensorPlan(
        name: "\(linear.name).weight", dtype: modelType,
        shape: [linear.outFeatures, linear.inFeatures])
    ]
  }

  public func write(_ linear: QuantizedLinear, modelType: DType, to writer: CheckpointWriter) throws {
    let columns = linear.inFeatures
    let panelRows = max(1, min(linear.outFeatures, codesPerPanel / max(columns, 1)))
    let panel = Matrix(rows: panelRows, columns: columns)
    for first in stride(from: 0, to: linear.outFeatures, by: panelRows) {
      let rows = first..<min(first + panelRows, linear.outFeatures)
      let weights = panel.prefix(rows.count)
      linear.dequantize(rows: rows, into: weights)
      let bytes = weights.withSpan { encode($0, as: modelType) }
      try writer.write(
        "\(linear.name).weight", bytes, at: first * columns * modelType.byteWidth)
    }
  }

  public func quantizationConfiguration(
    of linears: [LinearDescription], besides towers: [String]
  ) -> JSONValue? { nil }

  public func runtimes(for grid: GridFormat, ofExperts hasExperts: Bool) -> [RuntimeSupport] {
    ["vLLM", "transformers"].map { RuntimeSupport(format: name, runtime: $0, loads: true) }
  }
}
