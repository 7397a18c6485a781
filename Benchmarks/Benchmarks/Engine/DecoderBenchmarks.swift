import Checkpoint
import Compute
import Decoder
import Tensors

/// The shapes of SmolLM2-135M.
private enum SmolLM2 {
  static let hiddenSize = 576
  static let intermediateSize = 1_536
  static let heads = 9
  static let keyValueHeads = 3
  static let headDimension = 64

  static let contextFeatures = heads * headDimension
  static let keyFeatures = keyValueHeads * headDimension

  static let configuration: JSONValue = [
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": .integer(hiddenSize),
    "intermediate_size": .integer(intermediateSize), "num_hidden_layers": 1,
    "num_attention_heads": .integer(heads), "num_key_value_heads": .integer(keyValueHeads),
    "head_dim": .integer(headDimension),
    "max_position_embeddings": 8_192, "rms_norm_eps": 1e-5, "rope_theta": 100_000,
    "tie_word_embeddings": true,
  ]
}

private let tokens = 4_096

extension Suite {
  func addProducts() {
    // Against itself: how far a ratio moves when nothing is different.
    add("sgemm.2048x2048x2048", .operations(Yardstick.operations)) {
      let yardstick = Yardstick(threads: threads)
      return Trial { yardstick.multiply() }
    }
  }

  func addDecoder() {
    let shapes = [
      (SmolLM2.hiddenSize, SmolLM2.contextFeatures), (SmolLM2.hiddenSize, SmolLM2.keyFeatures),
      (SmolLM2.hiddenSize, SmolLM2.intermediateSize), (SmolLM2.intermediateSize, SmolLM2.hiddenSize),
    ]
    for (inFeatures, outFeatures) in shapes {
      let operations = 2 * Double(tokens) * Double(inFeatures) * Double(outFeatures)
      for operands in operandTypes {
        add("linear.\(inFeatures)-to-\(outFeatures)\(operands.suffix)", .operations(operations)) {
          var noise = Noise(seed: 2)
          let inputs = noise.matrix(rows: tokens, columns: inFeatures)
          let weights = backend.makeWeights(
            outFeatures: outFeatures, inFeatures: inFeatures, operands: operands)
          backend.store(noise.matrix(rows: outFeatures, columns: inFeatures), firstRow: 0, in: weights)
          let outputs = Matrix(rows: tokens, columns: outFeatures)
          return Trial { backend.linear(inputs, [LinearProduct(weights, into: outputs)]) }
        }
      }
    }
    for operands in operandTypes {
      for (sequences, length) in [(8, 512), (2, 2_048)] {
        addLayer(sequences: sequences, length: length, operands)
      }
    }
  }

  /// fp32, and bfloat16 where the processor is fast at it.
  private var operandTypes: [OperandType] {
    backend.operandType(for: .bfloat16) == .bfloat16 ? [.float32, .bfloat16] : [.float32]
  }

  private func addLayer(sequences: Int, length: Int, _ operands: OperandType) {
    let tokens = sequences * length
    let (hidden, context, key) = (SmolLM2.hiddenSize, SmolLM2.contextFeatures, SmolLM2.keyFeatures)
    let parameters = hidden * (2 * context + 2 * key + 3 * SmolLM2.intermediateSize)
    // Half of the scores and half of the weighted sums lie before the mask: 2 · tokens · length · context.
    let operations = 2 * Double(tokens) * Double(parameters + length * context)
    add("layer.\(sequences)x\(length)-tokens\(operands.suffix)", .operations(operations)) {
      let description = try ModelDescription(configuration: SmolLM2.configuration) { _ in true }
      let model = try DecoderModel(
        description, source: RandomWeights(), backend: backend, sequenceLength: length, operands: operands)
      let layer = try model.layer(0)
      var noise = Noise(seed: 3)
      let inputs = noise.matrix(rows: tokens, columns: hidden)
      let states = Matrix(rows: tokens, columns: hidden)
      return Trial(
        reset: { states.copy(from: inputs) }, run: { layer.run(states, sequenceLength: length) })
    }
  }

  func addGramMatrices() {
    for width in [576, 1_536, 4_096] {
      // One triangle: a multiplication and an addition for every pair of features.
      let operations = Double(tokens) * Double(width) * Double(width)
      for operands in operandTypes {
        add("gram.\(width)-wide\(operands.suffix)", .operations(operations)) {
          var noise = Noise(seed: 4)
          let inputs = noise.matrix(rows: tokens, columns: width)
          let gram = Matrix(rows: width, columns: width)
          return Trial { backend.accumulateGram(inputs, operands: operands, into: gram) }
        }
      }
    }
  }
}

extension OperandType {
  /// What a benchmark's name says of it.
  fileprivate var suffix: String { self == .bfloat16 ? "-bf16" : "" }
}

/// A model whose weights nobody has trained, small enough to keep the hidden states near their size.
private struct RandomWeights: WeightSource {
  func shape(of tensor: String) -> [Int]? {
    let (hidden, inner) = (SmolLM2.hiddenSize, SmolLM2.intermediateSize)
    let name = tensor.split(separator: ".").dropLast().last.map(String.init) ?? ""
    return switch name {
    case "q_proj": [SmolLM2.contextFeatures, hidden]
    case "k_proj", "v_proj": [SmolLM2.keyFeatures, hidden]
    case "o_proj": [hidden, SmolLM2.contextFeatures]
    case "gate_proj", "up_proj": [inner, hidden]
    case "down_proj": [hidden, inner]
    default: [hidden]
    }
  }

  func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) {
    if tensor.hasSuffix("norm.weight") { return panel.fill(1) }
    var noise = Noise(seed: UInt64(rows.lowerBound + 1))
    noise.fill(panel, deviation: 0.02)
  }
}
