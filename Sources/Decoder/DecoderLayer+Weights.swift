import Checkpoint
import Compute
import Glibc
import Tensors

// The weights that a layer runs with: read, replaced by what was quantized, and given back, stage by stage.
extension DecoderLayer {
  /// Reads the weights of a stage's linears, those that are not resident.
  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  public func load(_ stage: Stage) throws {
    for linear in stage.linears + stage.companions where resident[linear.name] == nil {
      let weights = makeResident(linear)
      let name = weightName(linear)
      let isConverted = try source.convertPanels(of: name, shape: shape(linear), by: backend) { rows, panel in
        weights.store(panel, firstRow: rows.lowerBound, areOwn: true, by: backend)
      }
      if !isConverted {
        try source.forEachPanel(of: name, shape: shape(linear)) { rows, panel in
          weights.store(panel, firstRow: rows.lowerBound, by: backend)
        }
      }
      resident[linear.name] = weights
    }
  }

  /// Takes over the weights of linears that are resident in the same layer, made before.
  public func adoptWeights(of other: DecoderLayer) {
    precondition(other.index == index, "it is another layer")
    resident.merge(other.resident) { $1 }
  }

  /// Gives the memory of the weights of a stage's linears back, and forgets what they were replaced by.
  public func unload(_ stage: Stage) { unload(stage.linears) }

  /// The same of some linears alone.
  public func unload(_ linears: [LayerLinear]) {
    for linear in linears { resident[linear.name] = nil }
  }

  /// Gives the memory back of what no batch needs any more once a stage is behind it.
  public func leave(_ stage: Stage) {
    if stage.isRunAgain { return }
    unload(stage)
    for linear in stage.companions { resident[linear.name] = nil }
  }

  public func isLoaded(_ linear: LayerLinear) -> Bool { resident[linear.name] != nil }

  /// Has the operating system forget what it keeps of the weights of a stage's linears, which will not be read again soon.
  public func forget(_ stage: Stage) {
    for linear in stage.linears { source.forget(weightName(linear)) }
  }

  /// The same of all stages.
  public func forget() {
    for stage in stages { forget(stage) }
  }

  /// A linear's weights as the checkpoint has them, `[outFeatures, inFeatures]`, read anew, in the backend's memory.
  /// - Throws: errors of the source for a missing tensor, a wrong shape, or a value that is not finite.
  public func storedWeights(of linear: LayerLinear) throws -> Matrix {
    try source.matrix(weightName(linear), shape: shape(linear), for: backend)
  }

  /// Some rows of them.
  public func storedWeights(of linear: LayerLinear, rows: Range<Int>) throws -> Matrix {
    let (columns, panels) = try source.panels(of: weightName(linear), shape: shape(linear))
    let matrix = backend.makeMatrix(rows: rows.count, columns: columns)
    try source.read(
      weightName(linear), rows: rows, panelRows: panels.first?.count ?? 1, into: matrix, of: backend)
    return matrix
  }

  /// Has the layer run with other weights of a linear, until its stage is unloaded.
  /// - Parameters:
  ///   - areOwnRows: whether the rows are in the backend's memory, and not in the host's
  ///   - panels: gives the weights by calling what it is given with rows `[count, inFeatures]`, in order, until there are
  ///     `outFeatures`
  public func replaceWeights(
    of linear: LayerLinear, byOwnRows areOwnRows: Bool = false,
    _ panels: ((_ rows: Matrix) -> Void) throws -> Void
  ) rethrows {
    // What it had is not needed meanwhile.
    resident[linear.name] = nil
    let weights = makeResident(linear)
    var firstRow = 0
    try panels { rows in
      weights.store(rows, firstRow: firstRow, areOwn: areOwnRows, by: backend)
      firstRow += rows.rows
    }
    precondition(firstRow == linear.outFeatures, "the weights have other rows")
    resident[linear.name] = weights
  }

  /// outputs ← outputs + inputs · Wᵀ for the resident weights W of a linear that is not fused.
  public func addProduct(of inputs: Matrix, with linear: LayerLinear, to outputs: Matrix) {
    let weights = weights(linear.name)
    precondition(weights.parts.count == 1, "the linear is fused")
    backend.linear(inputs, [LinearProduct(weights.parts[0], into: outputs, adding: true)])
  }

  private func weightName(_ linear: LayerLinear) -> String { "\(moduleName(of: linear)).weight" }

  private func shape(_ linear: LayerLinear) -> [Int] { [linear.outFeatures, linear.inFeatures] }

  private func makeResident(_ linear: LayerLinear) -> ResidentLinear {
    ResidentLinear(
      rows: description.rows(of: linear), inFeatures: linear.inFeatures, bias: biases[linear.name],
      operands: operands, backend: backend)
  }
}

