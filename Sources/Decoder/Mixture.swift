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
    /// The best two, each by its share among those that are near it (SparseMixer, arXiv 2310.00811).
    /// - Parameter jitter: half of how much less, as a part, counts as near
    case sparseMixer(jitter: Float)
  }

  /// Norms of what reads the residual stream beside the experts, which do so through the layer's own, and of what they and
  /// the shared one make, before both are added.
  struct Norms: Sendable {
    /// Of what the router reads, without weights, and a tensor of factors of it besides the root of its width.
    var routerEpsilon: Float
    var routerFactors: String
    /// Of what the shared expert reads.
    var shared: NormDescription
    var routedOutput: NormDescription
    var sharedOutput: NormDescription

    var all: [NormDescription] { [shared, routedOutput, sharedOutput] }
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
  var routerHasBias = false
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
  /// A tensor of factors of the weights, one of every expert.
  var expertFactors: String?
  /// Whether the weights multiply what the experts read, and not what they make.
  var scalesInputs = false
  var norms: Norms?
  /// What loads experts by such names.
  var loaders = ExpertLoaders.all
  /// One expert, with `#` for its number.
  var expert: MLPDescription
  /// What every token goes through besides.
  var shared: MLPDescription?
  /// A linear of one output, whose sigmoid the shared expert's output is multiplied by; it stays as it is.
  var sharedGate: String?

  var correctionShape: [Int] { correctionIsMatrix ? [1, count] : [count] }

  /// What a layer has of it beside linears.
  func otherTensors(hiddenSize: Int) -> [(name: String, shape: [Int])] {
    var tensors: [(name: String, shape: [Int])] = []
    if routerHasBias { tensors.append(("\(router).bias", [count])) }
    if let correction { tensors.append((correction, correctionShape)) }
    if let expertFactors { tensors.append((expertFactors, [count])) }
    guard let norms else { return tensors }
    return tensors + [(norms.routerFactors, [hiddenSize])]
      + norms.all.flatMap { $0.tensors(prefix: "", size: hiddenSize) }
  }

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
    [LayerLinear(name: router, outFeatures: count, inFeatures: hiddenSize, hasBias: routerHasBias)]
      + (sharedGate.map { [LayerLinear(name: $0, outFeatures: 1, inFeatures: hiddenSize, hasBias: false)] }
        ?? [])
  }
}

/// Where tokens go: for every expert of a mixture its tokens, in order, and the factors of what it makes of them.
public struct Routing: Sendable {
  public struct Share: Sendable {
    public internal(set) var tokens: [Int] = []
    public internal(set) var factors: [Float] = []

    public init(tokens: [Int] = [], factors: [Float] = []) {
      self.tokens = tokens
      self.factors = factors
    }

    /// Other tokens, as if they were of these.
    public func mean(of tokens: [Int]) -> Share {
      Share(tokens: tokens, factors: [Float](repeating: meanEnergy.squareRoot(), count: tokens.count))
    }

    /// Of the factors' squares; 1 if there are none.
    public var meanEnergy: Float {
      factors.isEmpty ? 1 : factors.reduce(0) { $0 + $1 * $1 } / Float(factors.count)
    }
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
  private let backend: any DecoderOperations
  private let weights: Matrix
  private let bias: [Float]?
  private let corrections: [Float]?
  private let expertFactors: [Float]?
  private let sharedGate: Matrix?
  private let norm: NormalizationParameters?

  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  init(
    _ description: MixtureDescription, prefix: String, hiddenSize: Int, source: any WeightSource,
    backend: any DecoderOperations
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
    bias =
      description.routerHasBias
      ? try source.vector("\(prefix)\(description.router).bias", count: description.count) : nil
    expertFactors = try description.expertFactors.map {
      try source.vector("\(prefix)\($0)", count: description.count)
    }
    norm = try description.norms.map { norms in
      let root = Float(hiddenSize).squareRoot()
      let factors = try source.vector("\(prefix)\(norms.routerFactors)", count: hiddenSize)
      return NormalizationParameters(
        kind: .rootMeanSquare, weight: factors.map { $0 / root }, epsilon: norms.routerEpsilon)
    }
  }

