import Compute
import Quantization
import Tensors

/// The operations of a backend with memory of its own on matrices in the host's: every operation sends what it works on and
/// fetches it back, so that tests of one kind of backend are tests of the other.
public struct HostedBackend: HostMemoryBackend, ComputeBackend {
  private let base: any ComputeBackend

  public init(_ base: any ComputeBackend) { self.base = base }

  public var threads: Int { base.threads }
  public var progress: Int { base.progress }
  public var failure: (any DeviceError)? { base.failure }
  public func kernels(for operands: OperandType) -> String { base.kernels(for: operands) }

  /// The matrices of one operation in the backend's memory.
  private final class Parcel {
    private let base: any ComputeBackend
    private var twins: [(host: Matrix, twin: Matrix)] = []

    init(_ base: any ComputeBackend) { self.base = base }

    /// The twin of a matrix; two arguments that are the same matrix have the same.
    subscript(_ matrix: Matrix) -> Matrix {
      if let known = twins.first(where: {
        unsafe $0.host.pointer == matrix.pointer && $0.host.rows == matrix.rows
          && $0.host.columns == matrix.columns
      }) {
        return known.twin
      }
      let twin = base.upload(matrix)
      twins.append((matrix, twin))
      return twin
    }

    subscript(_ grid: Grid) -> Grid { grid.map { self[$0] } }

    subscript(_ factor: NearestPlaneFactor) -> NearestPlaneFactor {
      NearestPlaneFactor(
        order: factor.order, unitFactor: self[factor.unitFactor],
        conditionalVariances: factor.conditionalVariances)
    }

    subscript(_ rows: SparseRows) -> SparseRows {
      let first = rows.rowCount == 0 ? 0 : rows.entries(ofRow: 0).lowerBound
      let ends = (0..<rows.rowCount).map { rows.entries(ofRow: $0).upperBound }
      let range = first..<(ends.last ?? first)
      let twin = SparseRows(
        columns: Array(rows.columns[range]), rowOffsets: [0] + ends.map { $0 - first }, of: base)
      let values = rows.values.reshaped(rows: rows.values.columns, columns: 1).rows(range)
        .reshaped(rows: 1, columns: range.count)
      base.withHostMatrix(twin.values, for: .writing) { $0.copy(from: values) }
      twins.append((values, twin.values))
      return twin
    }

    /// Fetches everything back.
    func finish() {
      for (host, twin) in twins { base.withHostMatrix(twin, for: .reading) { host.copy(from: $0) } }
    }
  }

  private func sending<Result, Failure: Error>(
    _ body: (Parcel) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let parcel = Parcel(base)
    defer { parcel.finish() }
    return try body(parcel)
  }

  // MARK: Linear algebra

  public func multiply(
    _ a: Matrix, _ b: Matrix, transposingB: Bool, scale alpha: Float, into c: Matrix, keeping beta: Float
  ) {
    sending {
      base.multiply($0[a], $0[b], transposingB: transposingB, scale: alpha, into: $0[c], keeping: beta)
    }
  }

  public func accumulateGram(_ inputs: Matrix, operands: OperandType, into gram: Matrix) {
    sending { base.accumulateGram($0[inputs], operands: operands, into: $0[gram]) }
  }

  public func accumulateCrossProduct(_ a: Matrix, _ b: Matrix, operands: OperandType, into product: Matrix) {
    sending { base.accumulateCrossProduct($0[a], $0[b], operands: operands, into: $0[product]) }
  }

  public func quadraticForms(_ rows: Matrix, _ matrix: Matrix) -> [Double] {
    sending { base.quadraticForms($0[rows], $0[matrix]) }
  }

  public func diagonal(of matrix: Matrix) -> [Float] { sending { base.diagonal(of: $0[matrix]) } }

  public func setDiagonal(_ values: [Float], of matrix: Matrix) {
    sending { base.setDiagonal(values, of: $0[matrix]) }
  }

  public func symmetrize(_ matrix: Matrix) { sending { base.symmetrize($0[matrix]) } }

  public func fillUpperTriangle(of matrix: Matrix, inOrder order: [Int]) {
    sending { base.fillUpperTriangle(of: $0[matrix], inOrder: order) }
  }

  public func factorizeCholesky(_ matrix: Matrix) throws(ComputeError) {
    try sending { (parcel) throws(ComputeError) in try base.factorizeCholesky(parcel[matrix]) }
  }

  public func factorizePivotedCholesky(
    _ matrix: Matrix, inOrder order: [Int], leading: Int
  ) throws(ComputeError) -> [Int] {
    try sending { (parcel) throws(ComputeError) in
      try base.factorizePivotedCholesky(parcel[matrix], inOrder: order, leading: leading)
    }
  }

  public func divideUpperRowsByDiagonal(_ matrix: Matrix) {
    sending { base.divideUpperRowsByDiagonal($0[matrix]) }
  }

  public func solveCholesky(rows: Matrix, factor: Matrix) {
    sending { base.solveCholesky(rows: $0[rows], factor: $0[factor]) }
  }

