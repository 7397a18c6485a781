import Compute
import ComputeOpenBLAS
import Tensors
import Testing

/// Products of bfloat16 by every kind of kernels that the processor has, against their definition.
@Suite struct BFloat16Tests {
  /// Fewer than a tile, whole panels, and beyond them; more than the kernels sum up at once.
  static let shapes = [
    (1, 1, 1), (17, 9, 5), (32, 32, 32), (70, 65, 33), (530, 24, 33), (9, 16, 1029), (33, 1400, 64),
  ]

  @Test(arguments: BFloat16Kernels.available, shapes)
  func `a linear agrees with its definition`(
    _ kernels: BFloat16Kernels, _ shape: (tokens: Int, inFeatures: Int, outFeatures: Int)
  ) throws {
    let inputs = Matrix.random(shape.tokens, shape.inFeatures, seed: 1)
    let weights = Matrix.random(shape.outFeatures, shape.inFeatures, seed: 2)
    let bias = Matrix.random(1, shape.outFeatures, seed: 3).elements
    for (bias, isAdded) in [(nil, false), (bias, false), (nil, true), (bias, true)] {
      try expectAgreement(within: 2e-6, by: kernels) { backend in
        let packed = backend.makeWeights(
          outFeatures: shape.outFeatures, inFeatures: shape.inFeatures, operands: .bfloat16)
        // Rows as they come, which need not begin where a panel does.
        for start in stride(from: 0, to: shape.outFeatures, by: 21) {
          backend.store(
            weights.rows(start..<min(start + 21, shape.outFeatures)), firstRow: start, in: packed)
        }
        let outputs = Matrix.random(shape.tokens, shape.outFeatures, seed: 4)
        if !isAdded { outputs.fill(.nan) }
        backend.linear(inputs, [LinearProduct(packed, bias: bias, into: outputs, adding: isAdded)])
        return outputs
      }
    }
  }

  @Test(arguments: BFloat16Kernels.available)
  func `linears of either kind that share inputs run together`(_ kernels: BFloat16Kernels) throws {
    let inputs = Matrix.random(300, 40, seed: 1)
    try expectAgreement(within: 2e-6, by: kernels) { backend in
      let outputs = [
        Matrix(rows: 300, columns: 70), Matrix(rows: 300, columns: 33), Matrix(rows: 300, columns: 5),
      ]
      let products = zip(outputs, [OperandType.bfloat16, .float32, .bfloat16]).map { outputs, operands in
        let weights = backend.makeWeights(outFeatures: outputs.columns, inFeatures: 40, operands: operands)
        backend.store(.random(outputs.columns, 40, seed: 2), firstRow: 0, in: weights)
        return LinearProduct(weights, into: outputs)
      }
      backend.linear(inputs, products)
      return Matrix(rows: 1, columns: 300 * 108, outputs.flatMap(\.elements))
    }
  }

  @Test(arguments: BFloat16Kernels.available)
  func `operands are rounded to nearest, ties to even`(_ kernels: BFloat16Kernels) {
    // 1 + 2⁻⁸ and 1 + 3·2⁻⁸ lie between two bfloat16; then just beside them; large and small ones.
    let values: [Float] = [
      1.00390625, 1.01171875, 1.0039063, 1.0039061, -1.00390625, 3.3895314e38, 1.1754944e-38, 0, 65_504,
      -1e-20,
    ]
    let backend = OpenBLASBackend(threads: 1, bfloat16: kernels)
    let unit = backend.makeWeights(outFeatures: values.count, inFeatures: values.count, operands: .bfloat16)
    let identity = Matrix(rows: values.count, columns: values.count)
    for index in values.indices { identity[index, index] = 1 }
    backend.store(identity, firstRow: 0, in: unit)
    let outputs = Matrix(rows: 1, columns: values.count)
    backend.linear(
      Matrix(rows: 1, columns: values.count, values), [LinearProduct(unit, into: outputs)])
    #expect(outputs.elements == values.map { Float(bfloat16Bits: $0.bfloat16Bits) })
  }

  @Test(arguments: BFloat16Kernels.available, [Float.nan, .infinity])
  func `a value that is not finite is not lost`(_ kernels: BFloat16Kernels, _ value: Float) {
    let backend = OpenBLASBackend(threads: 1, bfloat16: kernels)
    let weights = backend.makeWeights(outFeatures: 3, inFeatures: 40, operands: .bfloat16)
    backend.store(.random(3, 40, seed: 1), firstRow: 0, in: weights)
    let inputs = Matrix.random(2, 40, seed: 2)
    inputs[1, 17] = value
    let outputs = Matrix(rows: 2, columns: 3)
    backend.linear(inputs, [LinearProduct(weights, into: outputs)])
    #expect(outputs.rows(0..<1).elements.allSatisfy { $0.isFinite })
    #expect(outputs.rows(1..<2).elements.allSatisfy { !$0.isFinite })
  }

