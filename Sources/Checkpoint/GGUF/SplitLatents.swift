import Tensors

/// The matrices that make keys and values of latents, where a GGUF file has them in two stacks, a matrix a head: for keys
/// `attn_k_b`, `[heads, latents, features]`, turned, and for values `attn_v_b`, `[heads, features, latents]`. In the
/// checkpoint they are one, `kv_b_proj`, with the keys of every head before its values.
///
/// It is put together as it is read, and nothing is quantized in its place: what a file of blocks has are rows of a head's
/// key features, which read no latents.
final class SplitLatents: WeightSource {
  /// What one matrix is made of.
  private struct Stacks {
    let keys: TensorInfo
    let values: TensorInfo

    var heads: Int { keys.shape[0] }
    var latents: Int { keys.shape[1] }
    var headFeatures: Int { keys.shape[2] + values.shape[1] }
  }

  private let reader: CheckpointReader
  private let stacks: [String: Stacks]

  /// - Parameter reader: of the file, with its stacks under the names that they have there
  init(_ reader: CheckpointReader, layers: String) {
    self.reader = reader
    var stacks: [String: Stacks] = [:]
    for tensor in reader.tensors.values
    where tensor.name.hasPrefix(Self.prefix) && tensor.name.hasSuffix(Self.keys) {
      let layer = tensor.name.dropFirst(Self.prefix.count).dropLast(Self.keys.count)
      guard let values = reader.tensors["\(Self.prefix)\(layer)\(Self.values)"],
        tensor.shape.count == 3, values.shape.count == 3, tensor.shape[0] == values.shape[0],
        tensor.shape[1] == values.shape[2]
      else { continue }
      let name = "\(layers)\(layer).self_attn.kv_b_proj.weight"
      if reader.tensors[name] == nil { stacks[name] = Stacks(keys: tensor, values: values) }
    }
    self.stacks = stacks
  }

  private static let (prefix, keys, values) = ("blk.", ".attn_k_b.weight", ".attn_v_b.weight")

  /// The names that the stacks of a matrix have in the file.
  func parts(of tensor: String) -> [String] {
    stacks[tensor].map { [$0.keys.name, $0.values.name] } ?? []
  }

  /// The matrices, each with the tensor whose place in the files stands for its own.
  var tensors: [TensorInfo] {
    stacks.map { name, stack in
      TensorInfo(
        name: name, dtype: stack.keys.dtype, shape: [stack.heads * stack.headFeatures, stack.latents],
        file: stack.keys.file, byteRange: stack.keys.byteRange, coding: .computed)
    }
  }

  func shape(of tensor: String) -> [Int]? {
    stacks[tensor].map { [$0.heads * $0.headFeatures, $0.latents] }
  }

  func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
    guard let stack = stacks[tensor] else { throw CheckpointError.unknownTensor(tensor) }
    let (keyFeatures, latents) = (stack.keys.shape[2], stack.latents)
    // A head of a stack counts as one row.
    let keys = Matrix(rows: 1, columns: latents * keyFeatures)
    let values = Matrix(rows: 1, columns: stack.values.shape[1] * latents)
    var head: Int?
    for (place, row) in rows.enumerated() {
      let (own, feature) = row.quotientAndRemainder(dividingBy: stack.headFeatures)
      if head != own {
        try reader.read(stack.keys.name, rows: own..<own + 1, into: keys)
        try reader.read(stack.values.name, rows: own..<own + 1, into: values)
        head = own
      }
      for latent in 0..<latents {
        panel[place, latent] =
          feature < keyFeatures
          ? keys[0, latent * keyFeatures + feature]
          : values[0, (feature - keyFeatures) * latents + latent]
      }
    }
  }

  func willNeed(_ tensor: String) { stacks[tensor].map { reader.willNeed($0.keys.name) } }

  func forget(_ tensor: String) { stacks[tensor].map { reader.forget($0.keys.name) } }
}
