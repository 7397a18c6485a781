import Export
import Quantization

/// The linears that a run has finished, those of earlier runs among them: written to its files, put into the journal, and
/// told of.
final class FinishedLinears {
  /// In the order in which they were finished.
  private(set) var rows: [Report.Linear]
  let names: LinearNames
  /// What writing takes, and with a device reading weights for the solver.
  var times = PhaseTimes()

  private let run: QuantizationRun
  private let export: CheckpointExport?
  private let progress: (ProgressEvent) -> Void
  private let writes: WritesBeside
  /// What is told when the next one is written.
  private var untold: ProgressEvent?
  private let knownCount: Int
  private var start = ContinuousClock.now

  /// - Parameter export: the first rank's
  init(of run: QuantizationRun, export: CheckpointExport?, progress: @escaping (ProgressEvent) -> Void) {
    (self.run, self.export, self.progress) = (run, export, progress)
    // What a device keeps goes with the process; what is in the cache must not be further than the journal.
    writes = WritesBeside(isBeside: run.backend.deviceMemory != nil && run.plan.states != .cache)
    rows = run.resumedLinears
    knownCount = rows.count
    names = LinearNames(rows.map(\.name))
  }

  /// Writes what the journal has of earlier runs.
  func begin() throws {
    guard let journal = run.journal, !journal.rows.isEmpty else { return }
    if let earlier = journal.head?.kernels, earlier != run.kernels {
      progress(
        .warning(
          "going on by \(run.kernels); the \(journal.rows.count) linears before were computed by \(earlier): as "
            + "good a result, but not the bytes that one processor alone would have come to"))
    }
    progress(.step("going on after \(journal.rows.count) of \(run.linearCount) linears"))
    for row in journal.rows {
      guard let linear = try journal.linear(row.name) else { continue }
      try times.measure(.export) { try export?.write(linear) }
      progress(.advanced)
    }
  }

  /// New work begins, by which the rest of the time is told.
  func workBegins() { start = .now }

  /// Writes what a linear has come to, and tells of it.
  /// - Parameter mayBeBeside: whether it may be written while the next one is solved, where that gains anything
  func keep(_ linear: QuantizedLinear, _ row: Report.Linear, layer: Int, mayBeBeside: Bool = false) throws {
    let isBeside = mayBeBeside && writes.isBeside
    try times.measure(.export) {
      try writes.add { [export, journal = run.journal, row] in
        try export?.write(linear)
        try journal?.append(linear, row: row)
      }
      if !isBeside { try writes.finish() }
    }
    // Of what is written beside the work it is told when the next one is: whoever is told takes it for safe.
    tell()
    rows.append(row)
    names.insert(row.name)
    for warning in row.warnings ?? [] { progress(.warning(warning)) }
    let event = ProgressEvent.linear(
      LinearProgress(
        name: linear.name, layer: layer, layerCount: run.description.layerCount,
        relativeError: row.relativeError, linearsDone: rows.count,
        linearCount: run.linearCount, linearsResumed: knownCount,
        elapsed: ContinuousClock.now - start))
    if isBeside { untold = event } else { progress(event) }
  }

  /// Writes some rows of what is no linear of a layer.
  func write(_ rows: QuantizedLinear, firstRow: Int) throws {
    try times.measure(.export) { try export?.write(rows, firstRow: firstRow) }
  }

  /// Returns when all are written, and told of.
  func finish() throws {
    try times.measure(.export) { try writes.finish() }
    tell()
  }

  private func tell() {
    if let event = untold.take() { progress(event) }
  }
}
