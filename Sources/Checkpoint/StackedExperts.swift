import Tensors

/// Experts that stand one upon the other in one tensor, which are read one by one: those of a stack are a part of its
/// bytes.
enum StackedExperts {
  /// How a family stacks its experts.
  private enum Order {
    /// `gate_up_proj` `[experts, 2 · width, hidden]`, every expert's first half the gate; `down_proj`
    /// `[experts, hidden, width]`.
    case rows
    /// `gate_up_proj` `[experts, hidden, 2 · width]` and `down_proj` `[experts, width, hidden]`; gates stand before what they
    /// gate, or, interleaved, each beside it.
    case columns(interleaved: Bool)
  }

  /// A stack's linears.
  private struct Stack {
    /// What follows the name of the module that has it.
    let name: String
    /// The names of an expert's linears, which take its place, with `#` for the number.
    let parts: [String]
    var order = Order.rows

    /// The name of a tensor of one expert.
    /// - Parameters:
    ///   - kind: `weight` or `bias`
    ///   - tensor: the stack's
    ///   - ending: what its name ends in beside the stack's
    func tensor(_ part: String, _ expert: Int, _ kind: String, of tensor: String, ending: String = "")
      -> String
    {
      let module = tensor.dropLast(name.count + ending.count)
      return "\(module)\(part.replacing("#", with: "\(expert)")).\(kind)"
    }
  }

  private static func stacks(modelTypes: [String]) -> [Stack] {
    if modelTypes.contains("granitemoe") {
      return [
        Stack(name: "input_linear.weight", parts: ["experts.#.w1", "experts.#.w3"]),
        Stack(name: "output_linear.weight", parts: ["experts.#.w2"]),
      ]
    }
    let order: Order =
      if modelTypes.contains("gpt_oss") {
        .columns(interleaved: true)
      } else if modelTypes.contains("llama4_text") {
        .columns(interleaved: false)
      } else {
        .rows
      }
    return [
      Stack(
        name: "experts.gate_up_proj", parts: ["experts.#.gate_proj", "experts.#.up_proj"], order: order),
      Stack(name: "experts.down_proj", parts: ["experts.#.down_proj"], order: order),
    ]
  }

  /// Beyond any model.
  private static let mostExperts = 4_096

  /// - Parameters:
  ///   - tensors: in the order of the files
  ///   - configuration: config.json
  /// - Returns: the same tensors, with every expert in the place of its stack
  /// - Throws: ``CheckpointError/missingScale(tensor:)``, or ``CheckpointError/wrongShape(tensor:found:expected:)`` of scales
  static func unstacked(
    _ tensors: [TensorInfo], configuration: JSONValue
  ) throws(CheckpointError) -> [TensorInfo] {
    let text = configuration["text_config"] ?? configuration
    guard let hiddenSize = (text["hidden_size"] ?? configuration["hidden_size"])?.int else { return tensors }
    let stacks = stacks(modelTypes: [configuration, text].compactMap { $0["model_type"]?.string })
    var unstacked: [TensorInfo] = []
    for tensor in tensors {
      unstacked += try experts(of: tensor, stacks, hiddenSize: hiddenSize, among: tensors) ?? [tensor]
    }
    return unstacked
  }

  /// - Returns: nil for a tensor that is no stack
  private static func experts(
    of tensor: TensorInfo, _ stacks: [Stack], hiddenSize: Int, among all: [TensorInfo]
  ) throws(CheckpointError) -> [TensorInfo]? {
    guard tensor.shape.allSatisfy({ $0 > 0 }), let count = tensor.shape.first, count <= mostExperts,
      !tensor.name.hasPrefix("mtp.")
    else { return nil }
    for stack in stacks {
      func isNamed(_ ending: String) -> Bool { tensor.name.hasSuffix(".\(stack.name)\(ending)") }
      if isNamed("_blocks"), tensor.shape.count == 4, tensor.dtype == .uint8 {
        return try microscaled(tensor, stack, hiddenSize: hiddenSize, among: all)
      }
      guard tensor.dtype.isSupportedFloat else { continue }
      if isNamed(""), tensor.shape.count == 3 { return matrices(of: tensor, stack, hiddenSize: hiddenSize) }
      if isNamed("_bias"), tensor.shape.count == 2 { return biases(of: tensor, stack) }
    }
    return nil
  }

