import Checkpoint
import Compute
import Dispatch
import Tensors

/// A model over a weight source: embeds tokens, lends one layer at a time, and ends in logits.
public final class DecoderModel {
  public let description: ModelDescription
  public let sequenceLength: Int
  private let source: any WeightSource
  private let backend: any DecoderOperations
  private let workspace: Workspace
  private let tables: PositionTables
  /// What weights and inputs of the layers' linears are rounded to; embedding and head stay fp32.
  public let operands: OperandType
  /// Brings embeddings of tokens, rows as the source has them, to what another file will have in their place.
  private let roundTokens: ((_ rows: Matrix) -> Void)?

  /// - Throws: ``DecoderError/sequenceTooLong(_:maximum:)``
  public init(
    _ description: ModelDescription, source: any WeightSource, backend: any DecoderOperations,
    sequenceLength: Int, operands: OperandType = .float32, roundTokens: ((_ rows: Matrix) -> Void)? = nil
  ) throws {
    if let maximum = description.maximumSequenceLength, sequenceLength > maximum {
      throw DecoderError.sequenceTooLong(sequenceLength, maximum: maximum)
    }
    self.description = description
    self.source = source
    self.backend = backend
    self.sequenceLength = sequenceLength
    self.operands = operands
    self.roundTokens = roundTokens
    workspace = Workspace(backend: backend)
    tables = PositionTables(
      description.layers, sequenceLength: sequenceLength, backend: backend)
  }

  /// Whether embeddings are others than the source's.
  public var roundsTokens: Bool { roundTokens != nil }

  /// A layer with all its weights.
  public func layer(_ index: Int) throws -> DecoderLayer {
    let layer = try unloadedLayer(index)
    for stage in layer.stages { try layer.load(stage) }
    return layer
  }

  /// A layer whose stages are to be loaded one by one.
  public func unloadedLayer(_ index: Int) throws -> DecoderLayer {
    try DecoderLayer(
      index: index, model: description, source: source, backend: backend, workspace: workspace,
      tables: tables, operands: operands)
  }

  /// Has the operating system read the weights of a stage's linears beside what this process does meanwhile. Those of
  /// experts are read one after the other, and too many to be read before.
  public func readAhead(_ stage: Stage, ofLayer index: Int) {
    guard stage.experts.isEmpty else { return }
    let names = (stage.linears + stage.companions).map {
      "\(description.layerPrefix(index))\($0.name).weight"
    }
    // To ask for much waits for the disk, too.
    DispatchQueue.global(qos: .utility).async { [source] in
      for name in names { source.willNeed(name) }
    }
  }

  /// The hidden states that enter the first layer, `[tokens.count, hiddenSize]`.
  /// - Parameter tokens: whole sequences, one after the other.
  /// - Throws: ``DecoderError/tokenOutsideVocabulary(token:vocabulary:)``
  public func embed(_ tokens: [Int32]) throws -> Matrix {
    let embedding = description.embedding
    var states = workspace.matrix(.embeddings, rows: tokens.count, columns: embedding.width)
    try backend.withHostMatrix(states, for: .writing) { host in
      for (row, token) in tokens.enumerated() {
        guard token >= 0 && token < description.vocabularySize else {
          throw DecoderError.tokenOutsideVocabulary(
            token: token, vocabulary: description.vocabularySize)
        }
        let index = Int(token)
        try source.read(embedding.tokens, rows: index..<index + 1, into: host.rows(row..<row + 1))
      }
    }
    roundTokens?(states)
    if embedding.scale != 1 { backend.scale(states, by: embedding.scale) }
    if let projection = embedding.projection {
      let weights = try source.matrix(
        projection, shape: [description.hiddenSize, embedding.width], for: backend)
      let projected = workspace.matrix(
        .projected, rows: tokens.count, columns: description.hiddenSize)
      backend.linear(states, weights: weights, bias: nil, into: projected)
      states = projected
    }
    if let positions = embedding.positions {
      let table = try source.matrix(
        positions.name, shape: [positions.count, description.hiddenSize], for: backend)
      let rows = table.rows(positions.offset..<positions.offset + sequenceLength)
      for start in stride(from: 0, to: tokens.count, by: sequenceLength) {
        backend.add(rows, into: states.rows(start..<start + sequenceLength))
      }
    }
    if let norm = embedding.norm {
      backend.normalize(states, try source.norm(norm, size: description.hiddenSize), into: states)
    }
    return states
  }

  /// Loads what stands between the last hidden states and the head's matrix.
  public func headInput() throws -> HeadInput {
    let head = description.head
    return HeadInput(
      backend: backend,
      workspace: workspace,
      norm: try head.norm.map { try source.norm($0, size: description.hiddenSize) },
      projection: try head.projection.map {
        try source.matrix($0, shape: [head.width, description.hiddenSize], for: backend)
      })
  }

  /// Loads what turns the last hidden states into logits.
  public func head() throws -> DecoderHead {
    let head = description.head
    return DecoderHead(
      description: head,
      input: try headInput(),
      weights: try source.matrix(
        head.weights, shape: [description.vocabularySize, head.width], for: backend),
      bias: try head.bias.map { try source.vector($0, count: description.vocabularySize) })
  }
}

/// The final norm, and what else comes before the head's matrix, resident in fp32.
public struct HeadInput {
  let backend: any DecoderOperations
  let workspace: Workspace
  let norm: NormalizationParameters?
  let projection: Matrix?

  /// What the head's matrix reads of hidden states `[tokens, hiddenSize]`, `[tokens, width]`; valid until the next call.
  public func callAsFunction(_ hiddenStates: Matrix) -> Matrix {
    var states = hiddenStates
    if let norm {
      let normalized = workspace.matrix(.normalized, rows: states.rows, columns: states.columns)
      backend.normalize(states, norm, into: normalized)
      states = normalized
    }
    if let projection {
      let projected = workspace.matrix(.headInput, rows: states.rows, columns: projection.rows)
      backend.linear(states, weights: projection, bias: nil, into: projected)
      states = projected
    }
    return states
  }
}

/// The language-model head and what comes before it, resident in fp32.
public struct DecoderHead {
  let description: HeadDescription
  let input: HeadInput
  let weights: Matrix
  let bias: [Float]?

  /// The same head with another matrix, `[vocabulary, width]`.
  public func replacingWeights(by weights: Matrix) -> DecoderHead {
    precondition(
      weights.rows == self.weights.rows && weights.columns == self.weights.columns, "another shape")
    return DecoderHead(description: description, input: input, weights: weights, bias: bias)
  }

  /// The same head behind another norm and projection.
  public func replacingInput(by input: HeadInput) -> DecoderHead {
    DecoderHead(description: description, input: input, weights: weights, bias: bias)
  }

  /// Logits `[tokens, vocabulary]` of hidden states `[tokens, hiddenSize]`; valid until the next call.
  public func logits(_ hiddenStates: Matrix) -> Matrix {
    let (backend, workspace) = (input.backend, input.workspace)
    let states = input(hiddenStates)
    let logits = workspace.matrix(.logits, rows: states.rows, columns: weights.rows)
    backend.linear(states, weights: weights, bias: bias, into: logits)
    if description.scale != 1 { backend.scale(logits, by: description.scale) }
    if let cap = description.softcap { backend.softcap(logits, at: cap) }
    return logits
  }
}