  /// - Parameter input: the result of ``DecoderLayer/mixtureInput(of:_:)``
  func route(_ input: Matrix) -> Routing {
    let logits = backend.makeMatrix(rows: input.rows, columns: description.count)
    if let norm {
      let normalized = backend.makeMatrix(rows: input.rows, columns: input.columns)
      backend.normalize(input, norm, into: normalized)
      backend.linear(normalized, weights: weights, into: logits)
    } else {
      backend.linear(input, weights: weights, into: logits)
    }
    var routing = Routing(experts: description.count + (description.shared == nil ? 0 : 1))
    backend.withHostMatrix(logits, for: .reading) { host in
      host.withSpan { span in
        for token in 0..<input.rows {
          let row = (0..<description.count).map {
            span[token * description.count + $0] + (bias?[$0] ?? 0)
          }
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
    case .sparseMixer(let jitter):
      return Self.mixSparsely(logits, jitter: jitter).map { ($0.expert, $0.factor * description.scale) }
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
    return chosen.map { ($0, scores[$0] / sum * description.scale * (expertFactors?[$0] ?? 1)) }
  }

  /// The best of all and the best of the others, each by its share among those that are near it.
  private static func mixSparsely(_ logits: [Float], jitter: Float) -> [(expert: Int, factor: Float)] {
    let chosen = largest(logits, 2)
    return chosen.enumerated().map { place, expert in
      let best = logits[expert]
      let first = place == 0 ? nil : chosen[0]
      let sum = logits.indices.reduce(0 as Float) { sum, other in
        let score = logits[other]
        let isNear = (best - score) / max(abs(score), best) <= 2 * jitter
        return other == first || !isNear ? sum : sum + exp(score - best)
      }
      return (expert, 1 / sum)
    }
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

/// The norms of a mixture that has some of its own.
struct MixtureNorms {
  let shared: NormalizationParameters
  let routedOutput: NormalizationParameters
  let sharedOutput: NormalizationParameters

  init(_ norms: MixtureDescription.Norms, prefix: String, hiddenSize: Int, source: any WeightSource) throws {
    shared = try source.norm(norms.shared, prefix: prefix, size: hiddenSize)
    routedOutput = try source.norm(norms.routedOutput, prefix: prefix, size: hiddenSize)
    sharedOutput = try source.norm(norms.sharedOutput, prefix: prefix, size: hiddenSize)
  }
}

// The layer's part in it.
extension DecoderLayer {
  /// What the experts' rows are gathered from, and the router reads: the stage's input, or the residual stream where there
  /// are norms of its own.
  public func mixtureInput(of stage: Stage, _ state: LayerState) -> Matrix {
    mixtureNorms == nil ? input(of: stage, state) : state.residual
  }

  /// Which experts the tokens of a stage's input go through.
  /// - Parameter input: the result of ``mixtureInput(of:_:)``
  public func route(_ input: Matrix) -> Routing {
    guard let router else { preconditionFailure("the layer has no mixture") }
    return router.route(input)
  }

  /// Whether a token's factors multiply what an expert reads, and not what it makes.
  public func scalesInput(of expert: Stage.Expert) -> Bool {
    expert.number != nil && description.mixture?.scalesInputs == true
  }

  /// Whether what an expert reads is another thing than what the others read.
  public func hasOwnInput(_ expert: Stage.Expert) -> Bool { expert.number == nil && mixtureNorms != nil }

  /// Makes of gathered rows what an expert reads.
  /// - Parameter factors: of its tokens
  public func prepare(_ rows: Matrix, for expert: Stage.Expert, factors: ArraySlice<Float>) {
    if let mixtureNorms, let norm = expert.number == nil ? mixtureNorms.shared : mlpNorm {
      backend.normalize(rows, norm, into: rows)
    }
    if scalesInput(of: expert) {
      backend.withHostMatrix(rows, for: .changing) { $0.multiplyRows(by: factors) }
    }
  }

  /// What one expert, all of which is loaded, makes of some tokens between its halves, and then altogether; valid until
  /// the next call.
  public func intermediate(of expert: Stage.Expert, _ rows: Matrix) -> Matrix { expand(rows, expert.mlp) }

  public func output(of expert: Stage.Expert, intermediate: Matrix) -> Matrix {
    let output = workspace.matrix(.expertOutput, rows: intermediate.rows, columns: model.hiddenSize)
    run([expert.mlp.down], on: intermediate, into: [output])
    if expert.number == nil, let norm = mixtureNorms?.sharedOutput {
      backend.normalize(output, norm, into: output)
    }
    return output
  }

  /// A buffer for the rows that an expert reads.
  public func expertInput(rows: Int) -> Matrix {
    workspace.matrix(.expertInput, rows: rows, columns: model.hiddenSize)
  }

  /// Normalizes what all experts but the shared one, which follows, have made together, where there is a norm of it.
  /// - Parameter sums: in the host's memory
  public func normalizeRouted(_ sums: Matrix, before expert: Stage.Expert) {
    guard expert.number == nil, let norm = mixtureNorms?.routedOutput else { return }
    let rows = expertInput(rows: sums.rows)
    backend.withHostMatrix(rows, for: .writing) { $0.copy(from: sums) }
    backend.normalize(rows, norm, into: rows)
    backend.withHostMatrix(rows, for: .reading) { sums.copy(from: $0) }
  }

  /// Adds what an expert has made of tokens to what others have.
  /// - Parameters:
  ///   - share: its tokens and factors
  ///   - range: those that `made` is of
  ///   - sums: `[tokens, hiddenSize]` in the host's memory
  public func add(
    _ made: Matrix, of expert: Stage.Expert, _ share: Routing.Share, _ range: Range<Int>, to sums: Matrix
  ) {
    let factors =
      scalesInput(of: expert) ? [Float](repeating: 1, count: range.count)[...] : share.factors[range]
    backend.withHostMatrix(made, for: .reading) {
      sums.add($0, times: factors, toRows: share.tokens[range])
    }
  }

  /// Adds what all experts have made of a batch to the residual stream.
  /// - Parameter output: overwritten
  public func addMixture(_ output: Matrix, to state: LayerState) {
    add(output, mlpOutputNorm, to: state.residual)
    normalizeAfter(.mlp, state.residual)
    if outputScale != 1 { backend.scale(state.residual, by: outputScale) }
  }

  /// Runs a mixture, all of which is loaded, on one batch.
  /// - Parameter input: the stage's
  func runMixture(_ stage: Stage, _ input: Matrix, _ state: LayerState) {
    let input = mixtureNorms == nil ? input : state.residual
    let output = workspace.matrix(.blockOutput, rows: input.rows, columns: model.hiddenSize)
    let sums = Matrix(rows: input.rows, columns: model.hiddenSize)
    for (expert, share) in zip(stage.experts, route(input).shares) where !share.tokens.isEmpty {
      normalizeRouted(sums, before: expert)
      let rows = expertInput(rows: share.tokens.count)
      backend.withHostMatrix(input, for: .reading) { source in
        backend.withHostMatrix(rows, for: .writing) { $0.gather(share.tokens[...], from: source) }
      }
      prepare(rows, for: expert, factors: share.factors[...])
      let made = self.output(of: expert, intermediate: intermediate(of: expert, rows))
      add(made, of: expert, share, 0..<share.tokens.count, to: sums)
    }
    backend.withHostMatrix(output, for: .writing) { $0.copy(from: sums) }
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
