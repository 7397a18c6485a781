import Compute
import Tensors

/// A backend that notes what a decoder has it compute, and then computes gradients of that, from the last operation to the
/// first.
///
/// Decoders work in place and use their buffers again, so a gradient belongs to a piece of memory at a time: an operation that
/// has written there takes what has come to it, and leaves what is its inputs' due.
///
/// Matrices are in the host's memory. For one thread.
public final class GradientTape: DecoderOperations, HostMemoryBackend, @unchecked Sendable {
  /// Whether operations are noted.
  public var isRecording = false
  /// Gradients of the weights of norms, by the tensor they are stored in, added up until ``removeWeightGradients()``.
  public private(set) var weightGradients: [NormalizationParameters.Origin: [Double]] = [:]

  let base: any ComputeBackend
  private var adjoints: [(inout Gradients) -> Void] = []
  private var gradients: Gradients
  private let team: ThreadTeam
  /// Weights in fp32, by the place of what the backend made of them.
  private var weights: [UInt: Matrix] = [:]

  public init(_ base: any ComputeBackend) {
    precondition(base is any HostMemoryBackend, "gradients are computed in the host's memory")
    self.base = base
    team = ThreadTeam(threads: base.threads)
    gradients = Gradients(team: team)
  }

  // MARK: Gradients

  /// The gradient of what stands in `matrix` now; it is taken away.
  public func takeGradient(of matrix: Matrix) -> Matrix {
    gradients.take(matrix) ?? base.makeMatrix(rows: matrix.rows, columns: matrix.columns)
  }

  /// Sets the gradient of what stands in `matrix` now.
  public func setGradient(of matrix: Matrix, to gradient: Matrix) {
    _ = gradients.take(matrix)
    gradients.add(gradient, to: matrix)
  }

  /// Goes back through what was noted, and forgets it.
  public func runBackward() {
    while let adjoint = adjoints.popLast() { adjoint(&gradients) }
  }

  /// Forgets what has come to places that nothing written there asks for any more.
  public func removeGradients() { gradients = Gradients(team: team) }

  public func removeWeightGradients() { weightGradients = [:] }

  /// Forgets the weights of layers that are not run any more.
  public func removeWeights() { weights = [:] }

  private func note(_ adjoint: @escaping (inout Gradients) -> Void) {
    if isRecording { adjoints.append(adjoint) }
  }

  private func saved(_ matrix: Matrix) -> Matrix? { isRecording ? matrix.copy() : nil }

  // MARK: Linears

  public func operandType(for stored: DType) -> OperandType { base.operandType(for: stored) }

  public func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights {
    let made = base.makeWeights(outFeatures: outFeatures, inFeatures: inFeatures, operands: operands)
    if operands != .float32 {
      weights[made.values.place] = Matrix(rows: outFeatures, columns: inFeatures)
    }
    return made
  }

