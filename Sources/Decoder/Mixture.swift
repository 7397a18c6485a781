import Checkpoint
import Compute
import Glibc
import Tensors

/// A mixture of experts in the place of an MLP: every token goes through some of many. Names are relative to the layer's
/// prefix.
struct MixtureDescription: Sendable {
  enum Scoring: Sendable {
    /// Over all experts.
    case softmax
    /// Each on its own.
    case sigmoid
  }

  /// Experts in groups, of which a token chooses some first.
  struct Groups: Sendable {
    let count: Int
    let chosen: Int
    /// Scores of a group whose sum it is chosen by, the best ones.
    var best = 2
  }

  /// The linear whose outputs are the experts' scores; it stays as it is.
  var router: String
  var count: Int
  /// Experts that a token goes through.
  var perToken: Int
  var scoring = Scoring.softmax
  /// A tensor of values that are added to the scores for the choice alone.
  var correction: String?
  /// Whether that tensor has a single row, and is no vector.
  var correctionIsMatrix = false
  var groups: Groups?
  /// Whether the weights of the chosen ones are divided by their sum.
  var renormalizes = true
  /// What they are divided by at least.
  var smallestSum: Float = 0
  /// A factor of the weights.
  var scale: Float = 1
  /// One expert, with `#` for its number.
  var expert: MLPDescription
  /// What every token goes through besides.
  var shared: MLPDescription?
  /// A linear of one output, whose sigmoid the shared expert's output is multiplied by; it stays as it is.
  var sharedGate: String?

  var correctionShape: [Int] { correctionIsMatrix ? [1, count] : [count] }

  func mlp(of number: Int) -> MLPDescription {
    func named(_ name: String) -> String { name.replacing("#", with: "\(number)") }
    var mlp = expert
    mlp.down = named(mlp.down)
    switch expert.expansion {
    case .gated(let gate, let up): mlp.expansion = .gated(gate: named(gate), up: named(up))
    case .fused(let name): mlp.expansion = .fused(named(name))
    case .plain(let up): mlp.expansion = .plain(up: named(up))
    }
    return mlp
  }

  /// Every expert in the order in which they run: by number, then the shared one.
  var experts: [MLPDescription] { (0..<count).map(mlp) + (shared.map { [$0] } ?? []) }

  /// The linears that decide which experts a token goes through, and how much of each counts.
  func routers(hiddenSize: Int) -> [LayerLinear] {
    [(router, count)].map { LayerLinear(name: $0, outFeatures: $1, inFeatures: hiddenSize, hasBias: false) }
      + (sharedGate.map { [LayerLinear(name: $0, outFeatures: 1, inFeatures: hiddenSize, hasBias: false)] }
        ?? [])
  }
}

/// Where tokens go: for every expert of a mixture its tokens, in order, and the factors of what it makes of them.
public struct Routing: Sendable {
  public struct Share: Sendable {
    public internal(set) var tokens: [Int] = []
    public internal(set) var factors: [Float] = []
  }

  /// By expert, in the order of ``Stage/experts``.
  public internal(set) var shares: [Share]

  public init(experts: Int) { shares = Array(repeating: Share(), count: experts) }

  /// Adds what is known of other tokens, which follow those that are known.
  /// - Parameter offset: the number of the other one's first token
  public mutating func append(_ other: Routing, offset: Int) {
    for index in shares.indices {
      shares[index].tokens += other.shares[index].tokens.map { $0 + offset }
      shares[index].factors += other.shares[index].factors
    }
  }
}

/// What a mixture has beside its experts, resident in fp32.
struct MixtureRouter {
  let description: MixtureDescription
  private let backend: any ComputeBackend
  private let weights: Matrix
  private let corrections: [Float]?
  private let sharedGate: Matrix?

  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  init(
    _ description: MixtureDescription, prefix: String, hiddenSize: Int, source: any WeightSource,
    backend: any ComputeBackend
  ) throws {
    self.description = description
    self.backend = backend
    weights = try source.matrix(
      "\(prefix)\(description.router).weight", shape: [description.count, hiddenSize], for: backend)
    corrections = try description.correction.map {
      try source.matrix("\(prefix)\($0)", shape: description.correctionShape).elements
    }
    sharedGate = try description.sharedGate.map {
      try source.matrix("\(prefix)\($0).weight", shape: [1, hiddenSize], for: backend)
    }
  }

  /// - Parameter input: what the experts read, `[tokens, hiddenSize]`
  func route(_ input: Matrix) -> Routing {
    let logits = backend.makeMatrix(rows: input.rows, columns: description.count)
    backend.linear(input, weights: weights, into: logits)
    var routing = Routing(experts: description.count + (description.shared == nil ? 0 : 1))
    backend.withHostMatrix(logits, for: .reading) { host in
      host.withSpan { span in
        for token in 0..<input.rows {
          let row = (0..<description.count).map { span[token * description.count + $0] }
          for (expert, factor) in choice(row) {
            routing.shares[expert].tokens.append(token)
            routing.shares[expert].factors.append(factor)
          }
        }
      }
    }
    if description.shared != nil {
      routing.shares[description.count].tokens = Array(0..<input.rows)
      routing.shares[description.count].factors = sharedFactors(input)
    }
    return routing
  }

  private func sharedFactors(_ input: Matrix) -> [Float] {
    guard let sharedGate else { return [Float](repeating: 1, count: input.rows) }
    let gates = backend.makeMatrix(rows: input.rows, columns: 1)
    backend.linear(input, weights: sharedGate, into: gates)
    backend.activate(gates, .sigmoid)
    return backend.download(gates).elements
  }

