import Checkpoint
import Compute
import Decoder
import Export
import SystemIO

// What a run writes, and what its report says of it.
extension QuantizationRun {
  /// What computes, whatever this model's type asks of it.
  var kernels: String { backend.kernels(for: .bfloat16) }

  /// What computes of that for this model.
  public var kernelsInUse: String { backend.kernels(for: operands) }

  /// What is quantized and is no linear of a layer.
  var outside: [LinearDescription] { resolved.outside }

  var exportedLinears: [LinearDescription] { description.exported(by: treatments) }

  /// What the formats have to know of the model.
  var traits: ModelTraits { description.traits(of: treatments) }

  /// What stands in the checkpoint beside the model that is quantized, and is no linear of it: other towers by the first
  /// part of their names, and linears of layers that config.json does not count.
  var others: (towers: [String], linears: [LinearDescription]) {
    let required = Set(
      description.requiredTensors.map(\.name) + outside.map { "\($0.name).weight" })
    var towers: Set<String> = []
    var linears: [LinearDescription] = []
    for name in checkpoint.tensorNames where name.hasSuffix(".weight") && !required.contains(name) {
      guard let shape = checkpoint.shape(of: name), shape.count > 1 else { continue }
      var parts = name.split(separator: ".")
      if parts.first == "model" { parts.removeFirst() }
      switch parts.first {
      case nil, "lm_head", "embed_out": continue
      case "layers", "language_model", "transformer", "decoder", "h", "blocks":
        guard shape.count == 2 else { continue }
        linears.append(
          LinearDescription(
            name: String(name.dropLast(7)), outFeatures: shape[0], inFeatures: shape[1], gridFormat: nil,
            hasBias: false))
      case .some(let tower): towers.insert(String(tower))
      }
    }
    return (towers.sorted(), linears)
  }

  var cachePath: String {
    let directory = request.cacheDirectory ?? FileSystem.parent(of: request.output)
    return FileSystem.join(directory, ".\(FileSystem.name(of: request.output)).activations.mdb")
  }

  var settings: Report.Settings {
    let standard = request.recipe.standard
    // Of a GGUF file, what most of its linears have.
    let grid = request.recipe.mix?.name.standardType.gridFormat ?? standard.gridFormat
    var settings = Report.Settings(
      bits: grid.bitWidth.rawValue, groupSize: grid.groupSize.notation, symmetric: grid.isSymmetric,
      solver: standard.quantizer.name,
      target: request.target.rawValue,
      targetSamples: request.target == .original ? request.originalSamples : nil,
      formats: request.formats,
      calibration: Report.Calibration(
        samples: request.calibration.samples, sequenceLength: request.calibration.sequenceLength,
        seed: request.seed, source: request.calibrationSources.names,
        overlapping: request.calibration.overlapping))
    settings.kernels = kernelsInUse
    settings.gguf = outline
    settings.rotation = rotation
    settings.allocation = allocation
    return settings
  }
}

extension CheckpointReader {
  /// Whether a head can be another than the source's: not where it is that of the embeddings, or where some client takes it for
  /// that, whatever is stored, nor where its bytes are copied into blocks.
  func hasHeadToCorrect(_ model: ModelDescription, isQuantized: Bool, isGGUF: Bool) -> Bool {
    if model.hasTiedHead { return false }
    if isGGUF { return isQuantized }
    let flags = [configuration, configuration["text_config"]].compactMap { $0?["tie_word_embeddings"]?.bool }
    return flags.contains(false) && !flags.contains(true) && model.modelType != "gemma"
  }
}

extension ModelDescription {
  /// The linears of all layers, and what is to become of them.
  func exported(by treatments: [String: Treatment]) -> [LinearDescription] {
    (0..<layerCount).flatMap { index in
      linears(ofLayer: index).map { linear in
        let name = layerPrefix(index) + linear.name
        let treatment = treatments[name]
        return LinearDescription(
          name: name, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures,
          gridFormat: treatment?.gridFormat, hasBias: linear.hasBias,
          outliers: treatment?.outliers.map {
            OutlierLayout($0, outFeatures: linear.outFeatures, inFeatures: linear.inFeatures)
          })
      }
        + keptLinears(ofLayer: index).map { linear in
          LinearDescription(
            name: layerPrefix(index) + linear.name, outFeatures: linear.outFeatures,
            inFeatures: linear.inFeatures, gridFormat: nil, hasBias: linear.hasBias)
        }
    }
  }

  func traits(of treatments: [String: Treatment]) -> ModelTraits {
    guard hasMixtures else { return [] }
    let quantizesExperts = (0..<layerCount).contains { layer in
      let prefix = layerPrefix(layer)
      return stages(ofLayer: layer).flatMap(\.experts).contains { expert in
        expert.number != nil && expert.linears.contains { treatments[prefix + $0.name] != nil }
      }
    }
    guard quantizesExperts else { return [] }
    switch expertLoaders {
    case .all: return .experts
    case .vLLM: return [.experts, .expertsForVLLM]
    case .none: return [.experts, .stackedExperts]
    }
  }
}
