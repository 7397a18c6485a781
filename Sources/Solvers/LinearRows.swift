import Compute
import Tensors

/// A linear's weights W, `[outFeatures, inFeatures]`, as solvers take them: some rows at a time, as often as they need them.
///
/// So a solver holds no more of them in fp32 than a panel, where they are read from a file.
public struct LinearRows {
  public let outFeatures: Int
  public let inFeatures: Int
  private let read: (Range<Int>) throws -> Matrix

  /// - Parameter read: makes a matrix of some rows, in the backend's memory, which it then has no more to do with
  public init(outFeatures: Int, inFeatures: Int, read: @escaping (Range<Int>) throws -> Matrix) {
    self.outFeatures = outFeatures
    self.inFeatures = inFeatures
    self.read = read
  }

  /// Those of a matrix in the backend's memory.
  public init(_ weights: Matrix, backend: any ComputeBackend) {
    self.init(outFeatures: weights.rows, inFeatures: weights.columns) { backend.copy(of: weights.rows($0)) }
  }

  /// Some rows, to be written to.
  public func rows(_ range: Range<Int>) throws -> Matrix { try read(range) }

  /// The row ranges of panels of at most `rows` rows.
  public func panels(of rows: Int) -> [Range<Int>] { (0..<outFeatures).parts(of: rows) }
}