  @Test(arguments: BFloat16Kernels.available)
  func `a row has the same bits alone and among others`(_ kernels: BFloat16Kernels) {
    let backend = OpenBLASBackend(threads: 2, bfloat16: kernels)
    let weights = backend.makeWeights(outFeatures: 70, inFeatures: 900, operands: .bfloat16)
    backend.store(.random(70, 900, seed: 1), firstRow: 0, in: weights)
    let inputs = Matrix.random(333, 900, seed: 2)
    let together = Matrix(rows: 333, columns: 70)
    backend.linear(inputs, [LinearProduct(weights, into: together)])
    for row in [0, 31, 32, 300, 332] {
      let alone = Matrix(rows: 1, columns: 70)
      backend.linear(inputs.rows(row..<row + 1), [LinearProduct(weights, into: alone)])
      #expect(alone.elements == together.rows(row..<row + 1).elements)
    }
  }

  @Test(
    arguments: BFloat16Kernels.available,
    [(1, 1), (17, 5), (31, 33), (2100, 33), (64, 300), (700, 64), (0, 7)])
  func `a Gram matrix grows in its lower triangle alone`(
    _ kernels: BFloat16Kernels, _ shape: (tokens: Int, features: Int)
  ) throws {
    let inputs = Matrix.random(shape.tokens, shape.features, seed: 4)
    try expectAgreement(within: 1e-5, by: kernels) { backend in
      let gram = Matrix.random(shape.features, shape.features, seed: 5)
      backend.accumulateGram(inputs, operands: .bfloat16, into: gram)
      return gram
    }
  }

  // More tokens than are packed at a time.
  @Test(arguments: BFloat16Kernels.available)
  func `a Gram matrix of many tokens has the same bits as of a few at a time`(_ kernels: BFloat16Kernels) {
    let inputs = Matrix.random(9_000, 40, seed: 4)
    let backend = OpenBLASBackend(threads: 2, bfloat16: kernels)
    let (whole, parts) = (Matrix(rows: 40, columns: 40), Matrix(rows: 40, columns: 40))
    backend.accumulateGram(inputs, operands: .bfloat16, into: whole)
    for start in stride(from: 0, to: 9_000, by: 3_008) {
      backend.accumulateGram(
        inputs.rows(start..<min(start + 3_008, 9_000)), operands: .bfloat16, into: parts)
    }
    #expect(whole.elements == parts.elements)
  }

  @Test(arguments: BFloat16Kernels.available, [(1, 1, 1), (40, 33, 65), (500, 70, 30)])
  func `a cross product agrees with its definition`(
    _ kernels: BFloat16Kernels, _ shape: (tokens: Int, m: Int, n: Int)
  ) throws {
    let a = Matrix.random(shape.tokens, shape.m, seed: 1)
    let b = Matrix.random(shape.tokens, shape.n, seed: 2)
    try expectAgreement(within: 4e-6, by: kernels) { backend in
      let product = Matrix.random(shape.m, shape.n, seed: 3)
      backend.accumulateCrossProduct(a, b, operands: .bfloat16, into: product)
      return product
    }
  }

  @Test(arguments: BFloat16Kernels.available, [1, 17, 128, 300])
  func `attention agrees with its definition`(_ kernels: BFloat16Kernels, length: Int) throws {
    for (heads, keyValueHeads, dimension, width) in [
      (1, 1, 8, 8), (4, 2, 6, 6), (3, 1, 64, 64), (2, 2, 80, 80), (2, 1, 40, 24), (2, 2, 9, 17),
    ] {
      let tokens = 2 * length
      let queries = Matrix.random(tokens, heads * dimension, seed: 11)
      let keys = Matrix.random(tokens, keyValueHeads * dimension, seed: 12)
      let values = Matrix.random(tokens, keyValueHeads * width, seed: 13)
      for bias in [nil, Matrix.random(heads, length, seed: 14)] {
        let parameters = AttentionParameters(
          heads: heads, keyValueHeads: keyValueHeads, headDimension: dimension, valueDimension: width,
          sequenceLength: length, scale: 0.3, positionBias: bias, operands: .bfloat16)
        // A probability on the edge between two bfloat16 goes either way.
        try expectAgreement(within: 2e-3, by: kernels) { backend in
          let outputs = Matrix(rows: tokens, columns: heads * width)
          outputs.fill(.nan)
          backend.attend(queries: queries, keys: keys, values: values, parameters, into: outputs)
          return outputs
        }
      }
    }
  }

  @Test func `a model is multiplied in its own type where the processor is asked to`() {
    let exact = OpenBLASBackend(threads: 1)
    let converting = OpenBLASBackend(threads: 1, bfloat16: .converting)
    #expect(converting.operandType(for: .bfloat16) == .bfloat16)
    for (backend, stored) in [(exact, DType.bfloat16), (converting, .float16), (converting, .float32)] {
      #expect(backend.operandType(for: stored) == .float32)
    }
    #expect(converting.kernels(for: .bfloat16).hasSuffix(", bfloat16 products by converting"))
    #expect(!converting.kernels(for: .float32).contains("bfloat16"))
  }
}

extension BFloat16Kernels {
  static var available: [BFloat16Kernels] { allCases.filter(\.isAvailable) }
}
