import CKernels
import Compute
import Tensors

extension OpenBLASBackend {
  public func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix
  ) {
    parameters.checkShapes(mixed, decays, gates, outputs)
    let length = parameters.sequenceLength
    let sequences = mixed.rows / length
    convolve(mixed, sequences: sequences, parameters)
    let heads = parameters.valueHeads
    let (keys, values) = (parameters.keyDimension, parameters.valueDimension)
    let factors = Matrix(rows: mixed.rows, columns: heads)
    let betas = Matrix(rows: mixed.rows, columns: heads)
    let scratch = { Matrix(rows: keys + 1, columns: values) }
    team.run(chunks: sequences * heads, scratch: scratch) { chunk, state in
      let (sequence, head) = chunk.quotientAndRemainder(dividingBy: heads)
      let first = sequence * length
      for token in first..<first + length {
        factors[token, head] = parameters.decay(decays[token, head], head: head)
        betas[token, head] = parameters.gate(gates[token, head])
      }
      let rows = unsafe mixed.pointer + first * mixed.columns
      let query = parameters.keyHead(ofValueHead: head) * keys
      unsafe qe_gated_delta_rule(
        rows + query, rows + parameters.keyFeatures + query,
        rows + 2 * parameters.keyFeatures + head * values, mixed.columns,
        factors.pointer + first * heads + head, betas.pointer + first * heads + head, heads, length, keys,
        values, state.pointer, outputs.pointer + first * outputs.columns + head * values, outputs.columns)
    }
  }

  private func convolve(_ mixed: Matrix, sequences: Int, _ parameters: GatedDeltaParameters) {
    let blocks = Division(mixed.columns, blocksOfAtMost: 256, multipleOf: 16)
    let taps = parameters.taps
    let scratch = { Matrix(rows: 2 * taps, columns: blocks.size) }
    team.run(chunks: sequences * blocks.count, scratch: scratch) { chunk, scratch in
      let (sequence, block) = chunk.quotientAndRemainder(dividingBy: blocks.count)
      let channels = blocks[block]
      // The weights of these channels, without gaps, and then the kernel's own.
      for tap in 0..<taps {
        for (index, channel) in channels.enumerated() {
          unsafe scratch.pointer[tap * channels.count + index] =
            parameters.convolution[tap * mixed.columns + channel]
        }
      }
      let first = sequence * parameters.sequenceLength * mixed.columns + channels.lowerBound
      unsafe qe_causal_convolution(
        mixed.pointer + first, parameters.sequenceLength, channels.count, mixed.columns, scratch.pointer,
        taps,
        scratch.pointer + taps * channels.count)
    }
  }
}
