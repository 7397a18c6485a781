import Checkpoint
import Decoder
import Tensors

extension ModelDescription {
  /// Reads a checkpoint's config.json and checks that every tensor that the decoder reads is there in the shape it
  /// asks for, before any work.
  /// - Throws: ``DecoderError`` or ``PipelineError``
  public init(checking checkpoint: CheckpointReader, source: any WeightSource) throws {
    try self.init(configuration: checkpoint.configuration) { source.shape(of: $0) != nil }
    try checkpoint.requireNoUnreadTensor(besides: requiredTensors.lazy.map(\.name), layers: layerCount)
    for (name, expected) in requiredTensors {
      guard let found = source.shape(of: name) else { throw PipelineError.missingTensor(name) }
      guard found == expected else {
        throw PipelineError.wrongShape(tensor: name, found: found, expected: expected)
      }
      // Of a packed linear the checkpoint has no tensor of this name.
      if let tensor = checkpoint.tensors[name], !tensor.dtype.isSupportedFloat {
        throw PipelineError.unsupportedType(tensor: name, file: tensor.file, type: tensor.dtype.rawValue)
      }
    }
  }
}

extension CheckpointReader {
  /// The type that the model's first linear is stored in, which is the type it computes in.
  public func weightType(of description: ModelDescription) -> DType {
    weightType(ofModule: description.layerPrefix(0) + description.linears(ofLayer: 0)[0].name)
  }

  /// The types that the weights of modules are stored in: linears of a model need not all have the same.
  func weightTypes(ofModules names: some Sequence<String>) -> Set<DType> {
    Set(names.lazy.map { self.weightType(ofModule: $0) })
  }

  private func weightType(ofModule name: String) -> DType { tensors["\(name).weight"]?.dtype ?? .float32 }
}
