import Checkpoint
import Compute
import Synchronization
import Tensors

/// A checkpoint whose residual stream is rotated: x becomes x R everywhere, and the model computes what it did.
///
/// A norm's weights go into the linears that read it, so that it commutes with R; those read x R by W diag(g) R, and what
/// adds to the stream writes Rᵀ W. Embeddings and head are rotated, too, and so differ where they were one. Weights are
/// rotated as they are read; of what adds to the stream, whose rows are made of all rows, one whole linear is kept in fp32.
public final class RotatedWeights: WeightSource {
  private enum Role {
    /// The linear reads the stream behind a norm of these weights.
    case reading([Float])
    /// The linear adds to the stream.
    case adding
    /// What it adds besides.
    case bias
    /// The norm's weights are elsewhere; what is left of them.
    case norm(Float)
    /// The head, made of the tensor that it was tied to, or of its own.
    case head(of: String, [Float])
  }

  private let base: CheckpointReader
  private let rotation: ResidualRotation
  private let threads: Int
  private let roles: [String: Role]
  /// The embeddings, where the head was tied to them.
  private let tied: String?
  private let latest = Mutex<(tensor: String, values: Matrix)?>(nil)

  private static let head = "lm_head.weight"

  /// - Parameter threads: that rotate rows, which are the same by any number of them
  /// - Throws: ``DecoderError/notRotatable(_:)``
  public init(_ base: CheckpointReader, _ model: ModelDescription, threads: Int = 1) throws {
    if let obstacle = Self.obstacle(model, base) { throw DecoderError.notRotatable(obstacle) }
    self.base = base
    self.threads = threads
    rotation = ResidualRotation(size: model.hiddenSize)
    tied = model.hasTiedHead ? model.embedding.tokens : nil
    var roles: [String: Role] = [:]
    func weights(_ norm: NormDescription?, _ prefix: String) throws -> [Float] {
      guard let norm else { return [Float](repeating: 1, count: model.hiddenSize) }
      roles["\(prefix)\(norm.name).weight"] = .norm(norm.addsOne ? 0 : 1)
      return try base.norm(norm, prefix: prefix, size: model.hiddenSize).weight
    }
    roles[model.embedding.tokens] = .reading([])
    roles[tied == nil ? model.head.weights : Self.head] = .head(
      of: model.head.weights, try weights(model.head.norm, ""))
    for index in 0..<model.layerCount {
      let (layer, prefix) = (model.layers[index], model.layerPrefix(index))
      let attention = try weights(layer.attentionNorm, prefix)
      let mlp = try layer.mlpNorm.map { try weights($0, prefix) } ?? attention
      for stage in model.stages(ofLayer: index).flatMap(\.halves) {
        for linear in stage.linears {
          let module = prefix + linear.name
          switch stage.input {
          case .residual(let norm): roles["\(module).weight"] = .reading(norm == .mlp ? mlp : attention)
          case .context, .intermediate:
            roles["\(module).weight"] = .adding
            if linear.hasBias { roles["\(module).bias"] = .bias }
          case .queryLatents, .latents: break
          }
        }
      }
      // Gates of a linear attention read what it reads, routers what their experts do.
      let kept: [([LayerLinear]?, [Float])] = [
        (layer.linearAttention?.keptLinears(hiddenSize: model.hiddenSize), attention),
        (layer.mixture?.routers(hiddenSize: model.hiddenSize), mlp),
      ]
      for (linears, norm) in kept {
        for linear in linears ?? [] { roles["\(prefix)\(linear.name).weight"] = .reading(norm) }
      }
    }
    self.roles = roles
  }

  public static let obstacleOfGGUF = "a GGUF file has to keep its tensors"

