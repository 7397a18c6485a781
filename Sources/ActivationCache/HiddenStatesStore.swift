import Synchronization
import Tensors

/// The hidden states of the calibration set between two stages, out of core.
///
/// One LMDB value per batch of sequences, in the element type of the checkpoint, in byte planes that are
/// compressed with zstd where that pays, each with a checksum. What a stage leaves replaces what it read
/// in the same transaction, so the file stays near the size of one layer's hidden states.
///
/// Where there is memory for them, values can be held in it instead (``hold(_:key:replacing:)``), which takes a fifth of the
/// time; they are rounded alike and read alike, and go with the process.
///
/// The file is disposable: it is never synced, and it goes when the store goes unless it is to be resumed. All
/// calls block; they may come from any thread.
public final class HiddenStatesStore: Sendable {
  /// Hardly any search for repetitions, which pay in the first layers only, and the entropy coder for all
  /// the rest: several times as fast as level 1 and, deeper in a model, smaller.
  public static let defaultCompressionLevel = -256

  /// Two streams' states of one batch, two slots each.
  private static let prefetchLimit = 4

  public let path: String
  public let elementType: DType
  let environment: LMDBEnvironment
  private let workers: ChunkWorkers
  private let reader: ValueReader
  private let prefetcher: Prefetcher
  private let encoders = Mutex<[ValueEncoder]>([])
  private let records = Mutex(Records())
  private let held = Mutex(HeldValues())
  /// Whether the file outlives the store, for a later run to go on with.
  private let isKept: Bool

  private struct Records {
    var statistics = CacheStatistics()
    var sizes: [HiddenStatesKey: (raw: Int, compressed: Int)] = [:]
  }

  /// Creates an empty cache.
  ///
  /// - Parameters:
  ///   - path: The file. Missing directories on the way are created; a cache that an earlier run left
  ///     there is deleted, any other file is refused.
  ///   - elementType: `.float32`, `.float16` or `.bfloat16`; hidden states are rounded to it.
  ///   - compressionLevel: A level of zstd. Below zero: hardly any search for matches, but always the
  ///     entropy coder.
  ///   - threads: How many threads one call may use. It does not change a single stored bit.
  ///   - isKept: Whether the file stays when the store goes, and one that an earlier run left there is taken
  ///     over. Only a file that was written since the machine started is worth that: none is ever synced.
  public convenience init(
    path: String, elementType: DType, compressionLevel: Int = defaultCompressionLevel, threads: Int,
    isKept: Bool = false
  ) throws(CacheError) {
    try self.init(
      path: path, elementType: elementType, compressionLevel: compressionLevel, threads: threads,
      initialMapBytes: 1 << 30, isKept: isKept)
  }

  init(
    path: String, elementType: DType, compressionLevel: Int, threads: Int, initialMapBytes: Int,
    isKept: Bool = false
  ) throws(CacheError) {
    precondition(elementType.isSupportedFloat, "hidden states are float32, float16 or bfloat16")
    try FileOperations.createDirectories(above: path)
    let environment = try Self.environment(path: path, initialMapBytes: initialMapBytes, isKept: isKept)
    let workers = ChunkWorkers(
      threads: threads, level: compressionLevel, planeCount: elementType.byteWidth)
    let reader = ValueReader(environment: environment, workers: workers)
    self.path = path
    self.elementType = elementType
    self.isKept = isKept
    self.environment = environment
    self.workers = workers
    self.reader = reader
    prefetcher = Prefetcher(limit: Self.prefetchLimit) { (key, room) throws(CacheError) in
      try reader.load(key, into: room)
    }
  }

  deinit { if !isKept { try? environment.destroy() } }

