extension CheckpointReader {
  /// Refuses a GGUF file with tensors that nobody here reads: llama.cpp does, so that it is another model there than here. What
  /// stands behind the layers is none of the model's own.
  /// - Parameters:
  ///   - names: of all tensors that are read
  ///   - layers: those of the model
  /// - Throws: ``GGUFError/Reason/unreadTensor(_:)``
  public func requireNoUnreadTensor(besides names: some Sequence<String>, layers: Int) throws(GGUFError) {
    guard let gguf else { return }
    var read: Set<String> = []
    for name in names {
      guard let tensor = tensors[name] else { continue }
      read.insert(tensor.storedName)
      if let latents = computing as? SplitLatents { read.formUnion(latents.parts(of: tensor.name)) }
    }
    for tensor in gguf.tensors where !read.contains(tensor.name) {
      let parts = tensor.name.split(separator: ".").map(String.init)
      let isOfLayer = parts.count > 2 && parts[0] == "blk"
      if isOfLayer, let layer = Int(parts[1]), layer >= layers { continue }
      if Self.tables.contains(isOfLayer ? parts[2] : parts.first ?? "") { continue }
      throw GGUFError(file: tensor.file, reason: .unreadTensor(tensor.name))
    }
  }

  /// What is computed of keys, and stands in some files all the same.
  private static let tables: Set = ["attn_rot_embd", "rope_freqs", "rope_factors_long", "rope_factors_short"]
}