  public func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights) {
    base.store(rows, firstRow: firstRow, in: weights)
    self.weights[weights.values.place]?.rows(firstRow..<firstRow + rows.rows).copy(from: rows)
  }

  public func set(_ weights: LinearWeights, firstRow: Int, to rows: Matrix) {
    store(rows, firstRow: firstRow, in: weights)
  }

  public func linear(_ inputs: Matrix, _ products: [LinearProduct]) {
    base.linear(inputs, products)
    let parts = products.map { product in
      (
        weights: weights[product.weights.values.place] ?? product.weights.values, outputs: product.outputs,
        isAdded: product.isAdded
      )
    }
    note { [base] gradients in
      for (weights, outputs, isAdded) in parts {
        guard let gradient = isAdded ? gradients[outputs] : gradients.take(outputs) else { continue }
        gradients.update(inputs) { sum, isNew in
          base.multiply(gradient, weights, transposingB: false, scale: 1, into: sum, keeping: isNew ? 0 : 1)
        }
      }
    }
  }

  // MARK: Norms

  public func normalize(
    _ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix
  ) {
    let x = saved(inputs)
    base.normalize(inputs, normalization, into: outputs)
    guard let x else { return }
    note { [self] gradients in
      guard let gradient = gradients.take(outputs) else { return }
      let (sum, weight) = normalization.gradients(gradient, inputs: x, by: team)
      gradients.add(sum, to: inputs)
      guard let origin = normalization.origin else { return }
      let known = weightGradients[origin] ?? [Double](repeating: 0, count: weight.count)
      weightGradients[origin] = zip(known, weight).map(+)
    }
  }

  // MARK: Attention

  public func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable) {
    base.rotate(states, headDimension: headDimension, table: table)
    note { [base] gradients in
      guard let gradient = gradients[states] else { return }
      let sines = table.sines.copy()
      base.scale(sines, by: -1)
      base.rotate(
        gradient, headDimension: headDimension,
        table: RotaryTable(cosines: table.cosines, sines: sines, isInterleaved: table.isInterleaved))
    }
  }

  public func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix
  ) {
    base.attend(queries: queries, keys: keys, values: values, parameters, into: outputs)
    guard let q = saved(queries), let k = saved(keys), let v = saved(values) else { return }
    note { [base] gradients in
      guard let gradient = gradients.take(outputs) else { return }
      let adjoint = AttentionAdjoint(parameters, backend: base)
      let found = adjoint.gradients(gradient, queries: q, keys: k, values: v)
      gradients.add(found.queries, to: queries)
      gradients.add(found.keys, to: keys)
      gradients.add(found.values, to: values)
    }
  }

  public func setHeads(
    of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool
  ) {
    requireSilence("heads made of parts")
    base.setHeads(of: states, headDimension: headDimension, part: part, to: source, isShared: isShared)
  }

  public func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix
  ) {
    requireSilence("linear attention")
    base.attendLinearly(mixed, decays: decays, gates: gates, parameters, into: outputs)
  }

  // MARK: One element at a time

  public func activate(_ states: Matrix, _ function: ActivationFunction) {
    let x = saved(states)
    base.activate(states, function)
    guard let x else { return }
    note { [team] gradients in
      gradients[states]?.mapEach(x, by: team) { gradient, x in gradient * function.derivative(x).slope }
    }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction) {
    let (x, y) = (saved(gate), saved(up))
    base.activateGate(gate, up: up, function)
    guard let x, let y else { return }
    note { [team] gradients in
      guard let gradient = gradients.take(gate) else { return }
      let upwards = gradient.copy()
      upwards.mapEach(x, by: team) { gradient, x in gradient * function.derivative(x).value }
      gradient.mapEach(x, y, by: team) { gradient, x, y in gradient * y * function.derivative(x).slope }
      gradients.add(gradient, to: gate)
      gradients.add(upwards, to: up)
    }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU) {
    requireSilence("a clamped gate")
    base.activateGate(gate, up: up, function)
  }

  public func activate(_ states: Matrix, _ function: XIELU) {
    requireSilence("an xIELU")
    base.activate(states, function)
  }

  public func add(_ x: Matrix, into y: Matrix) {
    base.add(x, into: y)
    note { gradients in
      if let gradient = gradients[y] { gradients.add(gradient, to: x) }
    }
  }

  public func copy(_ source: Matrix, into destination: Matrix) {
    base.copy(source, into: destination)
    note { gradients in
      if let gradient = gradients.take(destination) { gradients.add(gradient, to: source) }
    }
  }

  public func scale(_ x: Matrix, by factor: Float) {
    base.scale(x, by: factor)
    note { [base] gradients in
      if let gradient = gradients[x] { base.scale(gradient, by: factor) }
    }
  }

  public func softcap(_ x: Matrix, at cap: Float) {
    base.softcap(x, at: cap)
    guard let y = saved(x) else { return }
    note { [team] gradients in
      gradients[x]?.mapEach(y, by: team) { gradient, y in gradient * (1 - (y / cap) * (y / cap)) }
    }
  }

  public func clamp(_ x: Matrix, to limit: Float) {
    let before = saved(x)
    base.clamp(x, to: limit)
    guard let before else { return }
    note { [team] gradients in
      gradients[x]?.mapEach(before, by: team) { gradient, x in abs(x) <= limit ? gradient : 0 }
    }
  }

  // MARK: What has no gradient

  public func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float] {
    base.negativeLogLikelihoods(logits: logits, targets: targets)
  }

  public func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence] {
    base.divergences(of: logits, from: reference)
  }

  private func requireSilence(_ what: String) {
    precondition(!isRecording, "\(what) has no gradient here: see ModelDescription.hasGradients")
  }
}

/// Gradients of what stands in pieces of memory, by where these begin.
struct Gradients {
  private var byPlace: [UInt: Matrix] = [:]
  private let team: ThreadTeam

  init(team: ThreadTeam) { self.team = team }

  /// In its own memory: what is done to it is done to the gradient.
  subscript(_ matrix: Matrix) -> Matrix? {
    byPlace[matrix.place].map { gradient in
      precondition(gradient.count == matrix.count, "a gradient is of the whole of what stands in a place")
      return gradient.reshaped(rows: matrix.rows, columns: matrix.columns)
    }
  }

  mutating func take(_ matrix: Matrix) -> Matrix? {
    defer { byPlace[matrix.place] = nil }
    return self[matrix]
  }

  mutating func add(_ gradient: Matrix, to matrix: Matrix) {
    if let sum = self[matrix] {
      sum.mapEach(gradient, by: team) { $0 + $1 }
    } else {
      byPlace[matrix.place] = gradient.copy()
    }
  }

  /// - Parameter body: adds to what it gets, or sets it where that is new
  mutating func update(_ matrix: Matrix, _ body: (_ sum: Matrix, _ isNew: Bool) -> Void) {
    if let sum = self[matrix] { return body(sum, false) }
    let sum = Matrix(rows: matrix.rows, columns: matrix.columns)
    body(sum, true)
    byPlace[matrix.place] = sum
  }
}

extension Matrix {
  fileprivate var place: UInt { unsafe UInt(bitPattern: pointer) }

  /// Elements of a piece that one thread works at.
  private static let chunk = 1 << 14

  /// self ← function(self, other), element by element.
  func mapEach(_ other: Matrix, by team: ThreadTeam, _ function: (Float, Float) -> Float) {
    precondition(count == other.count, "the shapes differ")
    inChunks(team) { range in
      for index in range {
        unsafe self.pointer[index] = function(self.pointer[index], other.pointer[index])
      }
    }
  }

  /// self ← function(self, one, other), element by element.
  func mapEach(
    _ one: Matrix, _ other: Matrix, by team: ThreadTeam, _ function: (Float, Float, Float) -> Float
  ) {
    precondition(count == one.count && count == other.count, "the shapes differ")
    inChunks(team) { range in
      for index in range {
        unsafe self.pointer[index] = function(self.pointer[index], one.pointer[index], other.pointer[index])
      }
    }
  }

  private func inChunks(_ team: ThreadTeam, _ body: (Range<Int>) -> Void) {
    let parts = (0..<count).parts(of: Self.chunk)
    team.run(chunks: parts.count) { body(parts[$0]) }
  }
}
