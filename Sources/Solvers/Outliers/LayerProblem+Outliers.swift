import Compute
import Tensors

extension LayerProblem {
  /// The factor for nearest-plane rounding in which given columns are rounded last, so that they make up for
  /// the errors of all others.
  /// - Throws: ``SolverError/notPositiveDefinite(ridge:)``
  func factor(
    roundingLast columns: [Int32], backend: any ComputeBackend
  ) throws(SolverError) -> NearestPlaneFactor {
    // The factorisation takes the smallest pivot first. For D (Σ + ρI) D with a small D at those columns that
    // is one of them as long as there is one, and D⁻¹ times its factor is the factor wanted. D is a power of
    // two: it costs no digits.
    let diagonal = (0..<inFeatures).map { gram[$0, $0] }
    let largest = columns.map { diagonal[Int($0)] }.max() ?? 0
    let least = ridge > 0 ? ridge : diagonal.filter { $0 > 0 }.min() ?? 1
    let exponent = (largest / least * Float(inFeatures)).exponent / 2 + 2
    let shrink = Float(sign: .plus, exponent: -max(exponent, 1), significand: 1)
    var factors = [Float](repeating: 1, count: inFeatures)
    for column in columns { factors[Int(column)] = shrink }

    let factor = gram.copy()
    for row in 0..<inFeatures {
      factor.rows(row..<row + 1).withMutableSpan { span in
        for column in 0..<inFeatures { span[column] *= factors[row] * factors[column] }
        // A dead column's place makes no difference; a unit diagonal keeps the factor defined.
        if span[row] == 0 { span[row] = 1 }
      }
    }
    let order: [Int]
    do { order = try backend.factorizePivotedCholesky(factor) } catch {
      throw .notPositiveDefinite(ridge: ridge)
    }
    for row in 0..<inFeatures {
      factor.rows(row..<row + 1).withMutableSpan { span in
        for column in row..<inFeatures { span[column] /= factors[order[column]] }
      }
    }
    return NearestPlaneFactor(order: order, factor: factor)
  }

  /// The largest eigenvalue of Σ + ρI, or a little more, by power iteration.
  func largestEigenvalue(backend: any ComputeBackend) -> Double {
    var vector = Matrix(rows: 1, columns: inFeatures)
    vector.fill(Float(1 / Double(max(inFeatures, 1)).squareRoot()))
    var image = Matrix(rows: 1, columns: inFeatures)
    var eigenvalue = 0.0
    for _ in 0..<100 {
      backend.multiply(vector, gram, transposingB: false, scale: 1, into: image, keeping: 0)
      let norm = backend.rowDots(image, image)[0].squareRoot()
      guard norm > 0 else { break }
      image.withMutableSpan { span in
        for index in 0..<span.count { span[index] = Float(Double(span[index]) / norm) }
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
