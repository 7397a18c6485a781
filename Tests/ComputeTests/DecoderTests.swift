import Compute
import ComputeOpenBLAS
import Tensors
import TestSupport
import Testing

@Suite struct DecoderTests {
  @Test(arguments: [(1, 1, 1), (17, 9, 5), (530, 24, 33), (9, 16, 1029)], [false, true])
  func `a linear agrees with its definition`(
    _ shape: (tokens: Int, inFeatures: Int, outFeatures: Int), hasBias: Bool
  ) throws {
    let inputs = Matrix.random(shape.tokens, shape.inFeatures, seed: 1)
    let weights = Matrix.random(shape.outFeatures, shape.inFeatures, seed: 2)
    let bias = hasBias ? Matrix.random(1, shape.outFeatures, seed: 3).elements : nil
    try expectAgreement(within: 2e-6) { backend in
      let outputs = Matrix(rows: shape.tokens, columns: shape.outFeatures)
      outputs.fill(.nan)
      backend.linear(inputs, weights: weights, bias: bias, into: outputs)
      return outputs
    }
  }

  @Test(
    arguments: [NormalizationParameters.Kind.rootMeanSquare, .layer],
    [(1, 1), (3, 17), (70, 1000)])
  func `normalization in place agrees with its definition`(
    kind: NormalizationParameters.Kind, _ shape: (rows: Int, columns: Int)
  ) throws {
    let parameters = NormalizationParameters(
      kind: kind, weight: Matrix.random(1, shape.columns, seed: 4).elements,
      bias: kind == .layer ? Matrix.random(1, shape.columns, seed: 5).elements : nil, epsilon: 1e-5)
    try expectAgreement(within: 2e-6) { backend in
      let states = Matrix.random(shape.rows, shape.columns, seed: 6)
      backend.normalize(states, parameters, into: states)
      return states
    }
  }

  @Test(arguments: [NormalizationParameters.Kind.rootMeanSquare, .layer], [false, true])
  func `rows that have weights of their own agree with the definition`(
    kind: NormalizationParameters.Kind, hasBias: Bool
  ) throws {
    let (groups, features) = (3, 17)
    let parameters = NormalizationParameters(
      kind: kind, weight: Matrix.random(groups, features, seed: 4).elements,
      bias: hasBias && kind == .layer ? Matrix.random(groups, features, seed: 5).elements : nil,
      epsilon: 1e-5)
    try expectAgreement(within: 2e-6) { backend in
      let states = Matrix.random(groups * 50, features, seed: 6)
      backend.normalize(states, parameters, into: states)
      return states
    }
  }

  @Test func `layer normalization does without a bias`() throws {
    let parameters = NormalizationParameters(kind: .layer, weight: [1, 2, 3], epsilon: 1e-5)
    try expectAgreement(within: 2e-6) { backend in
      let outputs = Matrix(rows: 4, columns: 3)
      backend.normalize(.random(4, 3, seed: 7), parameters, into: outputs)
      return outputs
    }
  }

  @Test(arguments: [(2, 1, 3), (10, 3, 17), (64, 9, 700)])
  func `rotary embedding agrees with its definition`(_ shape: (dimension: Int, heads: Int, length: Int))
    throws
  {
    let table = RotaryTable(
      cosines: .random(shape.length, shape.dimension / 2, seed: 8),
      sines: .random(shape.length, shape.dimension / 2, seed: 9))
    try expectAgreement(within: 1e-6) { backend in
      let states = Matrix.random(2 * shape.length, shape.dimension * shape.heads, seed: 10)
      backend.rotate(states, headDimension: shape.dimension, table: table)
      return states
    }
  }

