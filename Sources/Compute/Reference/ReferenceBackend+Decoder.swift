import Glibc
import Tensors

extension ReferenceBackend: DecoderOperations {
  public func operandType(for stored: DType) -> OperandType { .float32 }

  public func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights {
    LinearWeights(
      outFeatures: outFeatures, inFeatures: inFeatures, operands: operands,
      values: Matrix(rows: outFeatures, columns: inFeatures))
  }

  public func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights) {
    weights.values.rows(firstRow..<firstRow + rows.rows).copy(from: rows.rounded(to: weights.operands))
  }

  public func linear(_ inputs: Matrix, _ products: [LinearProduct]) {
    for product in products {
      product.checkShapes(inputs: inputs)
      let (weights, outputs) = (product.weights.values, product.outputs)
      let inputs = inputs.rounded(to: product.weights.operands)
      outputs.setEach { token, feature in
        sum(0..<inputs.columns) { inputs.value(token, $0) * weights.value(feature, $0) }
          + Double(product.bias?[feature] ?? 0) + (product.isAdded ? outputs.value(token, feature) : 0)
      }
    }
  }

  public func normalize(
    _ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix
  ) {
    let features = inputs.columns
    precondition(outputs.rows == inputs.rows && outputs.columns == features, "the shapes do not fit")
    let groups = normalization.groups(of: inputs)
    for row in 0..<inputs.rows {
      let first = row % groups * features
      let x = (0..<features).map { inputs.value(row, $0) }
      let center =
        switch normalization.kind {
        case .rootMeanSquare: 0.0
        case .layer: sum(0..<features) { x[$0] } / Double(features)
        }
      let spread = sum(0..<features) { (x[$0] - center) * (x[$0] - center) } / Double(features)
      let deviation = (spread + Double(normalization.epsilon)).squareRoot()
      for column in 0..<features {
        let scaled = (x[column] - center) / deviation * Double(normalization.weight[first + column])
        outputs[row, column] = Float(scaled + Double(normalization.bias?[first + column] ?? 0))
      }
    }
  }

  public func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable) {
    precondition(headDimension >= 2 * table.pairs, "the shapes do not fit")
    precondition(states.columns % headDimension == 0, "the shapes do not fit")
    precondition(table.sines.columns == table.pairs, "the shapes do not fit")
    for row in 0..<states.rows {
      let position = row % table.sequenceLength
      for start in stride(from: 0, to: states.columns, by: headDimension) {
        for index in 0..<table.pairs {
          let (one, other) =
            table.isInterleaved
            ? (start + 2 * index, start + 2 * index + 1) : (start + index, start + table.pairs + index)
          let cosine = table.cosines.value(position, index)
          let sine = table.sines.value(position, index)
          let low = states.value(row, one)
          let high = states.value(row, other)
          states[row, one] = Float(low * cosine - high * sine)
          states[row, other] = Float(high * cosine + low * sine)
        }
      }
    }
  }

  public func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix
  ) {
    let dimension = parameters.headDimension
    let headsPerKey = parameters.heads / parameters.keyValueHeads
    precondition(queries.columns == parameters.heads * dimension, "the shapes do not fit")
    precondition(keys.columns == parameters.keyValueHeads * dimension, "the shapes do not fit")
    let width = parameters.valueDimension
    precondition(values.columns == parameters.keyValueHeads * width, "the shapes do not fit")
    precondition(outputs.columns == parameters.heads * width, "the shapes do not fit")
    let operands = parameters.operands
    let queries = Matrix(
      rows: queries.rows, columns: queries.columns, queries.elements.map { $0 * parameters.scale }
    ).rounded(to: operands)
    let (keys, values) = (keys.rounded(to: operands), values.rounded(to: operands))
    for row in 0..<queries.rows {
      let position = row % parameters.sequenceLength
      let first = row - position
      for head in 0..<parameters.heads {
        let queryStart = head * dimension
        let keyStart = head / headsPerKey * dimension
        let firstKey = parameters.window.map { max(0, position + 1 - $0) } ?? 0
        let scores = (firstKey...position).map { key in
          let product = sum(0..<dimension) {
            queries.value(row, queryStart + $0) * keys.value(first + key, keyStart + $0)
          }
          let capped = parameters.softcap.map { Double($0) * tanh(product / Double($0)) } ?? product
          return capped + (parameters.positionBias?.value(head, key) ?? 0)
        }
        let logSum = logSumExp(scores + (parameters.sinks.map { [Double($0[head])] } ?? []))
        for index in 0..<width {
          let weighted = sum(0..<scores.count) {
            Float(exp(scores[$0] - logSum)).rounded(to: operands)
              * values.value(first + firstKey + $0, head / headsPerKey * width + index)
          }
          outputs[row, head * width + index] = Float(weighted)
        }
      }
    }
  }

  public func setHeads(
    of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool
  ) {
    let heads = states.columns / headDimension
    precondition(source.columns == part.count * (isShared ? 1 : heads), "the shapes do not fit")
    for token in 0..<states.rows {
      for head in 0..<heads {
        for index in 0..<part.count {
          states[token, head * headDimension + part.lowerBound + index] =
            source[token, isShared ? index : head * part.count + index]
        }
      }
    }
  }

  public func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix
  ) {
    parameters.checkShapes(mixed, decays, gates, outputs)
    let (length, taps) = (parameters.sequenceLength, parameters.taps)
    let inputs = mixed.copy()
    mixed.setEach { token, channel in
      let position = token % length
      let convolved = sum(max(0, taps - 1 - position)..<taps) { tap in
        Double(parameters.convolution[tap * inputs.columns + channel])
          * inputs.value(token - taps + 1 + tap, channel)
      }
      return ActivationFunction.silu(convolved)
    }
    let (keys, values) = (parameters.keyDimension, parameters.valueDimension)
    for first in stride(from: 0, to: mixed.rows, by: length) {
      for head in 0..<parameters.valueHeads {
        let keyHead = parameters.keyHead(ofValueHead: head)
        func normalized(_ token: Int, _ start: Int) -> [Double] {
          let x = (0..<keys).map { mixed.value(token, start + $0) }
          let norm = (sum(0..<keys) { x[$0] * x[$0] } + 1e-6).squareRoot()
          return x.map { $0 / norm }
        }
        var state = [[Double]](repeating: [Double](repeating: 0, count: values), count: keys)
        for token in first..<first + length {
          let q = normalized(token, keyHead * keys).map { $0 / Double(keys).squareRoot() }
          let k = normalized(token, parameters.keyFeatures + keyHead * keys)
          let decay = Double(parameters.decay(decays[token, head], head: head))
          let beta = Double(parameters.gate(gates[token, head]))
          for value in 0..<values {
            for key in 0..<keys { state[key][value] *= decay }
            let known = sum(0..<keys) { k[$0] * state[$0][value] }
            let place = 2 * parameters.keyFeatures + head * values + value
            let change = beta * (mixed.value(token, place) - known)
            for key in 0..<keys { state[key][value] += k[key] * change }
            outputs[token, head * values + value] = Float(sum(0..<keys) { q[$0] * state[$0][value] })
          }
        }
      }
    }
  }

  public func activate(_ states: Matrix, _ function: ActivationFunction) {
    states.setEach { row, column in function(states.value(row, column)) }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction) {
    precondition(gate.rows == up.rows && gate.columns == up.columns, "the shapes do not fit")
    gate.setEach { row, column in function(gate.value(row, column)) * up.value(row, column) }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU) {
    precondition(gate.rows == up.rows && gate.columns == up.columns, "the shapes do not fit")
    let limit = Double(function.limit)
    gate.setEach { row, column in
      let x = min(gate.value(row, column), limit)
      let y = min(max(up.value(row, column), -limit), limit)
      return (y + 1) * x / (1 + exp(-Double(function.alpha) * x))
    }
  }

  public func add(_ x: Matrix, into y: Matrix) {
    precondition(x.rows == y.rows && x.columns == y.columns, "the shapes do not fit")
    y.setEach { row, column in y.value(row, column) + x.value(row, column) }
  }

  public func scale(_ x: Matrix, by factor: Float) {
    x.setEach { row, column in x.value(row, column) * Double(factor) }
  }

  public func softcap(_ x: Matrix, at cap: Float) {
    x.setEach { row, column in Double(cap) * tanh(x.value(row, column) / Double(cap)) }
  }

  public func clamp(_ x: Matrix, to limit: Float) {
    x.setEach { row, column in min(max(x.value(row, column), -Double(limit)), Double(limit)) }
  }

  public func activate(_ states: Matrix, _ function: XIELU) {
    states.setEach { row, column in
      let x = states.value(row, column)
      let bent = x > 0 ? Double(function.positive) * x * x : Double(function.negative) * (expm1(x) - x)
      return bent + Double(function.linear) * x
    }
  }

  public func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float] {
    precondition(targets.count == logits.rows, "the shapes do not fit")
    return (0..<logits.rows).map { row in
      let scores = (0..<logits.columns).map { logits.value(row, $0) }
      return Float(logSumExp(scores) - scores[Int(targets[row])])
    }
  }

  public func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence] {
    precondition(logits.rows == reference.rows && logits.columns == reference.columns, "the shapes differ")
    return (0..<logits.rows).map { row in
      let (own, other) = (
        (0..<logits.columns).map { logits.value(row, $0) },
        (0..<logits.columns).map { reference.value(row, $0) }
      )
      let (ownSum, otherSum) = (logSumExp(own), logSumExp(other))
      let divergence = sum(0..<own.count) { column in
        let (p, q) = (other[column] - otherSum, own[column] - ownSum)
        return exp(p) * (p - q)
      }
      func choice(_ scores: [Double]) -> Int? { scores.max().flatMap(scores.firstIndex) }
      return PredictionDivergence(
        divergence: Float(divergence), hasSameChoice: choice(own) == choice(other))
    }
  }

  private func logSumExp(_ scores: [Double]) -> Double {
    let shift = scores.max() ?? 0
    return shift + log(sum(0..<scores.count) { exp(scores[$0] - shift) })
  }
}

extension ActivationFunction {
  fileprivate func callAsFunction(_ x: Double) -> Double {
    switch self {
    case .relu: max(x, 0)
    case .silu: x / (1 + exp(-x))
    case .gelu: x * 0.5 * erfc(-x / 2.0.squareRoot())
    case .sigmoid: 1 / (1 + exp(-x))
    case .reluSquared: max(x, 0) * max(x, 0)
    case .geluTanh: 0.5 * x * (1 + tanh((2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x)))
    }
  }
}