  // MARK: Decoder

  public func operandType(for stored: DType) -> OperandType { base.operandType(for: stored) }

  public func makeWeights(outFeatures: Int, inFeatures: Int, operands: OperandType) -> LinearWeights {
    base.makeWeights(outFeatures: outFeatures, inFeatures: inFeatures, operands: operands)
  }

  public func store(_ rows: Matrix, firstRow: Int, in weights: LinearWeights) {
    base.store(rows, firstRow: firstRow, in: weights)
  }

  public func linear(_ inputs: Matrix, _ products: [LinearProduct]) {
    sending { parcel in
      base.linear(
        parcel[inputs],
        products.map { product in
          // fp32 weights may be a matrix of the host's; others the backend has made.
          let weights = product.weights
          let own =
            weights.operands == .float32 && weights.values.isHosted
            ? LinearWeights(parcel[weights.values]) : weights
          return LinearProduct(
            own, bias: product.bias, into: parcel[product.outputs], adding: product.isAdded)
        })
    }
  }

  public func normalize(_ inputs: Matrix, _ normalization: NormalizationParameters, into outputs: Matrix) {
    sending { base.normalize($0[inputs], normalization, into: $0[outputs]) }
  }

  public func rotate(_ states: Matrix, headDimension: Int, table: RotaryTable) {
    sending {
      base.rotate(
        $0[states], headDimension: headDimension,
        table: RotaryTable(
          cosines: $0[table.cosines], sines: $0[table.sines], isInterleaved: table.isInterleaved))
    }
  }

  public func attend(
    queries: Matrix, keys: Matrix, values: Matrix, _ parameters: AttentionParameters, into outputs: Matrix
  ) {
    sending { parcel in
      base.attend(
        queries: parcel[queries], keys: parcel[keys], values: parcel[values],
        AttentionParameters(
          heads: parameters.heads, keyValueHeads: parameters.keyValueHeads,
          headDimension: parameters.headDimension, valueDimension: parameters.valueDimension,
          sequenceLength: parameters.sequenceLength, scale: parameters.scale,
          positionBias: parameters.positionBias.map { parcel[$0] }, window: parameters.window,
          softcap: parameters.softcap, sinks: parameters.sinks, operands: parameters.operands),
        into: parcel[outputs])
    }
  }

  public func setHeads(
    of states: Matrix, headDimension: Int, part: Range<Int>, to source: Matrix, isShared: Bool
  ) {
    sending {
      base.setHeads(
        of: $0[states], headDimension: headDimension, part: part, to: $0[source], isShared: isShared)
    }
  }

  public func attendLinearly(
    _ mixed: Matrix, decays: Matrix, gates: Matrix, _ parameters: GatedDeltaParameters, into outputs: Matrix
  ) {
    sending {
      base.attendLinearly(
        $0[mixed], decays: $0[decays], gates: $0[gates], parameters, into: $0[outputs])
    }
  }

  public func activate(_ states: Matrix, _ function: ActivationFunction) {
    sending { base.activate($0[states], function) }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ActivationFunction) {
    sending { base.activateGate($0[gate], up: $0[up], function) }
  }

  public func activateGate(_ gate: Matrix, up: Matrix, _ function: ClampedSwiGLU) {
    sending { base.activateGate($0[gate], up: $0[up], function) }
  }

  public func activate(_ states: Matrix, _ function: XIELU) {
    sending { base.activate($0[states], function) }
  }

  public func add(_ x: Matrix, into y: Matrix) { sending { base.add($0[x], into: $0[y]) } }

  public func scale(_ x: Matrix, by factor: Float) { sending { base.scale($0[x], by: factor) } }

  public func softcap(_ x: Matrix, at cap: Float) { sending { base.softcap($0[x], at: cap) } }

  public func clamp(_ x: Matrix, to limit: Float) { sending { base.clamp($0[x], to: limit) } }

  public func negativeLogLikelihoods(logits: Matrix, targets: [Int32]) -> [Float] {
    sending { base.negativeLogLikelihoods(logits: $0[logits], targets: targets) }
  }

  public func divergences(of logits: Matrix, from reference: Matrix) -> [PredictionDivergence] {
    sending { base.divergences(of: $0[logits], from: $0[reference]) }
  }

  // MARK: Sweeps

  public func round(_ weights: Matrix, grid: Grid, into codes: Matrix) {
    sending { base.round($0[weights], grid: $0[grid], into: $0[codes]) }
  }

  public func dequantize(_ codes: Matrix, grid: Grid, into weights: Matrix) {
    sending { base.dequantize($0[codes], grid: $0[grid], into: $0[weights]) }
  }

  public func roundToNearestPlane(
    _ weights: Matrix, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix
  ) {
    sending { base.roundToNearestPlane($0[weights], factor: $0[factor], grid: $0[grid], into: $0[codes]) }
  }