  @Test(arguments: [1, 3, 40], [(1, 1, 4, 3, 1), (2, 4, 8, 20, 4), (2, 2, 5, 70, 3)])
  func `linear attention agrees with its definition`(
    length: Int, _ shape: (keyHeads: Int, valueHeads: Int, keys: Int, values: Int, taps: Int)
  ) throws {
    let taps = shape.taps
    let channels = 2 * shape.keyHeads * shape.keys + shape.valueHeads * shape.values
    let parameters = GatedDeltaParameters(
      keyHeads: shape.keyHeads, valueHeads: shape.valueHeads, keyDimension: shape.keys,
      valueDimension: shape.values, sequenceLength: length,
      convolution: Matrix.random(taps, channels, seed: 30).elements, taps: taps,
      decayLogarithms: Matrix.random(1, shape.valueHeads, seed: 31).elements,
      decayBiases: Matrix.random(1, shape.valueHeads, seed: 32).elements)
    try expectAgreement(within: 5e-6) { backend in
      let mixed = Matrix.random(2 * length, channels, seed: 33)
      let outputs = Matrix(rows: 2 * length, columns: parameters.valueFeatures)
      outputs.fill(.nan)
      backend.attendLinearly(
        mixed, decays: .random(2 * length, shape.valueHeads, seed: 34),
        gates: .random(2 * length, shape.valueHeads, seed: 35), parameters, into: outputs)
      return outputs
    }
  }

  @Test(arguments: [false, true], [(7, 1), (8, 3), (20, 10)])
  func `a part of a head turns, in pairs of halves or of neighbours`(
    isInterleaved: Bool, _ shape: (dimension: Int, pairs: Int)
  ) throws {
    let table = RotaryTable(
      cosines: .random(9, shape.pairs, seed: 8), sines: .random(9, shape.pairs, seed: 9),
      isInterleaved: isInterleaved)
    try expectAgreement(within: 1e-6) { backend in
      let states = Matrix.random(18, shape.dimension * 3, seed: 10)
      backend.rotate(states, headDimension: shape.dimension, table: table)
      return states
    }
  }

  @Test(arguments: [1, 16, 17, 64, 200, 1000], [nil, 2] as [Float?])
  func `attention within a window, and with capped scores, agrees with its definition`(
    window: Int, softcap: Float?
  ) throws {
    let length = 150
    let queries = Matrix.random(2 * length, 4 * 6, seed: 11)
    let keys = Matrix.random(2 * length, 2 * 6, seed: 12)
    let values = Matrix.random(2 * length, 2 * 6, seed: 13)
    for bias in [nil, Matrix.random(4, length, seed: 14)] {
      let parameters = AttentionParameters(
        heads: 4, keyValueHeads: 2, headDimension: 6, sequenceLength: length, scale: 1.5, positionBias: bias,
        window: window, softcap: softcap)
      try expectAgreement(within: 5e-6) { backend in
        let outputs = Matrix(rows: 2 * length, columns: queries.columns)
        outputs.fill(.nan)
        backend.attend(queries: queries, keys: keys, values: values, parameters, into: outputs)
        return outputs
      }
    }
  }

  @Test(arguments: [(1, 1), (33, 4001)], [0.3, 2, 30] as [Float])
  func `what changes every element agrees with its definition`(
    _ shape: (rows: Int, columns: Int), cap: Float
  ) throws {
    for change in [
      { $0.scale($1, by: cap) }, { $0.softcap($1, at: cap) }, { $0.clamp($1, to: cap) },
      { $0.activate($1, XIELU(positive: 0.7, negative: 1.1, linear: cap)) },
      {
        let up = Matrix.random($1.rows, $1.columns, seed: 21)
        $0.activateGate($1, up: up, ClampedSwiGLU(alpha: 1.702, limit: cap / 2))
      },
    ]
      as [(any Operations, Matrix) -> Void]
    {
      try expectAgreement(within: 1e-6) { backend in
        let states = Matrix.random(shape.rows, shape.columns, seed: 20)
        for row in 0..<shape.rows {
          for column in 0..<shape.columns { states[row, column] *= 12 }
        }
        change(backend, states)
        return states
      }
    }
  }

  @Test(arguments: [1, 17, 300], [(4, 2, 6, 3), (2, 2, 5, 9), (3, 1, 64, 40)])
  func `attention with values of another width, and with sinks, agrees with its definition`(
    length: Int, _ shape: (heads: Int, keyValueHeads: Int, dimension: Int, values: Int)
  ) throws {
    let tokens = 2 * length
    let queries = Matrix.random(tokens, shape.heads * shape.dimension, seed: 11)
    let keys = Matrix.random(tokens, shape.keyValueHeads * shape.dimension, seed: 12)
    let values = Matrix.random(tokens, shape.keyValueHeads * shape.values, seed: 13)
    for sinks in [nil, (0..<shape.heads).map { Float(4 * $0) - 3 }] {
      let parameters = AttentionParameters(
        heads: shape.heads, keyValueHeads: shape.keyValueHeads, headDimension: shape.dimension,
        valueDimension: shape.values, sequenceLength: length, scale: 1.5, sinks: sinks)
      try expectAgreement(within: 5e-6) { backend in
        let outputs = Matrix(rows: tokens, columns: shape.heads * shape.values)
        outputs.fill(.nan)
        backend.attend(queries: queries, keys: keys, values: values, parameters, into: outputs)
        return outputs
      }
    }
  }