  private static func environment(
    path: String, initialMapBytes: Int, isKept: Bool
  ) throws(CacheError) -> LMDBEnvironment {
    guard FileOperations.exists(path) else {
      return try LMDBEnvironment(path: path, initialMapBytes: initialMapBytes)
    }
    if isKept {
      // A file that lost its end, or is none of LMDB's, is as good as none: all of it can be computed again.
      if let left = try? LMDBEnvironment(path: path, initialMapBytes: initialMapBytes),
        FileOperations.size(of: path) >= left.fileBytes
      {
        return left
      }
      try FileOperations.remove(path)
      try FileOperations.remove(path + "-lock")
    } else {
      // Opening proves that it is an LMDB file and not something that a person would miss.
      try LMDBEnvironment(path: path).destroy()
    }
    return try LMDBEnvironment(path: path, initialMapBytes: initialMapBytes)
  }

  /// Whether there is a value for `key`.
  public func contains(_ key: HiddenStatesKey) throws(CacheError) -> Bool {
    if heldValue(key) != nil { return true }
    return try unsafe environment.withValue(of: key) { unsafe $0 != nil }
  }

  private func heldValue(_ key: HiddenStatesKey) -> HeldValue? { held.withLock { $0[key] } }

  /// Deletes every value.
  public func removeAll() throws(CacheError) {
    try environment.write { (transaction) throws(CacheError) in try transaction.deleteAll() }
    records.withLock { $0.sizes = [:] }
    releaseHeld()
  }

  /// Gives the memory of values that are held in it back. Those in the file stay, for a process that goes on with them.
  public func releaseHeld() {
    prefetcher.forget { _ in true }
    held.withLock { $0.removeAll() }
  }

  /// Deletes a stream's values of some stages.
  public func removeAll(ofStream stream: Int, stages: Range<Int>) throws(CacheError) {
    let bounds = [stages.lowerBound, stages.upperBound].map {
      HiddenStatesKey(stream: stream, stage: $0, batch: 0)
    }
    try environment.write { (transaction) throws(CacheError) in
      try transaction.deleteAll(from: bounds[0], to: bounds[1])
    }
    forget { $0.stream == stream && stages.contains($0.stage) }
  }

  /// Deletes a value, if there is one.
  public func remove(_ key: HiddenStatesKey) throws(CacheError) {
    try environment.write { (transaction) throws(CacheError) in try transaction.delete(key) }
    forget { $0 == key }
  }

  /// Keeps nothing more of values that have been deleted.
  private func forget(where isGone: (HiddenStatesKey) -> Bool) {
    prefetcher.forget(where: isGone)
    records.withLock { records in records.sizes = records.sizes.filter { !isGone($0.key) } }
    held.withLock { $0.removeAll(where: isGone) }
  }

  /// Holds `matrix` in memory under `key` and lets go of the values of `previous` there.
  ///
  /// - Parameters: as for ``write(_:key:replacing:)``; what the file has of `previous` stays in it.
  /// - Throws: ``CacheError/notFinite(_:row:column:value:)`` and
  ///   ``CacheError/overflow(_:row:column:value:elementType:)`` for the first such activation, after which nothing has
  ///   changed.
  public func hold(
    _ matrix: Matrix, key: HiddenStatesKey, replacing previous: [HiddenStatesKey] = []
  ) throws(CacheError) {
    let memory = held.withLock { $0.makeMemory(elements: HeldValue.elements(of: matrix, as: elementType)) }
    do throws(CacheError) {
      let value = try HeldValue(
        rounding: matrix, to: elementType, key: key, workers: workers, in: memory)
      held.withLock { $0.set(value, at: key, replacing: previous) }
    } catch {
      held.withLock { $0.keep(memory) }
      throw error
    }
  }