  public func descend(
    from weights: Matrix, approximation: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid,
    isQuantizing: Bool
  ) -> Int {
    sending {
      base.descend(
        from: $0[weights], approximation: $0[approximation], gram: $0[gram], inverseDiagonal: inverseDiagonal,
        grid: $0[grid], isQuantizing: isQuantizing)
    }
  }

  public func refitScales(codes: Matrix, images: Matrix?, gradient: Matrix, gram: Matrix, grid: Grid) {
    sending { parcel in
      base.refitScales(
        codes: parcel[codes], images: images.map { parcel[$0] }, gradient: parcel[gradient],
        gram: parcel[gram],
        grid: parcel[grid])
    }
  }

  public func refitUnits(codes: Matrix, gradient: Matrix, gram: Matrix, grid: Grid) {
    sending {
      base.refitUnits(codes: $0[codes], gradient: $0[gradient], gram: $0[gram], grid: $0[grid])
    }
  }

  public func rowObjectives(of codes: Matrix, weights: Matrix, gradient: Matrix, grid: Grid) -> [Double] {
    sending {
      base.rowObjectives(of: $0[codes], weights: $0[weights], gradient: $0[gradient], grid: $0[grid])
    }
  }

  public func subtract(_ x: Matrix, from y: Matrix) { sending { base.subtract($0[x], from: $0[y]) } }

  public func rowDots(_ a: Matrix, _ b: Matrix) -> [Double] { sending { base.rowDots($0[a], $0[b]) } }

  public func searchGrid(
    _ weights: Matrix, importance: [Float], candidates: GridCandidates, into grid: Grid
  ) {
    sending { base.searchGrid($0[weights], importance: importance, candidates: candidates, into: $0[grid]) }
  }

  public func mostCorrelated(_ count: Int, gram: Matrix) -> ColumnNeighbours {
    sending {
      let own = base.mostCorrelated(count, gram: $0[gram])
      return ColumnNeighbours(
        count: own.count, columns: own.columns, gram: base.download(own.gram),
        diagonal: base.download(own.diagonal))
    }
  }

  // MARK: Sweeps with outliers

  public func roundToNearestPlane(
    _ weights: Matrix, outliers: SparseRows, factor: NearestPlaneFactor, grid: Grid, into codes: Matrix,
    remainders: Matrix
  ) {
    sending {
      base.roundToNearestPlane(
        $0[weights], outliers: $0[outliers], factor: $0[factor], grid: $0[grid], into: $0[codes],
        remainders: $0[remainders])
    }
  }

  public func roundingRemainders(_ weights: Matrix, grid: Grid, into remainders: Matrix) {
    sending { base.roundingRemainders($0[weights], grid: $0[grid], into: $0[remainders]) }
  }

  public func descendSparsely(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, inverseDiagonal: [Float], grid: Grid
  ) -> Int {
    sending {
      base.descendSparsely(
        codes: $0[codes], outliers: $0[outliers], gradient: $0[gradient], gram: $0[gram],
        inverseDiagonal: inverseDiagonal, grid: $0[grid])
    }
  }

  public func descendInPairs(
    codes: Matrix, outliers: SparseRows, gradient: Matrix, gram: Matrix, neighbours: ColumnNeighbours,
    grid: Grid
  ) -> Int {
    sending {
      base.descendInPairs(
        codes: $0[codes], outliers: $0[outliers], gradient: $0[gradient], gram: $0[gram],
        neighbours: ColumnNeighbours(
          count: neighbours.count, columns: neighbours.columns, gram: $0[neighbours.gram],
          diagonal: $0[neighbours.diagonal]),
        grid: $0[grid])
    }
  }

  public func multiplySampled(_ a: Matrix, symmetric b: Matrix, scale alpha: Float, into c: SparseRows) {
    sending { base.multiplySampled($0[a], symmetric: $0[b], scale: alpha, into: $0[c]) }
  }

  public func weighSquares(_ matrix: Matrix, by weights: [Float]) {
    sending { base.weighSquares($0[matrix], by: weights) }
  }

  public func elements(of matrix: Matrix, atLeast threshold: Float) -> [(place: Int, value: Float)] {
    sending { base.elements(of: $0[matrix], atLeast: threshold) }
  }

  public func addColumnSums(of matrix: Matrix, to sums: inout [Double]) {
    let before = sums
    sums = sending {
      var sums = before
      base.addColumnSums(of: $0[matrix], to: &sums)
      return sums
    }
  }

  public func add(_ x: SparseRows, scale alpha: Float, to y: Matrix) {
    sending { base.add($0[x], scale: alpha, to: $0[y]) }
  }

  public func gather(_ y: Matrix, into x: SparseRows) { sending { base.gather($0[y], into: $0[x]) } }

  public func clear(_ y: Matrix, at x: SparseRows) { sending { base.clear($0[y], at: $0[x]) } }

  public func roundOutliers(_ x: SparseRows) { sending { base.roundOutliers($0[x]) } }
}

extension Matrix {
  /// Whether this is memory of the process's own, and no backend's.
  fileprivate var isHosted: Bool { String(describing: type(of: memory)) == "HostMemory" }
}
