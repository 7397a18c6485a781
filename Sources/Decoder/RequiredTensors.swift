import Compute

extension ModelDescription {
  /// Every tensor that a forward pass reads, with the shape that config.json gives it: a layer at a time, as config.json
  /// may ask for more of them than memory holds the names of, and the first that is missing ends it.
  public var requiredTensors: some Sequence<(name: String, shape: [Int])> {
    (-1..<layerCount).lazy.flatMap { $0 < 0 ? outerTensors : layerTensors($0) }
  }

  private var outerTensors: [(name: String, shape: [Int])] {
    var tensors: [(name: String, shape: [Int])] = [
      (embedding.tokens, [vocabularySize, embedding.width]),
      (head.weights, [vocabularySize, head.width]),
    ]
    if let positions = embedding.positions {
      tensors.append((positions.name, [positions.count, hiddenSize]))
    }
    if let projection = embedding.projection { tensors.append((projection, [hiddenSize, embedding.width])) }
    if let projection = head.projection { tensors.append((projection, [head.width, hiddenSize])) }
    if let bias = head.bias { tensors.append((bias, [vocabularySize])) }
    for norm in [embedding.norm, head.norm] {
      tensors += norm?.tensors(prefix: "", size: hiddenSize) ?? []
    }
    return tensors
  }

  private func layerTensors(_ index: Int) -> [(name: String, shape: [Int])] {
    let prefix = layerPrefix(index)
    var tensors: [(name: String, shape: [Int])] = []
    let layer = layers[index]
    for linear in linears(ofLayer: index) {
      tensors.append(("\(prefix)\(linear.name).weight", [linear.outFeatures, linear.inFeatures]))
      if linear.hasBias { tensors.append(("\(prefix)\(linear.name).bias", [linear.outFeatures])) }
    }
    for norm in [layer.attentionNorm, layer.mlpNorm, layer.attentionOutputNorm, layer.mlpOutputNorm] {
      tensors += norm?.tensors(prefix: prefix, size: hiddenSize) ?? []
    }
    if let mixture = layer.mixture {
      tensors += mixture.routers(hiddenSize: hiddenSize).map {
        ("\(prefix)\($0.name).weight", [$0.outFeatures, $0.inFeatures])
      }
      tensors += mixture.otherTensors(hiddenSize: hiddenSize).map { ("\(prefix)\($0.name)", $0.shape) }
    }
    if let xielu = layer.mlp.xielu { tensors += XIELU.tensors(prefix + xielu) }
    if let scale = layer.outputScale { tensors.append(("\(prefix)\(scale)", [1])) }
    if let mixer = layer.linearAttention {
      tensors += mixer.keptLinears(hiddenSize: hiddenSize).map {
        ("\(prefix)\($0.name).weight", [$0.outFeatures, hiddenSize])
      }
      tensors.append(("\(prefix)\(mixer.convolution)", mixer.convolutionShape))
      for name in [mixer.decayLogarithms, mixer.decayBiases] {
        tensors.append(("\(prefix)\(name)", [mixer.valueHeads]))
      }
      tensors.append(("\(prefix)\(mixer.norm).weight", [mixer.valueDimension]))
      return tensors
    }
    let attention = layer.attention
    if let latent = layer.latentAttention {
      return tensors + latent.norms.flatMap { $0.norm.tensors(prefix: prefix, size: $0.size) }
    }
    if let sinks = attention.sinks { tensors.append(("\(prefix)\(sinks)", [attention.heads])) }
    return tensors + attention.normTensors(prefix: prefix)
  }
}

extension NormDescription {
  func tensors(prefix: String, size: Int) -> [(name: String, shape: [Int])] {
    let names = hasBias ? ["weight", "bias"] : ["weight"]
    return names.map { ("\(prefix)\(name).\($0)", [size]) }
  }
}
