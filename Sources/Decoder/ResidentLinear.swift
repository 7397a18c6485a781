import Compute
import Tensors

/// A linear's weights and bias as the forward pass uses them: whole, or, where the checkpoint has several projections in
/// one matrix, one part for each.
struct ResidentLinear {
  let parts: [LinearWeights]
  private let biases: [[Float]?]
  /// The rows of the checkpoint's matrix that each part is made of, in order.
  private let rows: [[Range<Int>]]

  /// Weights of zeros.
  /// - Parameters:
  ///   - rows: of the checkpoint's matrix, for every part
  ///   - bias: the checkpoint's
  init(
    rows: [[Range<Int>]], inFeatures: Int, bias: [Float]?, operands: OperandType,
    backend: any DecoderOperations
  ) {
    self.rows = rows
    parts = rows.map { ranges in
      backend.makeWeights(
        outFeatures: ranges.reduce(0) { $0 + $1.count }, inFeatures: inFeatures, operands: operands)
    }
    biases = rows.map { ranges in bias.map { bias in ranges.flatMap { bias[$0] } } }
  }

  var products: [(weights: LinearWeights, bias: [Float]?)] { Array(zip(parts, biases)) }

  /// Sets some rows of the checkpoint's matrix.
  /// - Parameter areOwn: whether they are in the backend's memory, and not in the host's
  func store(_ panel: Matrix, firstRow: Int, areOwn: Bool = false, by backend: any DecoderOperations) {
    let panelRows = firstRow..<firstRow + panel.rows
    for (part, ranges) in zip(parts, rows) {
      var start = 0
      for range in ranges {
        let shared = range.clamped(to: panelRows)
        if !shared.isEmpty {
          let rows = panel.rows(shared.lowerBound - firstRow..<shared.upperBound - firstRow)
          let place = start + shared.lowerBound - range.lowerBound
          if areOwn {
            backend.set(part, firstRow: place, to: rows)
          } else {
            backend.store(rows, firstRow: place, in: part)
          }
        }
        start += range.count
      }
    }
  }
}

extension AttentionDescription {
  /// The rows of a fused matrix that are queries, keys and values.
  func rows(_ order: FusedRows) -> [[Range<Int>]] {
    if order == .blocks {
      let keys = queryFeatures + keyFeatures
      return [[0..<queryFeatures], [queryFeatures..<keys], [keys..<keys + keyFeatures]]
    }
    let queriesPerGroup = heads / keyValueHeads
    return [(0, queriesPerGroup), (queriesPerGroup, 1), (queriesPerGroup + 1, 1)].map { offset, count in
      (0..<keyValueHeads).map { group in
        let start = (group * (queriesPerGroup + 2) + offset) * headDimension
        return start..<start + count * headDimension
      }
    }
  }
}
