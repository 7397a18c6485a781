import Compute
import Quantization
import Tensors

/// The operations of another backend over memory that nobody can touch outside of them: what an accelerator's is to the
/// host.
public struct GuardedBackend: ComputeBackend {
  private let base: any ComputeBackend

  /// - Parameter base: computes in the host's memory
  public init(_ base: any ComputeBackend = ReferenceBackend()) { self.base = base }

  public var threads: Int { base.threads }
  public var progress: Int { base.progress }
  public func kernels(for operands: OperandType) -> String { base.kernels(for: operands) }

  private func opening<Result, Failure: Error>(
    _ matrices: Matrix?..., body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try opening(all: matrices, body: body)
  }

  private func opening<Result, Failure: Error>(
    _ grid: Grid, _ matrices: Matrix?..., body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try opening(all: grid.matrices + matrices, body: body)
  }

  private func opening<Result, Failure: Error>(
    all matrices: [Matrix?], body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let memories = matrices.compactMap { $0 }.map { matrix in
      guard let memory = matrix.memory as? GuardedMemory else { fatalError("the matrix is the host's") }
      return memory
    }
    for memory in memories { memory.open() }
    defer { for memory in memories { memory.close() } }
    return try body()
  }

  // MARK: Storage

  public func makeMatrix(rows: Int, columns: Int) -> Matrix {
    Matrix(rows: rows, columns: columns, memory: GuardedMemory(elements: rows * columns))
  }

  /// Lends a copy, as an accelerator would.
  public func withHostMatrix<Result, Failure: Error>(
    _ matrix: Matrix, for access: HostAccess, _ body: (Matrix) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    precondition(matrix.memory is GuardedMemory, "the host has this matrix already")
    let host = Matrix(rows: matrix.rows, columns: matrix.columns)
    if access == .writing {
      host.fill(.nan)
    } else {
      opening(matrix) { host.copy(from: matrix) }
    }
    defer { if access != .reading { opening(matrix) { matrix.copy(from: host) } } }
    return try body(host)
  }

  public func copy(_ source: Matrix, into destination: Matrix) {
    opening(source, destination) { destination.copy(from: source) }
  }

  public func fill(_ matrix: Matrix, with value: Float) { opening(matrix) { matrix.fill(value) } }

  // MARK: Linear algebra

