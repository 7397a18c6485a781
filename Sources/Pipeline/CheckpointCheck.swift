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
  /// The type that the model's linears are stored in, which is the type it computes in.
  public func weightType(of description: ModelDescription) -> DType {
    let name = description.layerPrefix(0) + description.linears(ofLayer: 0)[0].name + ".weight"
    return tensors[name]?.dtype ?? .float32
  }
}
