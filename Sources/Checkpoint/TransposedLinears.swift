/// Linears that a checkpoint stores the other way round, `[in, out]`, which are read as all others: `[out, in]`.
///
/// What transformers calls Conv1D: GPT-2's, and nobody's since.
enum TransposedLinears {
  private static let modelTypes: Set = ["gpt2"]
  private static let names = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"]

  /// - Returns: the same tensors, the weights of such linears with their extents exchanged
  static func turned(_ tensors: [TensorInfo], configuration: JSONValue) -> [TensorInfo] {
    guard let type = configuration["model_type"]?.string, modelTypes.contains(type) else { return tensors }
    return tensors.map { tensor in
      guard tensor.shape.count == 2, names.contains(where: tensor.name.hasSuffix) else { return tensor }
      return tensor.turned
    }
  }
}

extension TensorInfo {
  fileprivate var turned: TensorInfo {
    var turned = TensorInfo(
      name: name, dtype: dtype, shape: shape.reversed(), file: file, byteRange: byteRange, scaling: scaling)
    turned.isTransposed = true
    return turned
  }
}
