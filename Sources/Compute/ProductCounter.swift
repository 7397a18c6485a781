import Synchronization

/// Counts the multiplications, each with an addition, of the dense operations whose number follows from shapes; tests compare
/// what ranks share with formulas by it. How long solvers descend depends on values.
public final class ProductCounter: Sendable {
  public enum Kind: Sendable, CaseIterable {
    /// Linears of the forward pass.
    case linear
    /// Sums of Gram matrices, a triangle each.
    case gram
    /// Sums of AᵀB.
    case crossProduct
    /// Cholesky factors, n³ / 6 each.
    case factor
    /// Rows solved with one, n² each.
    case solution
  }

  private let counts = Mutex<[Kind: Int]>([:])

  public init() {}

  public var values: [Kind: Int] { counts.withLock { $0 } }

  public func add(_ kind: Kind, _ count: Int) {
    counts.withLock { $0[kind, default: 0] += count }
  }

  /// Of a Cholesky factor.
  public static func factor(order: Int) -> Int { order * order * order / 6 }
}

extension GramTile {
  /// The elements that a batch is added to: on the diagonal those of a triangle.
  public var products: Int {
    rows == columns ? rows.count * (rows.count + 1) / 2 : rows.count * columns.count
  }
}
