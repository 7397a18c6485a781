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
    let standard = units[unit].candidates[units[unit].standard].grid
    let model = try run.model(sequenceLength: calibration.sequenceLength) { rows in
      backend.copy(roundedToNearest(rows, standard), into: rows)
    }
    let errors = roundingErrors(of: try tokenRows(of: tokens), unit)
    return Disturbed(
      residual: backend.copy(of: try model.embed(heldOut)),
      parts: [Disturbed.Part(unit: unit, change: 1, errors: errors)])
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
    let problem = try backend.problem(gram.values, of: "the head", layer: run.description.layerCount)
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
