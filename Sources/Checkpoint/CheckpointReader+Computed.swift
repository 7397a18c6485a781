import Tensors

// Checkpoints some of whose tensors are computed of those in the files.
extension CheckpointReader {
  /// The same checkpoint with linears' weights in the place of the tensors that they are packed in.
  /// - Parameters:
  ///   - packed: the names and shapes of the weights, and of the tensors that hold them, the first of which they stand for
  ///   - unpacker: what reads them
  public convenience init(
    _ reader: CheckpointReader, unpacking packed: [(weight: String, shape: [Int], tensors: [String])],
    by unpacker: any WeightSource
  ) {
    let type = ScaledWeights.weightType(reader.configuration)
    var tensors = reader.tensors
    var places: [String: String] = [:]
    var hidden: Set<String> = []
    for (weight, shape, parts) in packed {
      guard let first = parts.first, let codes = tensors[first] else { continue }
      for part in parts { tensors[part] = nil }
      tensors[weight] = TensorInfo(
        name: weight, dtype: type, shape: shape, file: codes.file, byteRange: codes.byteRange,
        coding: .computed)
      places[first] = weight
      hidden.formUnion(parts)
    }
    self.init(
      reader, configuration: reader.configuration, tensors: tensors,
      names: reader.tensorNames.compactMap { places[$0] ?? (hidden.contains($0) ? nil : $0) }, by: unpacker)
  }

  /// The same checkpoint with other values in the place of some tensors'.
  /// - Parameters:
  ///   - changed: the tensors with other values
  ///   - added: tensors that the files do not have, each with the one that it is made of, whose shape and type it takes
  ///   - configuration: what stands for config.json
  ///   - source: what reads them
  public convenience init(
    _ reader: CheckpointReader, changing changed: Set<String>, adding added: [(name: String, of: String)],
    configuration: JSONValue, by source: any WeightSource
  ) {
    var tensors = reader.tensors
    func computed(_ tensor: TensorInfo, as name: String) -> TensorInfo {
      TensorInfo(
        name: name, dtype: tensor.dtype, shape: tensor.shape, file: tensor.file, byteRange: tensor.byteRange,
        coding: .computed)
    }
    for name in changed { tensors[name] = tensors[name].map { computed($0, as: name) } }
    for (name, origin) in added { tensors[name] = reader.tensors[origin].map { computed($0, as: name) } }
    self.init(
      reader, configuration: configuration, tensors: tensors,
      names: reader.tensorNames + added.map(\.name), by: source)
  }
}