  /// A token's experts and their factors, the best first.
  private func choice(_ logits: [Float]) -> [(expert: Int, factor: Float)] {
    let scores: [Float]
    switch description.scoring {
    case .softmax:
      let largest = logits.max() ?? 0
      let exponentials = logits.map { exp($0 - largest) }
      let sum = exponentials.reduce(0, +)
      scores = exponentials.map { $0 / sum }
    case .sigmoid: scores = logits.map { 1 / (1 + exp(-$0)) }
    }
    var ranks = corrections.map { zip(scores, $0).map(+) } ?? scores
    if let groups = description.groups, groups.chosen < groups.count {
      let size = ranks.count / groups.count
      let best = (0..<groups.count).map { group in
        ranks[group * size..<(group + 1) * size].sorted(by: >).prefix(groups.best).reduce(0, +)
      }
      for group in Self.largest(best, best.count).dropFirst(groups.chosen) {
        for expert in group * size..<(group + 1) * size { ranks[expert] = -.infinity }
      }
    }
    let chosen = Self.largest(ranks, description.perToken)
    let sum =
      description.renormalizes
      ? max(chosen.reduce(0) { $0 + scores[$1] } + 1e-20, description.smallestSum) : 1
    return chosen.map { ($0, scores[$0] / sum * description.scale) }
  }

  /// The places of the largest values, of equal ones the first.
  private static func largest(_ values: [Float], _ count: Int) -> [Int] {
    // Few of many: every token asks for them.
    var best: [Int] = []
    for index in values.indices {
      if best.count == count, let last = best.last, values[index] <= values[last] { continue }
      best.insert(index, at: best.firstIndex { values[$0] < values[index] } ?? best.endIndex)
      if best.count > count { best.removeLast() }
    }
    return best
  }
}

// The layer's part in it.
extension DecoderLayer {
  /// Which experts the tokens of a stage's input go through.
  /// - Parameter input: the result of ``input(of:_:)``
  public func route(_ input: Matrix) -> Routing {
    guard let router else { preconditionFailure("the layer has no mixture") }
    return router.route(input)
  }

  /// What one expert, all of which is loaded, makes of some tokens between its halves, and then altogether; valid until
  /// the next call.
  public func intermediate(of expert: Stage.Expert, _ rows: Matrix) -> Matrix { expand(rows, expert.mlp) }

  public func output(of expert: Stage.Expert, intermediate: Matrix) -> Matrix {
    let output = workspace.matrix(.expertOutput, rows: intermediate.rows, columns: model.hiddenSize)
    run([expert.mlp.down], on: intermediate, into: [output])
    return output
  }

  /// A buffer for the rows that an expert reads.
  public func expertInput(rows: Int) -> Matrix {
    workspace.matrix(.expertInput, rows: rows, columns: model.hiddenSize)
  }

  /// Adds what all experts have made of a batch to the residual stream.
  /// - Parameter output: overwritten
  public func addMixture(_ output: Matrix, to state: LayerState) {
    add(output, mlpOutputNorm, to: state.residual)
    normalizeAfter(.mlp, state.residual)
    if outputScale != 1 { backend.scale(state.residual, by: outputScale) }
  }

  /// Runs a mixture, all of which is loaded, on one batch.
  func runMixture(_ stage: Stage, _ input: Matrix, _ state: LayerState) {
    let output = workspace.matrix(.blockOutput, rows: input.rows, columns: model.hiddenSize)
    backend.fill(output, with: 0)
    for (expert, share) in zip(stage.experts, route(input).shares) where !share.tokens.isEmpty {
      let rows = expertInput(rows: share.tokens.count)
      backend.withHostMatrix(input, for: .reading) { source in
        backend.withHostMatrix(rows, for: .writing) { $0.gather(share.tokens[...], from: source) }
      }
      let made = self.output(of: expert, intermediate: intermediate(of: expert, rows))
      backend.withHostMatrix(made, for: .reading) { source in
        backend.withHostMatrix(output, for: .changing) {
          $0.add(source, times: share.factors[...], toRows: share.tokens[...])
        }
      }
    }
    addMixture(output, to: state)
  }
}

/// Rows here and there of matrices in the host's memory.
extension Matrix {
  /// Sets the rows to those of another matrix.
  public func gather(_ rows: ArraySlice<Int>, from source: Matrix) {
    precondition(rows.count == self.rows && columns == source.columns, "as many rows as there are")
    for (row, place) in rows.enumerated() {
      self.rows(row..<row + 1).copy(from: source.rows(place..<place + 1))
    }
  }

  /// Adds multiples of the rows of another matrix to rows of this one.
  public func add(_ source: Matrix, times factors: ArraySlice<Float>, toRows rows: ArraySlice<Int>) {
    precondition(rows.count == source.rows && columns == source.columns, "a place for every row")
    source.withSpan { source in
      withMutableSpan { span in
        for (row, (place, factor)) in zip(rows, factors).enumerated() {
          precondition(place >= 0 && (place + 1) * columns <= span.count, "rows outside the matrix")
          for column in 0..<columns {
            unsafe span[unchecked: place * columns + column] +=
              factor * source[unchecked: row * columns + column]
          }
        }
      }
    }
  }

  /// Multiplies every row by a factor of its own.
  public func multiplyRows(by factors: ArraySlice<Float>) {
    withMutableSpan { span in
      for (row, factor) in factors.enumerated() {
        for column in row * columns..<(row + 1) * columns { unsafe span[unchecked: column] *= factor }
      }
    }
  }
}