  /// Why a model cannot be rotated; nil if it can.
  public static func obstacle(_ model: ModelDescription, _ checkpoint: CheckpointReader) -> String? {
    if checkpoint.gguf != nil { return obstacleOfGGUF }
    if checkpoint.configuration["text_config"] != nil {
      return "its other towers add to the same stream"
    }
    // Gemma's first version is loaded with the head of its embeddings, whatever config.json says.
    if model.modelType == "gemma" { return "vLLM takes its head for that of the embeddings" }
    if checkpoint.tensors.values.contains(where: { $0.part != nil }) {
      return "its experts are in stacks, which are not rotated yet"
    }
    let norms =
      model.layers.flatMap { [$0.attentionNorm, $0.mlpNorm] }.compactMap(\.self)
      + (model.head.norm.map { [$0] } ?? [])
    if norms.contains(where: { $0.kind != .rootMeanSquare || $0.hasBias }) {
      return "a layer norm subtracts the mean, which is another after a rotation"
    }
    let isPlain = model.layers.allSatisfy {
      $0.placement == .before && $0.attentionNorm != nil && $0.attentionOutputNorm == nil
        && $0.mlpOutputNorm == nil && $0.mixture?.norms == nil
    }
    if !isPlain || model.head.norm == nil || model.embedding.norm != nil {
      return "it has a norm whose weights no linear behind it can take"
    }
    if model.embedding.positions != nil || model.embedding.projection != nil || model.head.projection != nil {
      return "positions or projections are added to the stream"
    }
    if ResidualRotation.oddPart(of: model.hiddenSize) > ResidualRotation.largestRest {
      return "\(model.hiddenSize) features have too small a power of two"
    }
    // What another runtime may read of the stream would read it unrotated.
    let known = Set(model.requiredTensors.map(\.name))
    let unknown = checkpoint.tensors.values.filter {
      !known.contains($0.name) && $0.shape.contains(model.hiddenSize)
    }
    return unknown.map(\.name).min().map { "\($0) may read the stream, and is not known" }
  }

  /// The checkpoint with its weights so, as it will be written.
  public var checkpoint: CheckpointReader {
    var configuration = base.configuration.object ?? [:]
    // Where it says otherwise beside a head that is stored, some clients take the embeddings for it, which are others now.
    configuration["tie_word_embeddings"] = .bool(false)
    return CheckpointReader(
      base, changing: Set(roles.keys.filter { base.tensors[$0] != nil }),
      adding: tied.map { [(Self.head, $0)] } ?? [], configuration: .object(configuration), by: self)
  }

  public func shape(of tensor: String) -> [Int]? {
    if case .head(let origin, _) = roles[tensor] { return base.shape(of: origin) }
    return base.shape(of: tensor)
  }

  public func read(_ tensor: String, rows: Range<Int>, into panel: Matrix) throws {
    switch roles[tensor] {
    case .reading(let norm): try read(tensor, rows, norm, into: panel)
    case .head(let origin, let norm): try read(origin, rows, norm, into: panel)
    case .norm(let value): panel.fill(value)
    case .bias:
      try base.read(tensor, rows: rows, into: panel)
      rotation.rotate(rows: panel)
    case .adding: panel.copy(from: try whole(tensor).rows(rows))
    case nil: try base.read(tensor, rows: rows, into: panel)
    }
  }

  private func read(_ tensor: String, _ rows: Range<Int>, _ norm: [Float], into panel: Matrix) throws {
    try base.read(tensor, rows: rows, into: panel)
    if !norm.isEmpty {
      panel.withMutableSpan { span in
        for row in 0..<panel.rows {
          for column in norm.indices { span[row * norm.count + column] *= norm[column] }
        }
      }
    }
    rotation.rotate(rows: panel, threads: threads)
  }

  private func whole(_ tensor: String) throws -> Matrix {
    if let known = latest.withLock({ $0?.tensor == tensor ? $0?.values : nil }) { return known }
    guard let shape = base.shape(of: tensor) else { throw CheckpointError.unknownTensor(tensor) }
    // The one before goes first.
    latest.withLock { $0 = nil }
    let values = try base.matrix(tensor, shape: shape)
    rotation.rotate(columns: values)
    latest.withLock { $0 = (tensor, values) }
    return values
  }
}