  /// - Returns: nil for a stack of other extents
  private static func matrices(of tensor: TensorInfo, _ stack: Stack, hiddenSize: Int) -> [TensorInfo]? {
    let (count, parts) = (tensor.shape[0], stack.parts.count)
    let (stackedRows, stackedColumns) = (tensor.shape[1], tensor.shape[2])
    var (outputs, inputs) = (stackedRows, stackedColumns)
    if case .columns = stack.order { swap(&outputs, &inputs) }
    guard (parts == 2 ? inputs : outputs) == hiddenSize, outputs.isMultiple(of: parts) else { return nil }
    let rows = outputs / parts
    let size = stackedRows * stackedColumns
    return (0..<count).flatMap { expert in
      stack.parts.enumerated().map { index, name in
        switch stack.order {
        case .rows:
          let first = expert * size + index * rows * inputs
          return tensor.part(
            stack.tensor(name, expert, "weight", of: tensor.name), shape: [rows, inputs],
            elements: first..<first + rows * inputs, first: first, rowStride: inputs, columnStride: 1)
        case .columns(let isInterleaved):
          return tensor.part(
            stack.tensor(name, expert, "weight", of: tensor.name), shape: [rows, inputs],
            elements: expert * size..<(expert + 1) * size,
            first: expert * size + index * (isInterleaved ? 1 : rows), rowStride: isInterleaved ? parts : 1,
            columnStride: outputs)
        }
      }
    }
  }

  /// Of four-bit floats, two to a byte, `[experts, outputs, inputs / 32, 16]`, with scales of 8 bits
  /// `[experts, outputs, inputs / 32]`: every output is a row, gates and what they gate one beside the other, in whatever
  /// order the family stacks them unpacked.
  /// - SeeAlso: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
  private static func microscaled(
    _ tensor: TensorInfo, _ stack: Stack, hiddenSize: Int, among all: [TensorInfo]
  ) throws(CheckpointError) -> [TensorInfo]? {
    let (count, outputs, blocks) = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
    let (parts, inputs) = (stack.parts.count, blocks * MicroscaledRows.blockSize)
    guard (parts == 2 ? inputs : outputs) == hiddenSize, outputs.isMultiple(of: parts),
      tensor.shape[3] == MicroscaledRows.blockSize / 2
    else { return nil }
    let whole = String(tensor.name.dropLast("_blocks".count))
    guard let scales = all.first(where: { $0.name == whole + "_scales" }) else {
      throw .missingScale(tensor: tensor.name)
    }
    let expected = [count, outputs, blocks]
    guard scales.shape == expected, scales.dtype == .uint8 else {
      throw .wrongShape(tensor: scales.name, found: scales.shape, expected: expected)
    }
    let size = outputs * inputs
    return (0..<count).flatMap { expert in
      stack.parts.enumerated().map { index, name in
        let start = tensor.byteRange.lowerBound + expert * size / 2
        return TensorInfo(
          name: stack.tensor(name, expert, "weight", of: whole), dtype: .bfloat16,
          shape: [outputs / parts, inputs], file: tensor.file, byteRange: start..<start + size / 2,
          coding: .microscaled(
            MicroscaledRows(
              scales: scales.name, firstScaleRow: expert * outputs, first: index, stride: parts)),
          part: TensorPart(
            whole: whole, shape: [count, inputs, outputs], first: expert * size + index, rowStride: parts,
            columnStride: outputs, start: expert * size))
      }
    }
  }

  /// `[experts, outputs]`
  private static func biases(of tensor: TensorInfo, _ stack: Stack) -> [TensorInfo]? {
    let (count, outputs, parts) = (tensor.shape[0], tensor.shape[1], stack.parts.count)
    guard outputs.isMultiple(of: parts) else { return nil }
    var isInterleaved = false
    if case .columns(interleaved: true) = stack.order { isInterleaved = true }
    return (0..<count).flatMap { expert in
      stack.parts.enumerated().map { index, name in
        let first = expert * outputs + index * (isInterleaved ? 1 : outputs / parts)
        return tensor.part(
          stack.tensor(name, expert, "bias", of: tensor.name, ending: "_bias"), shape: [outputs / parts],
          elements: expert * outputs..<(expert + 1) * outputs, first: first, rowStride: 0,
          columnStride: isInterleaved ? parts : 1)
      }
    }
  }
}

extension TensorInfo {
  /// One expert's.
  /// - Parameters:
  ///   - elements: of the stack, that hold it
  fileprivate func part(
    _ name: String, shape: [Int], elements: Range<Int>, first: Int, rowStride: Int, columnStride: Int
  ) -> TensorInfo {
    let width = dtype.byteWidth
    return TensorInfo(
      name: name, dtype: dtype, shape: shape, file: file,
      byteRange: byteRange.lowerBound + elements.lowerBound * width..<byteRange.lowerBound + elements
        .upperBound
        * width,
      part: TensorPart(
        whole: self.name, shape: self.shape, first: first, rowStride: rowStride, columnStride: columnStride,
        start: elements.lowerBound))
  }
}