  @Test(arguments: [false, true])
  func `setting a part of every head agrees with its definition`(isShared: Bool) throws {
    let source = Matrix.random(90, isShared ? 5 : 15, seed: 40)
    try expectAgreement(within: 0) { backend in
      let states = Matrix.random(90, 24, seed: 41)
      backend.setHeads(of: states, headDimension: 8, part: 2..<7, to: source, isShared: isShared)
      return states
    }
  }

  @Test(arguments: [1, 17, 128, 300], [(1, 1, 8), (4, 2, 6), (3, 1, 64)])
  func `attention agrees with its definition`(
    length: Int, _ shape: (heads: Int, keyValueHeads: Int, dimension: Int)
  ) throws {
    let tokens = 2 * length
    let queries = Matrix.random(tokens, shape.heads * shape.dimension, seed: 11)
    let keys = Matrix.random(tokens, shape.keyValueHeads * shape.dimension, seed: 12)
    let values = Matrix.random(tokens, shape.keyValueHeads * shape.dimension, seed: 13)
    for bias in [nil, Matrix.random(shape.heads, length, seed: 14)] {
      let parameters = AttentionParameters(
        heads: shape.heads, keyValueHeads: shape.keyValueHeads, headDimension: shape.dimension,
        sequenceLength: length, scale: 1.5, positionBias: bias)
      try expectAgreement(within: 5e-6) { backend in
        let outputs = Matrix(rows: tokens, columns: queries.columns)
        outputs.fill(.nan)
        backend.attend(queries: queries, keys: keys, values: values, parameters, into: outputs)
        return outputs
      }
    }
  }

  @Test(arguments: ActivationFunction.allCases, [(1, 1), (5, 13), (70, 1001)])
  func `activation functions agree with their definitions`(
    function: ActivationFunction, _ shape: (rows: Int, columns: Int)
  ) throws {
    // Values from −12 to 12: both tails and what lies between.
    let states = Matrix.random(shape.rows, shape.columns, seed: 15)
    for row in 0..<shape.rows {
      for column in 0..<shape.columns { states[row, column] *= 12 }
    }
    try expectAgreement(within: 2e-7) { backend in
      let result = states.copy()
      backend.activate(result, function)
      return result
    }
    try expectAgreement(within: 2e-7) { backend in
      let result = states.copy()
      backend.activateGate(result, up: .random(shape.rows, shape.columns, seed: 16), function)
      return result
    }
  }

  @Test(arguments: ActivationFunction.allCases)
  func `activation functions stay finite far out`(function: ActivationFunction) {
    let states = Matrix(rows: 1, columns: 4, [-1e4, -200, 200, 1e4])
    OpenBLASBackend(threads: 1).activate(states, function)
    #expect(abs(states[0, 0]) < 1e-30 && abs(states[0, 1]) < 1e-30)
    switch function {
    case .reluSquared: #expect(states[0, 2] == 4e4 && states[0, 3] == 1e8)
    case .sigmoid: #expect(states[0, 2] == 1 && states[0, 3] == 1)
    default: #expect(states[0, 2] == 200 && states[0, 3] == 1e4)
    }
  }

  @Test(arguments: [(1, 1), (33, 4001)])
  func `addition is exact`(_ shape: (rows: Int, columns: Int)) throws {
    try expectAgreement(within: 0) { backend in
      let sum = Matrix.random(shape.rows, shape.columns, seed: 17)
      backend.add(.random(shape.rows, shape.columns, seed: 18), into: sum)
      return sum
    }
  }

