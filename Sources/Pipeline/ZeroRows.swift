import Compute
import Solvers
import Tensors

/// Looks for a run of rows so long of nothing but zeros that no training left it, in weights that others read.
final class ZeroRows {
  /// As many as make a run, or all there are.
  private static let run = 16

  private let weights: LinearRows
  private let backend: any ComputeBackend
  /// Of the rows that have been read.
  private var isZero: [Bool?]

  init(of weights: LinearRows, backend: any ComputeBackend) {
    (self.weights, self.backend) = (weights, backend)
    isZero = Array(repeating: nil, count: weights.outFeatures)
  }

  /// The weights; who reads them shows them.
  var watched: LinearRows {
    LinearRows(outFeatures: weights.outFeatures, inFeatures: weights.inFeatures) { try self.read($0) }
  }

  /// The first such run, for which rows are read that nobody has.
  func first(panelRows: Int) throws -> Range<Int>? {
    for panel in weights.panels(of: panelRows) where isZero[panel].contains(nil) { _ = try read(panel) }
    var start = 0
    for row in 0...isZero.count {
      if row < isZero.count, isZero[row] == true { continue }
      if row - start >= min(Self.run, max(isZero.count, 1)) { return start..<row }
      start = row + 1
    }
    return nil
  }

  private func read(_ rows: Range<Int>) throws -> Matrix {
    let panel = try weights.rows(rows)
    if isZero[rows].contains(nil) {
      isZero.replaceSubrange(rows, with: zeroRows(of: panel).map(Optional.some))
    }
    return panel
  }

  private func zeroRows(of panel: Matrix) -> [Bool] {
    // A device sums up squares in fp64 sooner than it sends the weights.
    if backend.deviceMemory != nil { return backend.rowDots(panel, panel).map { $0 == 0 } }
    return backend.withHostMatrix(panel, for: .reading) { host in
      (0..<panel.rows).map { row in
        host.rows(row..<row + 1).withSpan { span in span.indices.allSatisfy { span[$0] == 0 } }
      }
    }
  }
}
