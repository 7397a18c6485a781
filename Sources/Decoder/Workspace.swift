import Compute
import Tensors

/// Buffers for intermediate results, kept from one batch to the next: fresh memory would cost a page
/// fault for every 4 KiB, more than many of the operations that fill it.
///
/// Not for concurrent use: a workspace belongs to one forward pass at a time.
final class Workspace {
  enum Role: Hashable {
    case normalized, queries, keys, values, context, gate, up, blockOutput, expertInput, expertOutput,
      attentionGate, queryLatents, latents, rotaryKeys, embeddings,
      projected, headInput,
      logits
  }

  private let backend: any DecoderOperations
  private var buffers: [Role: Matrix] = [:]

  init(backend: any DecoderOperations) { self.backend = backend }

  /// A matrix of this shape over the role's buffer; what it holds is left over from earlier use.
  func matrix(_ role: Role, rows: Int, columns: Int) -> Matrix {
    let count = rows * columns
    if buffers[role].map({ $0.count < count }) ?? true {
      buffers[role] = backend.makeMatrix(rows: 1, columns: count)
    }
    guard let buffer = buffers[role] else { preconditionFailure("the buffer was made above") }
    return buffer.prefix(rows: rows, columns: columns)
  }
}