  /// Stores `matrix` under `key` and deletes the values of `previous`, both or neither.
  ///
  /// - Parameters:
  ///   - matrix: `[tokens, features]`, fp32; rounded to ``elementType`` in place, so that what is computed from
  ///     it afterwards is what comes of reading it.
  ///   - previous: What the stage has read and nobody needs any more; keys without a value are ignored.
  /// - Throws: ``CacheError/notFinite(_:row:column:value:)`` and
  ///   ``CacheError/overflow(_:row:column:value:elementType:)`` for the first such activation;
  ///   ``CacheError/noSpace(path:freeBytes:)``. After any error the cache is as it was before, and the
  ///   call can be repeated.
  public func write(
    _ matrix: Matrix, key: HiddenStatesKey, replacing previous: [HiddenStatesKey] = []
  ) throws(CacheError) {
    let encoder =
      encoders.withLock { $0.popLast() } ?? ValueEncoder(elementType: elementType, workers: workers)
    defer { encoders.withLock { $0.append(encoder) } }

    let start = ContinuousClock.now
    try encoder.encode(matrix, key: key)
    let encoded = ContinuousClock.now
    try environment.write { (transaction) throws(CacheError) in
      for key in previous { try transaction.delete(key) }
      try unsafe transaction.put(key, count: encoder.byteCount) { unsafe encoder.copy(to: $0) }
    }
    let committed = ContinuousClock.now

    prefetcher.forget(where: Set(previous + [key]).contains)
    let fileBytes = environment.fileBytes
    records.withLock { records in
      for key in previous { records.sizes[key] = nil }
      records.sizes[key] = (encoder.rawBytes, encoder.byteCount)
      records.statistics.rawBytesWritten += encoder.rawBytes
      records.statistics.compressedBytesWritten += encoder.byteCount
      records.statistics.peakFileBytes = max(records.statistics.peakFileBytes, fileBytes)
      records.statistics.secondsCompressing += (encoded - start).seconds
      records.statistics.secondsCommitting += (committed - encoded).seconds
    }
  }

  /// Fills `matrix`, `[tokens, features]`, with the value of `key`.
  ///
  /// - Throws: ``CacheError/missing(_:)``; ``CacheError/corrupt(_:byte:reason:)``, after which the matrix
  ///   holds rubbish; ``CacheError/shapeMismatch(_:storedRows:storedColumns:wantedRows:wantedColumns:)``.
  public func read(_ key: HiddenStatesKey, into matrix: Matrix) throws(CacheError) {
    func checkShape(_ rows: Int, _ columns: Int) throws(CacheError) {
      guard rows == matrix.rows && columns == matrix.columns else {
        throw .shapeMismatch(
          key, storedRows: rows, storedColumns: columns, wantedRows: matrix.rows,
          wantedColumns: matrix.columns)
      }
    }

    if let value = heldValue(key) {
      try checkShape(value.rows, value.columns)
      return try value.copy(into: matrix, workers: workers)
    }
    let ready = prefetcher.take(key)
    records.withLock { records in
      records.statistics.reads += 1
      records.statistics.prefetchedReads += ready == nil ? 0 : 1
    }
    if let prefetched = try ready?.get() {
      try checkShape(prefetched.rows, prefetched.columns)
      try workers.forEachChunk(StoredValue.chunkCount(elements: matrix.count)) {
        (_, chunk) throws(CacheError) in
        let range = StoredValue.chunk(chunk, elements: matrix.count)
        unsafe (matrix.pointer + range.lowerBound).update(
          from: prefetched.pointer + range.lowerBound, count: range.count)
      }
      prefetcher.recycle(prefetched)
    } else {
      try reader.load(key) { (rows, columns) throws(CacheError) in
        try checkShape(rows, columns)
        return matrix
      }
    }
  }

  /// Begins to decode the value of `key` in the background, for the next `read` of that key.
  ///
  /// A hint: at most four values are kept, a further one drops the oldest, and an error shows when the
  /// value is read.
  public func prefetch(_ key: HiddenStatesKey) {
    if heldValue(key) == nil { prefetcher.request(key) }
  }

  public var statistics: CacheStatistics {
    var statistics = records.withLock { records in
      var statistics = records.statistics
      for size in records.sizes.values {
        statistics.currentRawBytes += size.raw
        statistics.currentCompressedBytes += size.compressed
      }
      return statistics
    }
    statistics.secondsDecompressing = reader.timeDecompressing.seconds
    return statistics
  }

  /// Deletes the file now. The store stays usable; its disk space comes back when the store goes.
  public func destroy() throws(CacheError) { try environment.destroy() }
}
