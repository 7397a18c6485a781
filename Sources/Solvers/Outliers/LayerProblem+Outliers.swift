import Compute
import Tensors

extension LayerProblem {
  /// The largest eigenvalue of Σ + ρI, or a little more, by power iteration.
  func largestEigenvalue(backend: any ComputeBackend) -> Double {
    var vector = backend.makeMatrix(rows: 1, columns: inFeatures)
    backend.fill(vector, with: Float(1 / Double(max(inFeatures, 1)).squareRoot()))
    var image = backend.makeMatrix(rows: 1, columns: inFeatures)
    var eigenvalue = 0.0
    for _ in 0..<100 {
      backend.multiply(vector, gram, transposingB: false, scale: 1, into: image, keeping: 0)
      let norm = backend.rowDots(image, image)[0].squareRoot()
      guard norm > 0 else { break }
      backend.withHostMatrix(image, for: .changing) { host in
        host.withMutableSpan { span in
          for index in 0..<span.count { span[index] = Float(Double(span[index]) / norm) }
        }
      }
      swap(&vector, &image)
      let isSettled = abs(norm - eigenvalue) <= 1e-6 * norm
      eigenvalue = norm
      if isSettled { break }
    }
    // The iteration comes from below, and a step computed with too small a value could raise the objective.
    return 1.01 * eigenvalue
  }
}
