import Compute
import Foundation
import Tensors

extension ActivationFunction {
  /// The function's value, and its derivative.
  @inline(__always) func derivative(_ x: Float) -> (value: Float, slope: Float) {
    switch self {
    case .relu: return x > 0 ? (x, 1) : (0, 0)
    case .reluSquared: return x > 0 ? (x * x, 2 * x) : (0, 0)
    case .sigmoid:
      let s = 1 / (1 + exp(-x))
      return (s, s * (1 - s))
    case .silu:
      let s = 1 / (1 + exp(-x))
      return (x * s, s * (1 + x * (1 - s)))
    case .gelu:
      let share = 0.5 * erfc(-x * Float(0.5).squareRoot())
      return (x * share, share + x * exp(-x * x / 2) / (2 * Float.pi).squareRoot())
    case .geluTanh:
      let factor = (2 / Float.pi).squareRoot()
      let t = tanh(factor * (x + 0.044715 * x * x * x))
      return (
        0.5 * x * (1 + t),
        0.5 * (1 + t) + 0.5 * x * (1 - t * t) * factor * (1 + 3 * 0.044715 * x * x)
      )
    }
  }
}

extension NormalizationParameters {
  /// The gradients of what was normalized, and of the weight.
  /// - Parameters:
  ///   - gradient: of the outputs
  ///   - inputs: as they were
  func gradients(
    _ gradient: Matrix, inputs: Matrix, by team: ThreadTeam
  ) -> (inputs: Matrix, weight: [Double]) {
    let columns = inputs.columns
    let groups = groups(of: inputs)
    let result = Matrix(rows: inputs.rows, columns: columns)
    // The weight's are added up by parts of rows that do not depend on threads, and in their order.
    let parts = (0..<inputs.rows).parts(of: max(groups, 64 / groups * groups))
    let sums = parts.map { _ in Matrix(rows: groups, columns: columns) }
    team.run(chunks: parts.count) { part in
      for row in parts[part] {
        let group = row % groups
        unsafe addGradients(
          of: inputs.pointer + row * columns, gradient.pointer + row * columns, count: columns,
          weight: group * columns, into: result.pointer + row * columns,
          sums[part].pointer + group * columns)
      }
    }
    var weight = [Double](repeating: 0, count: groups * columns)
    for sum in sums {
      sum.withSpan { span in
        for index in weight.indices { weight[index] += Double(span[index]) }
      }
    }
    return (result, weight)
  }

  private func addGradients(
    of x: UnsafePointer<Float>, _ gradient: UnsafePointer<Float>, count: Int, weight first: Int,
    into result: UnsafeMutablePointer<Float>, _ sum: UnsafeMutablePointer<Float>
  ) {
    let size = Double(count)
    var mean = 0.0
    if kind == .layer { for index in 0..<count { mean += unsafe Double(x[index]) / size } }
    var spread = 0.0
    for index in 0..<count {
      let centered = unsafe Double(x[index]) - mean
      spread += centered * centered
    }
    let factor = Float(1 / (spread / size + Double(epsilon)).squareRoot())
    let center = Float(mean)
    var (slope, shift) = (0.0, 0.0)
    for index in 0..<count {
      let normal = unsafe (x[index] - center) * factor
      let own = unsafe gradient[index] * weight[first + index]
      slope += Double(own * normal)
      shift += Double(own)
      unsafe sum[index] += gradient[index] * normal
    }
    let meanSlope = Float(slope / size)
    let meanShift = kind == .layer ? Float(shift / size) : 0
    for index in 0..<count {
      let normal = unsafe (x[index] - center) * factor
      unsafe result[index] =
        factor * (gradient[index] * weight[first + index] - meanShift - normal * meanSlope)
    }
  }
}
