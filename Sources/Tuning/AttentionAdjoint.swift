import Compute
import Foundation
import Tensors

/// Gradients of causal attention, a sequence and a head at a time.
struct AttentionAdjoint {
  private let parameters: AttentionParameters
  private let backend: any ComputeBackend

  init(_ parameters: AttentionParameters, backend: any ComputeBackend) {
    self.parameters = parameters
    self.backend = backend
  }

  /// - Parameters:
  ///   - gradient: of the outputs
  ///   - queries: as the attention has read them; so are the others
  func gradients(
    _ gradient: Matrix, queries: Matrix, keys: Matrix, values: Matrix
  ) -> (queries: Matrix, keys: Matrix, values: Matrix) {
    let (length, width) = (parameters.sequenceLength, parameters.headDimension)
    let valueWidth = parameters.valueDimension
    func make(_ columns: Int) -> Matrix { Matrix(rows: length, columns: columns) }
    let results = [queries, keys, values].map { Matrix(rows: $0.rows, columns: $0.columns) }
    let (query, key, value) = (make(width), make(width), make(valueWidth))
    let (outputs, queryGradient) = (make(valueWidth), make(width))
    let (keyGradient, valueGradient) = (make(width), make(valueWidth))
    let (scores, slopes) = (make(length), make(length))
    for first in stride(from: 0, to: queries.rows, by: length) {
      for shared in 0..<parameters.keyValueHeads {
        key.copyHead(shared, ofRowsFrom: first, of: keys)
        value.copyHead(shared, ofRowsFrom: first, of: values)
        keyGradient.fill(0)
        valueGradient.fill(0)
        let readers = parameters.heads / parameters.keyValueHeads
        for head in shared * readers..<(shared + 1) * readers {
          query.copyHead(head, ofRowsFrom: first, of: queries)
          outputs.copyHead(head, ofRowsFrom: first, of: gradient)
          backend.multiply(query, key, transposingB: true, scale: parameters.scale, into: scores, keeping: 0)
          backend.multiply(outputs, value, transposingB: true, scale: 1, into: slopes, keeping: 0)
          takeProbabilities(scores, slopes, head: head)
          backend.accumulateCrossProduct(scores, outputs, into: valueGradient)
          backend.multiply(
            slopes, key, transposingB: false, scale: parameters.scale, into: queryGradient, keeping: 0)
          queryGradient.setHead(head, ofRowsFrom: first, of: results[0])
          backend.scale(query, by: parameters.scale)
          backend.accumulateCrossProduct(slopes, query, into: keyGradient)
        }
        keyGradient.setHead(shared, ofRowsFrom: first, of: results[1])
        valueGradient.setHead(shared, ofRowsFrom: first, of: results[2])
      }
    }
    return (results[0], results[1], results[2])
  }

  /// Scores become probabilities, and their gradients those of q·k, scaled.
  private func takeProbabilities(_ scores: Matrix, _ gradients: Matrix, head: Int) {
    let length = parameters.sequenceLength
    let rows = (0..<length).parts(of: 32)
    ThreadTeam(threads: backend.threads).run(chunks: rows.count) { part in
      for row in rows[part] {
        let score = unsafe scores.pointer + row * length
        let gradient = unsafe gradients.pointer + row * length
        let first = parameters.window.map { max(0, row + 1 - $0) } ?? 0
        for key in 0..<length where key < first || key > row { unsafe (score[key], gradient[key]) = (0, 0) }
        // Of the cap, 1 − (s / cap)² for the capped score s.
        var bends: [Float] = []
        if let cap = parameters.softcap {
          bends = [Float](repeating: 0, count: length)
          for key in first...row {
            let bent = unsafe tanh(score[key] / cap)
            bends[key] = 1 - bent * bent
            unsafe score[key] = cap * bent
          }
        }
        if let bias = parameters.positionBias {
          for key in first...row { unsafe score[key] += bias.pointer[head * length + key] }
        }
        let sink = parameters.sinks?[head]
        var largest = sink ?? -.infinity
        for key in first...row { largest = unsafe max(largest, score[key]) }
        var sum: Float = sink.map { exp($0 - largest) } ?? 0
        for key in first...row {
          unsafe score[key] = exp(score[key] - largest)
          sum += unsafe score[key]
        }
        var mean: Float = 0
        for key in first...row {
          unsafe score[key] /= sum
          mean += unsafe score[key] * gradient[key]
        }
        for key in first...row {
          unsafe gradient[key] = score[key] * (gradient[key] - mean) * (bends.isEmpty ? 1 : bends[key])
        }
      }
    }
  }
}

extension Matrix {
  /// Takes a head, as wide as this matrix, of as many rows as this has.
  fileprivate func copyHead(_ head: Int, ofRowsFrom first: Int, of states: Matrix) {
    for row in 0..<rows {
      unsafe (pointer + row * columns).update(
        from: states.pointer + (first + row) * states.columns + head * columns, count: columns)
    }
  }

  fileprivate func setHead(_ head: Int, ofRowsFrom first: Int, of states: Matrix) {
    for row in 0..<rows {
      unsafe (states.pointer + (first + row) * states.columns + head * columns).update(
        from: pointer + row * columns, count: columns)
    }
  }
}
