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
      layer.replaceWeights(of: linear, by: known)
    }
  }
}

extension DecoderLayer {
  private static let panelRows = 256

  /// Has the layer run with what a linear was quantized to.
  func replaceWeights(of linear: LayerLinear, by quantized: QuantizedLinear) {
    replaceWeights(of: linear) { store in
      for start in stride(from: 0, to: quantized.outFeatures, by: Self.panelRows) {
        let rows = start..<min(start + Self.panelRows, quantized.outFeatures)
        let panel = Matrix(rows: rows.count, columns: quantized.inFeatures)
        quantized.dequantize(rows: rows, into: panel)
        store(panel)
      }
    }
  }
}
