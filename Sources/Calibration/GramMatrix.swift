import Compute
import Tensors

/// Σ = X Xᵀ over the calibration inputs X of the linears of one stage, `[inFeatures, inFeatures]`, fp32, in the lower
/// triangle.
public final class GramMatrix {
  public let values: Matrix
  /// Inputs added so far.
  public private(set) var tokens = 0
  /// All tiles, and those that are added up here.
  public let tiles: [GramTile]
  private let ownTiles: [GramTile]
  private let operands: OperandType
  private let backend: any ComputeBackend

  /// - Parameters:
  ///   - operands: what inputs are rounded to
  ///   - owns: whether a tile, by its number, is added up here
  public init(
    inFeatures: Int, operands: OperandType = .float32, backend: any ComputeBackend,
    owning owns: (Int) -> Bool = { _ in true }
  ) {
    self.operands = operands
    self.backend = backend
    values = backend.makeMatrix(rows: inFeatures, columns: inFeatures)
    tiles = backend.gramTiles(order: inFeatures, operands: operands)
    ownTiles = tiles.indices.filter(owns).map { [tiles] in tiles[$0] }
  }

  /// Adds a batch of inputs.
  /// - Parameter inputs: `[tokens, inFeatures]`
  public func accumulate(_ inputs: Matrix) {
    backend.accumulateGram(inputs, operands: operands, into: values, tiles: ownTiles)
    tokens += inputs.rows
  }
}
