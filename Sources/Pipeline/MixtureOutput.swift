import Decoder
import SystemIO
import Tensors

/// What a mixture makes of every token of a stream, one expert after the other.
final class MixtureOutput {
  /// What the experts read, `[tokens, hiddenSize]`, and the sum of what they make of it; in the host's memory.
  let inputs: Matrix
  let sums: Matrix
  var routing: Routing

  /// - Parameter directory: where the file is that holds both
  init(tokens: Int, hiddenSize: Int, experts: Int, directory: String) throws {
    let both = Matrix(
      rows: 2 * tokens, columns: hiddenSize,
      memory: ScratchMemory(
        try ScratchMapping(
          directory: directory, byteCount: max(1, 2 * tokens * hiddenSize) * MemoryLayout<Float>.stride)))
    inputs = both.rows(0..<tokens)
    sums = both.rows(tokens..<2 * tokens)
    routing = Routing(experts: experts)
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
