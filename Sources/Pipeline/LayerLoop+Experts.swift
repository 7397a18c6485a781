import Collective
import Compute
import Decoder
import Tensors

/// What an expert makes of the tokens of this rank's batches, chunk by chunk.
typealias ExpertRows = [Matrix]

// Each rank quantizes the experts that are its own and runs them on all of their tokens; what they make of these goes to the
// ranks that the tokens' batches are with, who add it up in the experts' order, as one machine would.
extension LayerLoop {
  /// Runs an expert of this rank, all of which is loaded, and sends each other rank what it makes of that one's tokens. Alone,
  /// it is added at once.
  /// - Returns: what it makes of this rank's tokens
  func make(
    _ expert: Stage.Expert, _ index: Int, _ position: Position, _ layer: DecoderLayer,
    _ output: MixtureOutput,
    _ stream: Stream
  ) -> ExpertRows {
    if ranks.isAlone {
      add(expert, index, layer, to: output)
      return []
    }
    return times.measure(.forward) {
      let share = output.tokens.routing.shares[index]
      var own: ExpertRows = []
      forEachOutput(of: expert, share, layer, output) { made, range in
        backend.withHostMatrix(made, for: .reading) { host in
          for rank in 0..<ranks.count {
            let places = places(of: share, range, on: rank)
            guard !places.isEmpty else { continue }
            let rows = Matrix(uninitializedRows: places.count, columns: host.columns)
            rows.gather(places.map { $0 - range.lowerBound }[...], from: host)
            if rank == ranks.rank {
              own.append(rows)
            } else {
              ranks.post(rows.message(as: .float32), outputLabel(index, position, stream), to: rank)
            }
          }
        }
      }
      return own
    }
  }

  /// Adds what an expert of any rank has made of this rank's tokens.
  /// - Parameter own: if it is this rank's; nothing is left to do alone
  func add(
    _ own: ExpertRows?, of expert: Stage.Expert, _ index: Int, _ position: Position, _ layer: DecoderLayer,
    _ stream: Stream, to output: MixtureOutput
  ) throws {
    if ranks.isAlone { return }
    let share = output.tokens.routing.shares[index]
    let source = ranks.owner(of: index)
    normalizeRouted(before: expert, layer, output)
    var own = source == ranks.rank ? own?[...] : nil
    for range in MixtureTokens.chunks(of: share.tokens.count) {
      let places = places(of: share, range, on: ranks.rank)
      guard !places.isEmpty else { continue }
      let rows =
        try own?.popFirst()
        ?? receive(
          nil, outputLabel(index, position, stream), from: source, rows: places.count,
          columns: position.stage.hiddenSize, .float32)
      let part = Routing.Share(
        tokens: places.map { share.tokens[$0] }, factors: places.map { share.factors[$0] })
      layer.add(rows, of: expert, part, 0..<places.count, to: output.sums)
    }
  }

  /// Those of an expert's tokens whose batches are with a rank, by their places among all.
  private func places(of share: Routing.Share, _ range: Range<Int>, on rank: Int) -> [Int] {
    range.filter { sequenceOwners[share.tokens[$0] / calibration.sequenceLength] == rank }
  }

  private func outputLabel(_ index: Int, _ position: Position, _ stream: Stream) -> MessageLabel {
    label(.output, of: position, 2 * index + (stream === quantized ? 0 : 1))
  }
}
