import Compute
import Tensors

/// How many tokens from all over stand beside an expert's own ones in its Gram matrix.
///
/// Of a mean of own tokens' xxᵀ and a prior T, that with λ tokens of the prior comes closest to the expert's true mean Σ
/// for which λ = (E‖x‖⁴ − ‖Σ‖²) / ‖Σ − T‖², however many own ones there are (the shrinkage of Ledoit and Wolf, 2004): many where
/// the expert's tokens are like all others, few where it has specialized. Columns are measured in units of the prior's, as
/// a few large ones would decide alone otherwise. A first half is hurt more by directions that it has seen too little of than
/// that distance says, so its λ is taken some times over; docs/SOLVER.md has what that was measured by.
struct ExpertPrior {
  /// Tokens of each kind that are looked at.
  static let sampleTokens = 512
  /// Times that λ is taken for an expert's first half, and for its second.
  static let strengths = (expansion: 4.0, contraction: 0.25)
  /// Own tokens that say something.
  private static let fewest = 8

  let backend: any ComputeBackend

  /// Places of about ``sampleTokens`` of `count` things, evenly spread.
  static func sample(of count: Int) -> [Int] {
    let size = min(count, sampleTokens)
    return (0..<size).map { $0 * count / size }
  }

  /// - Parameters:
  ///   - strength: times that λ is taken
  ///   - own: some of the expert's tokens, `[count, width]`, as they are summed up; overwritten
  ///   - others: tokens from all over, as they stand for the prior; overwritten
  /// - Returns: from 0 to `most`
  func tokens(own: Matrix, others: Matrix, times strength: Double, upTo most: Double) -> Double {
    guard own.rows >= Self.fewest, others.rows >= Self.fewest else { return most }
    normalize(own, others)
    let (mine, mixed, theirs) = (products(own, own), products(own, others), products(others, others))
    let squares = mine.ofRows / Double(own.rows)
    let inner = mine.ofPairs / Double(own.rows * (own.rows - 1))
    let distance =
      inner + theirs.ofPairs / Double(others.rows * (others.rows - 1))
      - 2 * (mixed.ofRows + mixed.ofPairs) / Double(own.rows * others.rows)
    // What is nearer than its own sample can tell is as good as the same.
    guard distance > 0, squares > inner else { return most }
    return min(most, strength * (squares - inner) / distance)
  }

  /// Divides the columns by the roots of the others' mean squares.
  private func normalize(_ own: Matrix, _ others: Matrix) {
    var energies = [Double](repeating: 0, count: others.columns)
    backend.withHostMatrix(others, for: .reading) { host in
      host.withSpan { span in
        for row in 0..<host.rows {
          for column in 0..<host.columns {
            let value = span[row * host.columns + column]
            energies[column] += Double(value * value)
          }
        }
      }
    }
    let factors = energies.map { $0 > 0 ? Float((Double(others.rows) / $0).squareRoot()) : 0 }
    for matrix in [own, others] {
      backend.withHostMatrix(matrix, for: .changing) { host in
        host.withMutableSpan { span in
          for row in 0..<host.rows {
            for column in factors.indices { span[row * factors.count + column] *= factors[column] }
          }
        }
      }
    }
  }

  /// The sums of the squares of all inner products: of rows of the same number, and of others.
  private func products(_ a: Matrix, _ b: Matrix) -> (ofRows: Double, ofPairs: Double) {
    let kernel = backend.makeMatrix(rows: a.rows, columns: b.rows)
    backend.multiply(a, b, transposingB: true, scale: 1, into: kernel, keeping: 0)
    var sums = (ofRows: 0.0, ofPairs: 0.0)
    backend.withHostMatrix(kernel, for: .reading) { host in
      host.withSpan { span in
        for row in 0..<host.rows {
          var sum: Float = 0
          for column in 0..<host.columns {
            let value = span[row * host.columns + column]
            sum += value * value
          }
          let own = row < host.columns ? span[row * host.columns + row] : 0
          sums.ofRows += Double(own * own)
          sums.ofPairs += Double(sum) - Double(own * own)
        }
      }
    }
    return sums
  }
}
