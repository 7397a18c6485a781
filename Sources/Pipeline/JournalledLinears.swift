import Compute
import Decoder
import Quantization
import Tensors

/// The linears that are done, as the journal has them: those of earlier processes, and those that this one has finished
/// by the time that it asks.
struct JournalledLinears: KnownLinears {
  let journal: ResumeJournal
  /// The linears that are to be quantized, by name; all others are known.
  let treatments: [String: Treatment]
  let description: ModelDescription
  let backend: any ComputeBackend

  func isKnown(_ stage: Stage, inLayer index: Int) -> Bool {
    stage.linears.allSatisfy { linear in
      let name = description.layerPrefix(index) + linear.name
      return treatments[name] == nil || journal.holds(name)
    }
  }

  func restore(_ stage: Stage, in layer: DecoderLayer) throws {
    let companions = stage.companions.filter { !layer.isLoaded($0) }
    for linear in companions + stage.linears {
      guard let known = try journal.linear(layer.moduleName(of: linear)) else { continue }
      layer.replaceWeights(of: linear, by: known, backend: backend)
    }
  }
}

extension DecoderLayer {
  private static let panelRows = 256
  private static let panelRowsOnDevice = 4_096

  /// Has the layer run with what a linear was quantized to.
  func replaceWeights(of linear: LayerLinear, by quantized: QuantizedLinear, backend: any ComputeBackend) {
    if backend.deviceMemory != nil, quantized.outliers == nil {
      // A byte a weight goes to the device, and not the four of its value.
      let own = backend.upload(quantized.grid)
      return replaceWeights(of: linear, byOwnRows: true) { store in
        for rows in quantized.panels(of: Self.panelRowsOnDevice) {
          let panel = backend.makeMatrix(rows: rows.count, columns: quantized.inFeatures)
          backend.uploadCodes(quantized.codes, firstRow: rows.lowerBound, to: panel)
          backend.dequantize(panel, grid: own.rows(rows), into: panel)
          store(panel)
        }
      }
    }
    replaceWeights(of: linear) { store in
      for rows in quantized.panels(of: Self.panelRows) {
        let panel = Matrix(rows: rows.count, columns: quantized.inFeatures)
        quantized.dequantize(rows: rows, into: panel)
        store(panel)
      }
    }
  }
}

extension QuantizedLinear {
  /// Its rows, some at a time.
  fileprivate func panels(of rows: Int) -> [Range<Int>] {
    stride(from: 0, to: outFeatures, by: rows).map { $0..<min($0 + rows, outFeatures) }
  }
}
