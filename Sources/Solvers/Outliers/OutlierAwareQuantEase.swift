import Compute
import Quantization
import Tensors

/// QuantEase with outliers (arXiv 2309.01885, section 4): W ≈ Ŵ + Ĥ, Ŵ on the grid and Ĥ a few 16-bit floats.
///
/// ``OutlierSettings/Method/paper(rounds:)`` alternates as published. ``OutlierSettings/Method/standard``
/// finds grid and outliers together, rounds to the nearest plane with the outliers left free, and descends on
/// both. There a row that comes out worse than `base` makes it takes that row's codes, with outliers of zero
/// that descend from there: no row ends above the solver without outliers.
public struct OutlierAwareQuantEase: LinearQuantizer {
  public let name = "quantease"
  public let settings: OutlierSettings
  /// The solver without outliers.
  public let base: QuantEase

  public init(_ settings: OutlierSettings = OutlierSettings(), base: QuantEase = QuantEase()) {
    self.settings = settings
    self.base = base
  }

  public func damping(for format: GridFormat) -> Float {
    settings.method == .standard ? base.settings.damping.share(for: format, besideOutliers: true) : 0
  }

  public func factorize(_ problem: LayerProblem) throws(SolverError) {
    // The published algorithm takes none.
    if settings.method == .standard { try base.factorize(problem) }
  }

  public func draft(
    _ weights: LinearRows, problem: LayerProblem, format: GridFormat, backend: any ComputeBackend,
    panelRows: Int
  ) throws -> LinearDraft {
    // The published algorithm takes no factor.
    guard settings.method == .standard else {
      return LinearDraft(
        format, outFeatures: weights.outFeatures, inFeatures: weights.inFeatures, backend: backend)
    }
    // First what is compared with, while the factor is there that the search for outliers begins with.
    let plain = try base.draft(
      weights, problem: problem, format: format, backend: backend, panelRows: panelRows)
    let candidates = base.settings.searchesGrid ? GridCandidates.standard(format) : .range
    let draft = try OutlierSearch(
      settings: settings, candidates: candidates, weights: weights, problem: problem, format: format,
      backend: backend, panelRows: panelRows
    ).draft()
    draft.plain = (plain.codes, plain.grid)
    return draft
  }

  /// - Returns: codes, and exactly as many outliers as the settings say; the objective is that of both as
  ///   stored.
  public func finish(
    _ draft: LinearDraft, name: String, weights: LinearRows, problem: LayerProblem,
    backend: any ComputeBackend, panelRows: Int
  ) throws -> LayerSolution {
    let (codes, grid, outliers) =
      switch settings.method {
      case .standard: try descend(draft, weights, problem: problem, backend: backend, panelRows: panelRows)
      case .paper(let rounds):
        try alternate(
          rounds: rounds, weights, problem: problem, format: draft.grid.format, backend: backend,
          panelRows: panelRows)
      }
    let linear = QuantizedLinear(
      name: name, codes: codes, grid: backend.download(grid),
      outliers: package(outliers, outFeatures: weights.outFeatures, backend: backend))
    let (objective, scale) = try objectives(of: linear, weights, problem, backend, panelRows)
    guard objective.isFinite && scale.isFinite else { throw SolverError.nonFiniteObjective(linear: name) }
    return LayerSolution(linear: linear, objective: objective, scale: scale)
  }

  private func descend(
    _ draft: LinearDraft, _ weights: LinearRows, problem: LayerProblem, backend: any ComputeBackend,
    panelRows: Int
  ) throws -> (codes: [UInt8], grid: Grid, outliers: SparseRows) {
    guard let outliers = draft.outliers, let plain = draft.plain else {
      preconditionFailure("a draft of this solver has outliers, and what to compare with")
    }
    for rows in weights.panels(of: panelRows) {
      let panel = OutlierPanel(
        target: try problem.target(of: weights, rows), outliers: outliers.rows(rows),
        grid: draft.grid.rows(rows), problem: problem, settings: base.settings, backend: backend)
      backend.uploadCodes(draft.codes, firstRow: rows.lowerBound, to: panel.codes)
      panel.descend()
      let plainCodes = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.uploadCodes(plain.codes, firstRow: rows.lowerBound, to: plainCodes)
      panel.takeBetterRows(of: base, from: plainCodes, grid: plain.grid.rows(rows))
      backend.downloadCodes(panel.codes, to: &draft.codes, firstRow: rows.lowerBound)
    }
    return (draft.codes, draft.grid, outliers)
  }

  private func alternate(
    rounds: Int, _ weights: LinearRows, problem: LayerProblem, format: GridFormat,
    backend: any ComputeBackend, panelRows: Int
  ) throws -> (codes: [UInt8], grid: Grid, outliers: SparseRows) {
    var alternation = try ProjectedAlternation(
      weights: weights, problem: problem, format: format, settings: settings, backend: backend,
      panelRows: panelRows)
    for _ in 0..<rounds {
      try alternation.descend()
      try alternation.stepOutliers()
    }
    try alternation.settle()
    return (alternation.codes, alternation.grid, alternation.outliers)
  }

  private func package(
    _ outliers: SparseRows, outFeatures: Int, backend: any ComputeBackend
  ) -> Outliers {
    let values = backend.download(outliers.values).elements
    if settings.isStructured {
      return .structured(values: values, columns: Array(outliers.columns[outliers.entries(ofRow: 0)]))
    }
    let offsets = [0] + (0..<outFeatures).map { Int64(outliers.entries(ofRow: $0).upperBound) }
    return .unstructured(values: values, columns: outliers.columns, rowOffsets: offsets)
  }

  /// f of what the target differs by from what the linear stores, and f(0).
  private func objectives(
    of linear: QuantizedLinear, _ weights: LinearRows, _ problem: LayerProblem,
    _ backend: any ComputeBackend, _ panelRows: Int
  ) throws -> (objective: Double, scale: Double) {
    var (objective, scale) = (0.0, 0.0)
    for rows in weights.panels(of: panelRows) {
      let target = try problem.target(of: weights, rows)
      scale += problem.objective(of: target)
      let stored = backend.makeMatrix(rows: rows.count, columns: weights.inFeatures)
      backend.withHostMatrix(stored, for: .writing) { linear.dequantize(rows: rows, into: $0) }
      backend.subtract(stored, from: target)
      objective += problem.objective(of: target)
    }
    return (objective, scale)
  }
}
