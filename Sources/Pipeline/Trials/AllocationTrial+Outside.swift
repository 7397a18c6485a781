import Calibration
import Checkpoint
import Compute
import Decoder
import Quantization
import Solvers
import Tensors

// What quantized embeddings do, and a quantized head.
extension AllocationTrial {
  /// The states behind embeddings that are rounded; nil if those are not to be chosen.
  func embeddings() throws -> Disturbed? {
    let tokens = run.description.embedding.tokens
    guard let unit = unitOfModule[String(tokens.dropLast(".weight".count))] else { return nil }
    let candidates = units[unit].candidates
    let standard = candidates[units[unit].standard].grid
    let model = try DecoderModel(
      run.description, source: run.checkpoint, backend: backend, sequenceLength: calibration.sequenceLength,
      operands: run.operands
    ) { rows in backend.copy(roundedToNearest(rows, standard), into: rows) }
    let sample = try tokenRows(of: tokens)
    let errors = candidates.map { candidate in
      let rounded = roundedToNearest(sample, candidate.grid)
      backend.subtract(sample, from: rounded)
      return backend.rowDots(rounded, rounded).reduce(0, +)
    }
    return Disturbed(
      states: try TrialStates(model, heldOut, backend: backend),
      parts: [(unit, 1, errors)])
  }

  /// Rows of a matrix with one for every token, evenly spaced.
  private func tokenRows(of tensor: String) throws -> Matrix {
    guard let shape = run.checkpoint.shape(of: tensor) else { throw PipelineError.missingTensor(tensor) }
    let (count, width) = (shape[0], shape[1])
    let wanted = min(Self.comparedHeadRows, count)
    let rows = Matrix(rows: wanted, columns: width)
    for index in 0..<wanted {
      let row = index * count / wanted
      try run.checkpoint.read(tensor, rows: row..<row + 1, into: rows.rows(index..<index + 1))
    }
    return backend.upload(rows)
  }

  /// The head with another matrix, and how its error changes with the grid; nil if that is not to be chosen.
  func disturbedHead(
    _ model: DecoderModel, _ head: DecoderHead, _ gathered: TrialStates
  ) throws -> (unit: Int, head: DecoderHead, errors: [Double])? {
    let tensor = run.description.head.weights
    let name = String(tensor.dropLast(".weight".count))
    guard let unit = unitOfModule[name],
      let linear = run.outside.first(where: { $0.name == name })
    else { return nil }
    let treatment = standard(
      run.head?.treatment
        ?? Treatment(gridFormat: units[unit].candidates[0].grid, solver: RoundToNearest(searchesGrid: true)),
      unit)
    let gram = GramMatrix(
      inFeatures: run.description.head.width, operands: run.operands, backend: backend)
    gram.accumulate(try model.headInput()(gathered.residual))
    try backend.requireFiniteEnergies(gram.values, of: "the head", layer: run.description.layerCount)
    let problem = LayerProblem(gram: gram.values, backend: backend)
    let trials = try GridComparison(
      try tokenRows(of: tensor), units[unit].candidates.map(\.grid), treatment,
      problem, backend)
    let errors = try trials.errors()
    let weights = backend.makeMatrix(rows: linear.outFeatures, columns: linear.inFeatures)
    _ = try run.solve(Recipe.Head(linear: linear, treatment: treatment), problem) { rows, firstRow in
      backend.copy(
        backend.upload(rows.dequantized()), into: weights.rows(firstRow..<firstRow + rows.outFeatures))
    }
    return (unit, head.replacingWeights(by: weights), errors)
  }
}