  public func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float
  ) {
    opening(a, b, c) {
      base.multiply(a, b, transposingB: transposingB, scale: alpha, into: c, keeping: beta)
    }
  }

  public func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix) {
    opening(inputs, gram) { base.accumulateGram(inputs, operands: operands, into: gram) }
  }

  public func accumulateCrossProduct(
    _ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix
  ) {
    opening(a, b, product) { base.accumulateCrossProduct(a, b, operands: operands, into: product) }
  }

  public func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double] {
    opening(rows, matrix) { base.quadraticForms(rows, matrix) }
  }

  public func diagonal(of matrix: Matrix) -> [Float] { opening(matrix) { base.diagonal(of: matrix) } }

  public func setDiagonal(_ values: [Float], of matrix: Matrix) {
    opening(matrix) { base.setDiagonal(values, of: matrix) }
  }

  public func symmetrize(_ matrix: Matrix) { opening(matrix) { base.symmetrize(matrix) } }

  public func fillUpperTriangle(of matrix: Matrix, inOrder order: [Int]) {
    opening(matrix) { base.fillUpperTriangle(of: matrix, inOrder: order) }
  }

  public func factorizeCholesky(_ matrix: Matrix) throws(ComputeError) {
    try opening(matrix) { () throws(ComputeError) in try base.factorizeCholesky(matrix) }
  }

  public func factorizePivotedCholesky(
    _ matrix: Matrix, inOrder order: [Int], leading: Int
  ) throws(ComputeError) -> [Int] {
    try opening(matrix) { () throws(ComputeError) in
      try base.factorizePivotedCholesky(matrix, inOrder: order, leading: leading)
    }
  }

  public func divideUpperRowsByDiagonal(_ matrix: Matrix) {
    opening(matrix) { base.divideUpperRowsByDiagonal(matrix) }
  }

  public func solveCholesky(rows: Matrix, factor: Matrix) {
    opening(rows, factor) { base.solveCholesky(rows: rows, factor: factor) }
  }

  // MARK: Decoder

  public func operandType(for stored: DType) -> OperandType { base.operandType(for: stored) }

  public func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights {
    let own = base.makeWeights(outFeatures: outFeatures, inFeatures: inFeatures, operands: operands)
    return LinearWeights(
      outFeatures: outFeatures, inFeatures: inFeatures, operands: operands, values: upload(own.values))
  }

  public func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights) {
    precondition(!(rows.memory is GuardedMemory), "weights come from the host")
    opening(weights.values) { base.store(rows, firstRow: firstRow, in: weights) }
  }

  public func set(_ weights: LinearWeights, firstRow: Int, to rows: Matrix) {
    opening(rows, weights.values) { base.set(weights, firstRow: firstRow, to: rows) }
  }

  public func linear(_ inputs: Matrix, _ products: [LinearProduct]) {
    for product in products {
      opening(inputs, product.weights.values, product.outputs) { base.linear(inputs, [product]) }
    }
  }

  public func normalize(
    _ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix
  ) {
    opening(inputs, outputs) { base.normalize(inputs, normalization, into: outputs) }
  }

  public func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable) {
    opening(states, table.cosines, table.sines) {
      base.rotate(states, headDimension: headDimension, table: table)
    }
  }

  public func setHeads(
    of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool
  ) {
    opening(states, source) {
      base.setHeads(of: states, headDimension: headDimension, part: part, to: source, isShared: isShared)
    }
  }

  public func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters,
    into outputs: Matrix
  ) {
    opening(queries, keys, values, parameters.positionBias, outputs) {
      base.attend(queries: queries, keys: keys, values: values, parameters, into: outputs)
    }
  }

  public func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix
  ) {
    opening(mixed, decays, gates, outputs) {
      base.attendLinearly(mixed, decays: decays, gates: gates, parameters, into: outputs)
    }
  }

  public func activate(_ states: Matrix, _ function: ActivationFunction) {
    opening(states) { base.activate(states, function) }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction) {
    opening(gate, up) { base.activateGate(gate, up: up, function) }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU) {
    opening(gate, up) { base.activateGate(gate, up: up, function) }
  }

  public func add(_ x: Matrix, into y: Matrix) { opening(x, y) { base.add(x, into: y) } }

  public func scale(_ x: Matrix, by factor: Float) { opening(x) { base.scale(x, by: factor) } }

  public func softcap(_ x: Matrix, at cap: Float) { opening(x) { base.softcap(x, at: cap) } }

  public func clamp(_ x: Matrix, to limit: Float) { opening(x) { base.clamp(x, to: limit) } }

  public func activate(_ states: Matrix, _ function: XIELU) {
    opening(states) { base.activate(states, function) }
  }

  public func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float] {
    opening(logits) { base.negativeLogLikelihoods(logits: logits, targets: targets) }
  }

  public func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence] {
    opening(logits, reference) { base.divergences(of: logits, from: reference) }
  }

  // MARK: Sweeps

  public func round(_ weights: Matrix, grid: Grid, into codes: Matrix) {
    opening(grid, weights, codes) {
      base.round(weights, grid: grid, into: codes)
    }
  }

  public func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix) {
    opening(grid, codes, weights) {
      base.dequantize(codes, grid: grid, into: weights)
    }
  }

  public func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    opening(grid, weights, factor.unitFactor, codes) {
      base.roundToNearestPlane(weights, factor: factor, grid: grid, into: codes)
    }
  }

  public func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int {
    opening(grid, weights, approximation, gram) {
      base.descend(
        from: weights, approximation: approximation, gram: gram, inverseDiagonal: inverseDiagonal,
        grid: grid, isQuantizing: isQuantizing)
    }
  }

  public func refitScales(codes: Matrix, images: Matrix?, gradient: Matrix, gram: Matrix, grid: Grid) {
    opening(grid, codes, images, gradient, gram) {
      base.refitScales(codes: codes, images: images, gradient: gradient, gram: gram, grid: grid)
    }
  }

  public func refitUnits(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid) {
    opening(grid, codes, gradient, gram) {
      base.refitUnits(codes: codes, gradient: gradient, gram: gram, grid: grid)
    }
  }

  public func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double] {
    opening(grid, codes, weights, gradient) {
      base.rowObjectives(of: codes, weights: weights, gradient: gradient, grid: grid)
    }
  }

  public func subtract(_ x: Matrix, from y: Matrix) { opening(x, y) { base.subtract(x, from: y) } }

  public func rowDots(_ a: Matrix, _ b: Matrix) -> [Double] { opening(a, b) { base.rowDots(a, b) } }

  public func searchGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    opening(grid, weights) {
      base.searchGrid(weights, importance: importance, candidates: candidates, into: grid)
    }
  }

  public func mostCorrelated(_ count: Int, gram: Matrix) -> ColumnNeighbours {
    let own = opening(gram) { base.mostCorrelated(count, gram: gram) }
    return ColumnNeighbours(
      count: own.count, columns: own.columns, gram: upload(own.gram), diagonal: upload(own.diagonal))
  }

  public func roundToNearestPlane(
    _ weights: Matrix, outliers: SparseRows, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix,
    remainders: Matrix
  ) {
    opening(grid, weights, outliers.values, factor.unitFactor, codes, remainders) {
      base.roundToNearestPlane(
        weights, outliers: outliers, factor: factor, grid: grid, into: codes, remainders: remainders)
    }
  }

  public func roundingRemainders(_ weights: Matrix, grid: Grid, into remainders: Matrix) {
    opening(grid, weights, remainders) {
      base.roundingRemainders(weights, grid: grid, into: remainders)
    }
  }

  public func descendSparsely(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float],
    grid: Grid
  ) -> Int {
    opening(grid, codes, outliers.values, gradient, gram) {
      base.descendSparsely(
        codes: codes, outliers: outliers, gradient: gradient, gram: gram,
        inverseDiagonal: inverseDiagonal, grid: grid)
    }
  }

  public func descendInPairs(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours,
    grid: Grid
  ) -> Int {
    opening(grid, codes, outliers.values, gradient, gram, neighbours.gram, neighbours.diagonal) {
      base.descendInPairs(
        codes: codes, outliers: outliers, gradient: gradient, gram: gram, neighbours: neighbours,
        grid: grid)
    }
  }

  public func multiplySampled(_ a: Matrix, symmetric b: Matrix, scale alpha: Float, into c: SparseRows) {
    opening(a, b, c.values) { base.multiplySampled(a, symmetric: b, scale: alpha, into: c) }
  }

  public func weighSquares(_ matrix: Matrix, by weights: [Float]) {
    opening(matrix) { base.weighSquares(matrix, by: weights) }
  }

  public func elements(of matrix: Matrix, atLeast threshold: Float) -> [(place: Int, value: Float)] {
    opening(matrix) { base.elements(of: matrix, atLeast: threshold) }
  }
}
