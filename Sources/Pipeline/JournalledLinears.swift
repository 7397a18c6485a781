import Collective
import Compute
import Decoder
import Quantization
import Synchronization
import Tensors

/// The linears that are done, as the journal has them: those of earlier processes, and those that this one has finished
/// by the time that it asks. The first rank has the journal, and sends the others what they are to go on with.
struct JournalledLinears: KnownLinears {
  /// The first rank's.
  let journal: ResumeJournal?
  let ranks: Ranks
  let names: LinearNames
  /// The linears that are to be quantized, by name; all others are known.
  let treatments: [String: Treatment]
  let description: ModelDescription
  let backend: any ComputeBackend

  func isKnown(_ stage: Stage, inLayer index: Int) -> Bool {
    stage.linears.allSatisfy { linear in
      let name = description.layerPrefix(index) + linear.name
      return treatments[name] == nil || names.contains(name)
    }
  }

  func restore(_ stage: Stage, in layer: DecoderLayer, on rank: Int?) throws {
    let companions = stage.companions.filter { !layer.isLoaded($0) }
    for linear in companions + stage.linears {
      let name = layer.moduleName(of: linear)
      guard names.contains(name), let known = try self.linear(name, on: rank) else { continue }
      layer.replaceWeights(of: linear, by: known, backend: backend)
    }
  }

  /// A linear that is done, from the first rank.
  /// - Returns: nil where it is for another rank
  private func linear(_ name: String, on rank: Int?) throws -> QuantizedLinear? {
    let label = MessageLabel(.linear)
    guard let journal else {
      guard rank == nil || rank == ranks.rank else { return nil }
      guard let known = ResumeJournal.linear(ofPayload: try ranks.receive(label, from: 0)) else {
        throw ranks.unlike(label, from: 0)
      }
      return known.linear
    }
    let receivers = ranks.others.filter { rank == nil || rank == $0 }
    if !receivers.isEmpty {
      let payload = try journal.payload(name)
      for receiver in receivers { ranks.post(payload, label, to: receiver) }
    }
    return rank == nil || rank == 0 ? try journal.linear(name) : nil
  }
}

/// The names of linears that are done, the same on every rank.
final class LinearNames: Sendable {
  private let names: Mutex<Set<String>>

  init(_ names: some Sequence<String>) { self.names = Mutex(Set(names)) }

  func insert(_ name: String) { names.withLock { _ = $0.insert(name) } }

  func contains(_ name: String) -> Bool { names.withLock { $0.contains(name) } }
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
    (0..<outFeatures).parts(of: rows)
  }
}