extension WeightSource {
  /// The whole of a tensor, `[out, in]`, in the memory of a backend.
  /// - Throws: As ``matrix(_:shape:)`` does.
  func matrix(_ tensor: String, shape: [Int], for backend: any DecoderOperations) throws -> Matrix {
    let (columns, panels) = try panels(of: tensor, shape: shape)
    let matrix = backend.makeMatrix(rows: panels.last?.upperBound ?? 0, columns: columns)
    if try convertPanels(of: tensor, shape: shape, by: backend, { backend.copy($1, into: matrix.rows($0)) }) {
      return matrix
    }
    try read(tensor, rows: 0..<matrix.rows, panelRows: panels.first?.count ?? 1, into: matrix, of: backend)
    return matrix
  }

  /// Fills a matrix in the memory of a backend with some rows of a tensor, a panel at a time.
  fileprivate func read(
    _ tensor: String, rows: Range<Int>, panelRows: Int, into matrix: Matrix, of backend: any DecoderOperations
  ) throws {
    for part in rows.parts(of: panelRows) {
      let place = part.lowerBound - rows.lowerBound..<part.upperBound - rows.lowerBound
      try backend.withHostMatrix(matrix.rows(place), for: .writing) { try read(tensor, rows: part, into: $0) }
    }
  }

  /// Elements of a panel that a device converts.
  private static var panelElements: Int { 32 << 20 }

  /// Has a device convert a tensor from the type that it is stored in, which is half of what the host would send.
  /// - Parameter body: called with panels in the device's memory and their rows, in order
  /// - Returns: whether it was done; if not, there is no device, the type is another, or a value is not finite, which
  ///   ``read(_:rows:into:)`` then tells of
  fileprivate func convertPanels(
    of tensor: String, shape expected: [Int], by backend: any DecoderOperations,
    _ body: (_ rows: Range<Int>, _ panel: Matrix) -> Void
  ) throws -> Bool {
    if backend.deviceMemory == nil { return false }
    let (columns, small) = try panels(of: tensor, shape: expected)
    let rowCount = small.last?.upperBound ?? 0
    let panelRows = max(1, Self.panelElements / max(columns, 1))
    let memory = backend.makeMatrix(rows: min(panelRows, rowCount), columns: columns)
    for first in stride(from: 0, to: rowCount, by: panelRows) {
      let rows = first..<min(first + panelRows, rowCount)
      let panel = memory.prefix(rows.count)
      let isLent = try lend(tensor, rows: rows) { type, bytes in backend.convert(bytes, type, into: panel) }
      guard isLent, backend.isFinite(panel) else { return false }
      body(rows, panel)
    }
    return true
  }

  /// The norm of an attention's queries, or keys.
  func headNorm(
    _ norm: NormDescription, of attention: AttentionDescription, heads: Int, prefix: String
  ) throws -> NormalizationParameters {
    let tensors = attention.normTensors(norm, heads: heads, prefix: prefix)
    let values = try tensors.map { try matrix($0.name, shape: $0.shape).elements }
    let weights = norm.hasBias ? values.dropLast() : values[...]
    return NormalizationParameters(
      kind: norm.kind, weight: weights.flatMap { $0 }.map { norm.addsOne ? $0 + 1 : $0 },
      bias: norm.hasBias ? values.last : nil, epsilon: norm.epsilon)
  }

  /// The xIELU of a layer, whose parameters are stored as what softplus makes them of.
  func xielu(_ module: String) throws -> XIELU {
    let stored = try XIELU.tensors(module).map { Double(try vector($0.name, count: 1)[0]) }
    func softplus(_ x: Double) -> Double { x > 30 ? x : log1p(exp(x)) }
    // A constant of the family's, which checkpoints have as well.
    let linear = shape(of: "\(module).beta") == [] ? try matrix("\(module).beta", shape: [])[0, 0] : 0.5
    return XIELU(
      positive: Float(softplus(stored[0])), negative: linear + Float(softplus(stored[1])), linear: linear)
  }

  func norm(_ norm: NormDescription, prefix: String = "", size: Int) throws -> NormalizationParameters {
    NormalizationParameters(
      kind: norm.kind,
      weight: try vector("\(prefix)\(norm.name).weight", count: size).map { norm.addsOne ? $0 + 1 : $0 },
      bias: norm.hasBias ? try vector("\(prefix)\(norm.name).bias", count: size) : nil,
      epsilon: norm.epsilon,
      origin: .init(tensor: "\(prefix)\(norm.name).weight", offset: norm.addsOne ? 1 : 0))
  }
}

extension XIELU {
  /// What a checkpoint has of one.
  static func tensors(_ module: String) -> [(name: String, shape: [Int])] {
    ["alpha_p", "alpha_n"].map { ("\(module).\($0)", [1]) }
  }
}
