/// Experts that stand one upon the other in one tensor, which are read one by one: those of a stack are a part of its
/// bytes.
///
/// Of `….experts.gate_up_proj` `[experts, 2 · width, hidden]` every expert's first half is its gate; `….experts.down_proj`
/// is `[experts, hidden, width]`. Stacks of another order, such as of transposed matrices, stay as they are.
enum StackedExperts {
  /// - Parameters:
  ///   - tensors: in the order of the files
  ///   - hiddenSize: as config.json has it
  /// - Returns: the same tensors, with every expert in the place of its stack
  static func unstacked(_ tensors: [TensorInfo], hiddenSize: Int?) -> [TensorInfo] {
    guard let hiddenSize else { return tensors }
    return tensors.flatMap { tensor -> [TensorInfo] in
      guard tensor.shape.count == 3, tensor.shape.allSatisfy({ $0 > 0 }), tensor.shape[0] <= 4_096,
        tensor.scaling == nil,
        !tensor.name.hasPrefix("mtp.")
      else { return [tensor] }
      let (count, rows, columns) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
      if tensor.name.hasSuffix(".experts.gate_up_proj"), columns == hiddenSize, rows.isMultiple(of: 2) {
        return (0..<count).flatMap { expert in
          ["gate_proj", "up_proj"].enumerated().map { half, name in
            tensor.part(2 * expert + half, of: 2 * count, rows: rows / 2, named: name, expert)
          }
        }
      }
      if tensor.name.hasSuffix(".experts.down_proj"), rows == hiddenSize {
        return (0..<count).map { tensor.part($0, of: count, rows: rows, named: "down_proj", $0) }
      }
      return [tensor]
    }
  }
}

extension TensorInfo {
  /// One of several equal parts, a linear's weights.
  fileprivate func part(_ index: Int, of count: Int, rows: Int, named name: String, _ expert: Int)
    -> TensorInfo
  {
    let size = byteRange.count / count
    let start = byteRange.lowerBound + index * size
    let prefix = self.name[..<(self.name.lastIndex(of: ".") ?? self.name.endIndex)]
    return TensorInfo(
      name: "\(prefix).\(expert).\(name).weight", dtype: dtype, shape: [rows, shape[2]], file: file,
      byteRange: start..<start + size)
  }
}
