import Compute
import Decoder
import SystemIO
import Tensors

/// What a mixture makes of every token of a stream, one expert after the other.
final class MixtureOutput {
  var tokens: MixtureTokens
  /// The sum of what the experts make of them, `[tokens, hiddenSize]`, in the host's memory.
  let sums: Matrix

  /// - Parameter directory: where the file is that holds both
  init(tokens: Int, hiddenSize: Int, experts: Int, directory: String) throws {
    let both = Matrix(
      rows: 2 * tokens, columns: hiddenSize,
      memory: ScratchMemory(
        try ScratchMapping(
          directory: directory, byteCount: max(1, 2 * tokens * hiddenSize) * MemoryLayout<Float>.stride)))
    self.tokens = MixtureTokens(inputs: both.rows(0..<tokens), routing: Routing(experts: experts))
    sums = both.rows(tokens..<2 * tokens)
  }
}

/// What a mixture's experts read, and who reads what.
struct MixtureTokens {
  /// `[tokens, hiddenSize]`, in the host's memory.
  let inputs: Matrix
  var routing: Routing

  /// Tokens that an expert is run on at a time.
  private static let chunkTokens = 4_096

  static func chunks(of tokens: Int) -> [Range<Int>] {
    (0..<tokens).parts(of: chunkTokens)
  }

  /// Lends the rows that an expert reads, some at a time.
  /// - Parameter body: gets `[count, hiddenSize]`, and which of the share's tokens they are
  func forEachChunk(
    of share: Routing.Share, _ expert: Stage.Expert, _ layer: DecoderLayer, _ backend: any ComputeBackend,
    _ body: (_ rows: Matrix, _ range: Range<Int>) -> Void
  ) {
    for range in Self.chunks(of: share.tokens.count) {
      let rows = layer.expertInput(rows: range.count)
      backend.withHostMatrix(rows, for: .writing) { $0.gather(share.tokens[range], from: inputs) }
      layer.prepare(rows, for: expert, factors: share.factors[range])
      body(rows, range)
    }
  }
}

/// A matrix in a file without a name.
private final class ScratchMemory: MatrixMemory {
  private let mapping: ScratchMapping

  init(_ mapping: ScratchMapping) { self.mapping = mapping }

  @unsafe var pointer: UnsafeMutablePointer<Float> {
    unsafe mapping.start.assumingMemoryBound(to: Float.self)
  }
}
