import Synchronization
import Tensors

/// The reading side of a store, which the prefetcher shares with it.
final class ValueReader: Sendable {
  private let environment: LMDBEnvironment
  private let workers: ChunkWorkers
  private let time = Mutex(Duration.zero)

  init(environment: LMDBEnvironment, workers: ChunkWorkers) {
    self.environment = environment
    self.workers = workers
  }

  /// Verifying and decompressing so far, summed over calls.
  var timeDecompressing: Duration { time.withLock { $0 } }

  /// Decodes the value of `key`, straight from the map, into the matrix that `destination` returns for
  /// its shape (rows, columns).
  /// - Throws: ``CacheError/missing(_:)``, ``CacheError/corrupt(_:byte:reason:)``, and what `destination`
  ///   throws.
  @discardableResult
  func load(
    _ key: HiddenStatesKey, into destination: (Int, Int) throws(CacheError) -> Matrix
  ) throws(CacheError) -> Matrix {
    let start = ContinuousClock.now
    defer {
      let elapsed = ContinuousClock.now - start
      time.withLock { $0 += elapsed }
    }
    return try unsafe environment.withValue(of: key) { (bytes) throws(CacheError) in
      guard let bytes = unsafe bytes else { throw .missing(key) }
      return try unsafe ValueDecoder.decode(bytes, key: key, workers: workers, into: destination)
    }
  }
}
