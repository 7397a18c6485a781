/// Linears that a checkpoint stores the other way round, `[in, out]`, which are read as all others: `[out, in]`.
///
/// transformers calls them Conv1D. Their names alone do not tell: what does is the fused projection `c_attn`, which is never
/// square and has a bias for each of its outputs.
enum TransposedLinears {
  private static let fused = ".c_attn."
  private static let names = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"]

  /// - Returns: the same tensors, the weights of such linears with their extents exchanged
  static func turned(_ tensors: [TensorInfo]) -> [TensorInfo] {
    let biases = tensors.filter { $0.name.hasSuffix(fused + "bias") && $0.shape.count == 1 }
    guard !biases.isEmpty else { return tensors }
    let outputs = Dictionary(biases.map { ($0.name.dropLast("bias".count), $0.shape[0]) }) { first, _ in first
    }
    let isTransposed = tensors.contains { tensor in
      guard tensor.name.hasSuffix(fused + "weight"), tensor.shape.count == 2,
        tensor.shape[0] != tensor.shape[1]
      else { return false }
      return outputs[tensor.name.dropLast("weight".count)] == tensor.shape[1]
    }
    guard isTransposed else { return tensors }
    return tensors.map { tensor in
      guard tensor.shape.count == 2, names.contains(where: tensor.name.hasSuffix) else { return tensor }
      return tensor.turned
    }
  }
}

extension TensorInfo {
  fileprivate var turned: TensorInfo {
    TensorInfo(
      name: name, dtype: dtype, shape: shape.reversed(), file: file, byteRange: byteRange,
      part: TensorPart(whole: name, shape: shape, first: 0, rowStride: 1, columnStride: shape[1], start: 0))
  }
}
