import Calibration
import ComputeOpenBLAS
import Foundation
import Pipeline
import SystemIO
import TestSupport

@testable import Daemon

/// A claimed checkpoint and what a worker is told about it.
final class WorkerBench {
  let directory: TemporaryDirectory
  var order: JobOrder
  var isNetworked = false
  var backend = OpenBLASBackend(threads: 2)
  var restart: () -> Void = {}
  private(set) var events: [WorkerEvent] = []

  init(id: String = "job", fixture: String = "llama") throws {
    directory = try TemporaryDirectory(isInMemory: true)
    let model = directory.file("working")
    try FileSystem.createDirectories(model)
    for name in ["config.json", "model.safetensors"] {
      try FileSystem.copyFile(TestFiles.model(fixture) + "/\(name)", to: "\(model)/\(name)")
    }
    try FileSystem.createDirectories(directory.file("partial/\(id)"))
    var settings = QuantizationSettings()
    (settings.samples, settings.sequenceLength, settings.passes) = (4, 16, 3)
    order = JobOrder(
      id: id, model: model, directory: directory.file("partial/\(id)"),
      cacheDirectory: directory.file("cache"),
      calibration: CalibrationSources([
        .init(path: try directory.write(randomTokens: 8, of: 16, vocabulary: 64, seed: 1))
      ]), settings: settings,
      threads: 2, memoryBytes: 1 << 32, python: "python3")
  }

  var files: JobFiles { JobFiles(order.directory) }

  /// Has a worker do the job.
  /// - Parameter told: called with every event, at the moment that it stands for
  @discardableResult
  func work(
    attempt: JobAttempt? = nil, _ told: @escaping (WorkerEvent) throws -> Void = { _ in }
  ) throws -> [WorkerEvent] {
    events = []
    var failure: (any Error)?
    defer { _ = failure }
    let isNetworked = isNetworked
    try JobWorker(
      order, backend: backend, attempt: attempt, isNetworked: { _ in isNetworked }, restart: restart
    ) { event in
      self.events.append(event)
      do { try told(event) } catch { failure = error }
    }.run()
    if let failure { throw failure }
    return events
  }

  /// Leaves the job as a worker does that ends when so many linears are done.
  func workPartly(linears: Int, attempt: JobAttempt? = nil) throws {
    let places = [order.directory, order.cacheDirectory]
    func kept(_ place: String) -> String { directory.file("kept-" + FileSystem.name(of: place)) }
    var count = 0
    try work(attempt: attempt) { event in
      guard case .linear = event else { return }
      count += 1
      guard count == linears else { return }
      for place in places { try FileManager.default.copyItem(atPath: place, toPath: kept(place)) }
    }
    for place in places {
      try FileSystem.removeTree(place)
      try FileSystem.move(kept(place), to: place)
    }
  }

  /// As if the job had been dropped now.
  func beginAnew() throws {
    try FileSystem.removeTree(order.directory)
    try FileSystem.createDirectories(order.directory)
  }

  /// What `retry` does to the job's files.
  func prepareRetry() throws {
    for path in [files.order, files.tokens, files.identity, files.result] {
      try FileSystem.removeTree(path)
    }
  }

  var resumedLinears: Int? {
    events.compactMap { if case .resumed(let linears) = $0 { linears.count } else { nil } }.first
  }

  var identity: String? {
    events.compactMap { if case .identity(let digest) = $0 { digest } else { nil } }.first
  }

  /// The bytes of the result's weights.
  func weights() throws -> [UInt8] {
    try FileSystem.contents(of: files.result + "/model.safetensors", limit: 1 << 24)
  }

  /// Changes one byte of a file, and nothing else of it.
  func flip(_ path: String, at offset: Int) throws {
    var bytes = try FileSystem.contents(of: path, limit: 1 << 24)
    bytes[offset] ^= 1
    try AtomicFile.write(bytes, to: path)
  }
}
