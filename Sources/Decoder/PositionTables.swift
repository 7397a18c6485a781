import Compute
import Tensors

/// The tables that the position embeddings of a model need, for one sequence length.
struct PositionTables: Sendable {
  typealias Table = (rotary: RotaryTable?, alibi: Matrix?)

  private var tables: [AttentionDescription.Positions: Table] = [:]

  init(_ layers: [LayerDescription], sequenceLength: Int, backend: any DecoderOperations) {
    for attention in layers.map(\.attention) where tables[attention.positions] == nil {
      switch attention.positions {
      case .none: tables[.none] = (nil, nil)
      case .rotary(let embedding):
        tables[attention.positions] = (
          embedding.table(sequenceLength: sequenceLength, backend: backend), nil
        )
      case .alibi(let slopes):
        let bias = slopes.bias(sequenceLength: sequenceLength, scoreScale: attention.scoreScale)
        tables[attention.positions] = (nil, backend.upload(bias))
      }
    }
  }

  subscript(positions: AttentionDescription.Positions) -> Table { tables[positions] ?? (nil, nil) }
}
