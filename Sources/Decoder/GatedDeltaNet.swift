import Checkpoint
import Compute
import Glibc
import Tensors

/// Linear attention by the gated delta rule; names are relative to the layer's prefix.
struct GatedDeltaNetDescription: Sendable {
  let keyHeads: Int
  let valueHeads: Int
  let keyDimension: Int
  let valueDimension: Int
  /// Tokens that the convolution is over.
  let taps: Int
  let epsilon: Float

  /// Whether one matrix has queries, keys, values and output gates, key head by key head.
  var isFused = false
  /// Whether one has gates and decays, key head by key head.
  var hasFusedGates = false
  /// What llama.cpp's converter has changed: see ``ConfigurationReader/ggufLayout(_:)``.
  var isTiled = false
  var hasDecays = false

  let mixed = "linear_attn.in_proj_qkv"
  let outputGate = "linear_attn.in_proj_z"
  let fused = "linear_attn.in_proj_qkvz"
  let output = "linear_attn.out_proj"
  /// Linears of one output for every value head, which stay as they are.
  let decay = "linear_attn.in_proj_a"
  let gate = "linear_attn.in_proj_b"
  let fusedGates = "linear_attn.in_proj_ba"
  let convolution = "linear_attn.conv1d.weight"
  let decayLogarithms = "linear_attn.A_log"
  let decayBiases = "linear_attn.dt_bias"
  let norm = "linear_attn.norm"

  var keyFeatures: Int { keyHeads * keyDimension }
  var valueFeatures: Int { valueHeads * valueDimension }
  var channels: Int { 2 * keyFeatures + valueFeatures }

  var convolutionShape: [Int] { hasDecays ? [channels, taps] : [channels, 1, taps] }

  /// The linears that are quantized, before the output.
  func linears(hiddenSize: Int) -> [LayerLinear] {
    let outputs =
      isFused ? [(fused, channels + valueFeatures)] : [(mixed, channels), (outputGate, valueFeatures)]
    return outputs.map { LayerLinear(name: $0, outFeatures: $1, inFeatures: hiddenSize, hasBias: false) }
  }

  /// The others.
  func keptLinears(hiddenSize: Int) -> [LayerLinear] {
    let outputs = hasFusedGates ? [(fusedGates, 2 * valueHeads)] : [(decay, valueHeads), (gate, valueHeads)]
    return outputs.map { LayerLinear(name: $0, outFeatures: $1, inFeatures: hiddenSize, hasBias: false) }
  }

  /// The rows of the fused matrix that are queries, keys and values, and those that are output gates.
  var fusedRows: [[Range<Int>]] {
    let values = valueFeatures / keyHeads
    let size = 2 * keyDimension + 2 * values
    func part(_ start: Int, _ count: Int) -> [Range<Int>] {
      (0..<keyHeads).map { $0 * size + start..<$0 * size + start + count }
    }
    let mixed =
      part(0, keyDimension) + part(keyDimension, keyDimension) + part(2 * keyDimension, values)
    return [mixed, part(2 * keyDimension + values, values)]
  }
}

/// What a layer of linear attention has beside its quantized linears, resident in fp32.
struct GatedDeltaNet {
  let description: GatedDeltaNetDescription
  private let backend: any DecoderOperations
  private let decay: Matrix
  private let gate: Matrix
  /// `[taps, channels]`
  private let convolution: [Float]
  private let decayLogarithms: [Float]
  private let decayBiases: [Float]
  private let norm: NormalizationParameters

  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  init(
    _ description: GatedDeltaNetDescription, prefix: String, hiddenSize: Int, source: any WeightSource,
    backend: any DecoderOperations
  ) throws {
    self.description = description
    self.backend = backend
    func rows(_ name: String, _ count: Int) throws -> Matrix {
      try source.matrix("\(prefix)\(name).weight", shape: [count, hiddenSize])
    }
    if description.hasFusedGates {
      // Of every key head the gates of its value heads and then their decays.
      let heads = description.valueHeads / description.keyHeads
      let fused = try rows(description.fusedGates, 2 * description.valueHeads)
      func part(_ offset: Int) -> Matrix {
        let part = Matrix(rows: description.valueHeads, columns: hiddenSize)
        let places = (0..<description.valueHeads).map { ($0 / heads * 2 + offset) * heads + $0 % heads }
        part.gather(places[...], from: fused)
        return backend.upload(part)
      }
      (gate, decay) = (part(0), part(1))
    } else {
      decay = backend.upload(try rows(description.decay, description.valueHeads))
      gate = backend.upload(try rows(description.gate, description.valueHeads))
    }
    let (channels, taps) = (description.channels, description.taps)
    let weights = try source.matrix(
      "\(prefix)\(description.convolution)", shape: description.convolutionShape
    ).elements
    convolution = (0..<taps * channels).map { weights[$0 % channels * taps + $0 / channels] }
    let decays = try source.vector(
      "\(prefix)\(description.decayLogarithms)", count: description.valueHeads)
    decayLogarithms = description.hasDecays ? decays.map { log(-$0) } : decays
    decayBiases = try source.vector("\(prefix)\(description.decayBiases)", count: description.valueHeads)
    norm = try source.norm(
      .rootMeanSquare(description.norm, epsilon: description.epsilon), prefix: prefix,
      size: description.valueDimension)
  }

  /// Gathers and normalizes every value head.
  /// - Parameters:
  ///   - input: what the layer's linears read
  ///   - mixed: what the linear for queries, keys and values made of it; overwritten
  ///   - decays: of the shape `[tokens, valueHeads]`, overwritten, and so are `gates`
  func run(
    _ input: Matrix, mixed: Matrix, decays: Matrix, gates: Matrix, sequenceLength: Int, into context: Matrix
  ) {
    backend.linear(input, weights: decay, into: decays)
    backend.linear(input, weights: gate, into: gates)
    let parameters = GatedDeltaParameters(
      keyHeads: description.keyHeads, valueHeads: description.valueHeads,
      keyDimension: description.keyDimension, valueDimension: description.valueDimension,
      sequenceLength: sequenceLength, convolution: convolution, taps: description.taps,
      decayLogarithms: decayLogarithms, decayBiases: decayBiases, areValueHeadsTiled: description.isTiled)
    backend.attendLinearly(mixed, decays: decays, gates: gates, parameters, into: context)
    let heads = context.reshaped(
      rows: context.count / description.valueDimension, columns: description.valueDimension)
    backend.normalize(heads, norm, into: heads)
  }
}