  @Test(arguments: [1, 7, 5000], [0, -300, 3000] as [Float])
  func `log likelihoods agree with their definition`(vocabulary: Int, offset: Float) throws {
    let logits = Matrix.random(21, vocabulary, seed: 19)
    for row in 0..<21 {
      for column in 0..<vocabulary { logits[row, column] = logits[row, column] * 9 + offset }
    }
    let targets = (0..<21).map { Int32($0 * 31 % vocabulary) }
    // Logits of 3,000 have steps of 2.4e-4 themselves.
    try expectAgreement(within: offset > 1000 ? 1e-4 : 1e-5) { backend in
      let losses = backend.negativeLogLikelihoods(logits: logits, targets: targets)
      return Matrix(rows: 1, columns: losses.count, losses)
    }
  }

  @Test(arguments: [1, 7, 5_000], [1, 0.1, 0.001] as [Float])
  func `divergences agree with their definition`(vocabulary: Int, difference: Float) throws {
    let reference = Matrix.random(21, vocabulary, seed: 23)
    let change = Matrix.random(21, vocabulary, seed: 29)
    let logits = Matrix(rows: 21, columns: vocabulary)
    for row in 0..<21 {
      for column in 0..<vocabulary {
        reference[row, column] *= 6
        logits[row, column] = reference[row, column] + difference * change[row, column] + Float(row)
      }
    }
    let expected = ReferenceBackend().divergences(of: logits, from: reference)
    let backends: [any ComputeBackend] = [
      OpenBLASBackend(threads: 2), HostedBackend(try EmulatedGPU.backend()),
    ]
    for backend in backends {
      for (one, other) in zip(backend.divergences(of: logits, from: reference), expected) {
        // However small it is.
        #expect(abs(one.divergence - other.divergence) <= 2e-3 * abs(other.divergence) + 1e-10)
        #expect(one.hasSameChoice == other.hasSameChoice)
      }
    }
    for one in OpenBLASBackend(threads: 2).divergences(of: reference, from: reference) {
      #expect(one == PredictionDivergence(divergence: 0, hasSameChoice: true))
    }
  }

  @Test func `models that are worlds apart have a divergence, too`() throws {
    // Of what one takes for impossible the other is certain, and the other way round.
    let reference = Matrix(rows: 2, columns: 5, [0, -100, -12, -200, -3, 0, -300, -1, -2, -90])
    let logits = Matrix(rows: 2, columns: 5, [0, -12, -100, -3, -200, -500, 0, -400, -100, -1])
    let expected = ReferenceBackend().divergences(of: logits, from: reference)
    let backends: [any ComputeBackend] = [
      OpenBLASBackend(threads: 2), HostedBackend(try EmulatedGPU.backend()),
    ]
    for backend in backends {
      for (one, other) in zip(backend.divergences(of: logits, from: reference), expected) {
        #expect(abs(one.divergence - other.divergence) <= 1e-5 * other.divergence)
        #expect(one.hasSameChoice == other.hasSameChoice)
      }
    }
  }

  @Test func `of equal logits the first is the choice, and a NaN comes out`() throws {
    let logits = Matrix(rows: 2, columns: 4, [1, 5, 5, 0, 1, 2, .nan, 0])
    let reference = Matrix(rows: 2, columns: 4, [0, 5, 1, 2, 1, 2, 3, 0])
    for backend in [OpenBLASBackend(threads: 1), HostedBackend(try EmulatedGPU.backend())]
      as [any ComputeBackend]
    {
      let found = backend.divergences(of: logits, from: reference)
      #expect(found[0].hasSameChoice)
      #expect(found[1].divergence.isNaN)
    }
  }

  @Test func `a NaN comes out of every operation that it goes into`() {
    let backend = OpenBLASBackend(threads: 2)
    for function in ActivationFunction.allCases {
      let states = Matrix(rows: 1, columns: 20)
      states[0, 3] = .nan
      backend.activate(states, function)
      #expect(states[0, 3].isNaN && states[0, 4] == (function == .sigmoid ? 0.5 : 0))
    }
    let logits = Matrix(rows: 1, columns: 50)
    logits[0, 40] = .nan
    #expect(backend.negativeLogLikelihoods(logits: logits, targets: [0])[0].isNaN)
  }

  @Test func `a target outside the vocabulary traps`() async {
    await #expect(processExitsWith: .failure) {
      _ = OpenBLASBackend(threads: 1).negativeLogLikelihoods(
        logits: Matrix(rows: 1, columns: 3), targets: [3])
    }
  }
}
