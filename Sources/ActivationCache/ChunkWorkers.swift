import Dispatch
import Synchronization

/// What one thread needs to encode or decode chunks: a codec and room for one chunk.
@safe final class ChunkWorker: @unchecked Sendable {
  let codec: ZstdCodec
  /// The byte planes of one chunk, `StoredValue.chunkElements` bytes each.
  @unsafe let firstPlane: UnsafeMutablePointer<UInt8>
  /// One compressed plane.
  @unsafe let frame: UnsafeMutableRawBufferPointer

  init(level: Int, planeCount: Int) throws(CacheError) {
    codec = try ZstdCodec(level: level)
    unsafe firstPlane = .allocate(capacity: planeCount * StoredValue.chunkElements)
    unsafe frame = .allocate(byteCount: ZstdCodec.bound(StoredValue.chunkElements), alignment: 64)
  }

  deinit {
    unsafe firstPlane.deallocate()
    unsafe frame.deallocate()
  }

  /// Room for plane `index` of a chunk with `count` elements.
  @unsafe func plane(_ index: Int, count: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: firstPlane + index * StoredValue.chunkElements, count: count)
  }
}

/// Spreads the chunks of a value over threads.
///
/// Workers are kept between calls, as many as were ever busy at once, because a zstd context costs more
/// to set up than a chunk to compress. What a chunk becomes depends on the chunk alone, so neither the
/// number of threads nor their order shows in a result.
final class ChunkWorkers: Sendable {
  let threads: Int
  private let level: Int
  private let planeCount: Int
  private let idle = Mutex<[ChunkWorker]>([])

  init(threads: Int, level: Int, planeCount: Int) {
    precondition(threads >= 1, "work takes a thread")
    self.threads = threads
    self.level = level
    self.planeCount = planeCount
  }

  /// Runs `body` for chunks `0 ..< count`, several at a time, and returns when all are done.
  /// - Throws: The error of the first chunk, in the order of chunks, that failed.
  func forEachChunk(
    _ count: Int, _ body: (ChunkWorker, Int) throws(CacheError) -> Void
  ) throws(CacheError) {
    let next = Atomic(0)
    let failure = Mutex<(chunk: Int, error: CacheError)?>(nil)

    @Sendable func work(_ body: (ChunkWorker, Int) throws(CacheError) -> Void) {
      var chunk = next.wrappingAdd(1, ordering: .relaxed).oldValue
      guard chunk < count else { return }
      do throws(CacheError) {
        let worker = try take()
        defer { idle.withLock { $0.append(worker) } }
        while chunk < count {
          try body(worker, chunk)
          chunk = next.wrappingAdd(1, ordering: .relaxed).oldValue
        }
      } catch {
        failure.withLock { if $0 == nil || chunk < $0?.chunk ?? 0 { $0 = (chunk, error) } }
      }
    }

    if min(threads, count) <= 1 {
      work(body)
    } else {
      withoutActuallyEscaping(body) { body in
        // Chunks share no memory that is written, and `body` outlives the threads that run it.
        nonisolated(unsafe) let body = body
        DispatchQueue.concurrentPerform(iterations: min(threads, count)) { _ in unsafe work(body) }
      }
    }
    if let failure = failure.withLock({ $0 }) { throw failure.error }
  }

  private func take() throws(CacheError) -> ChunkWorker {
    if let worker = idle.withLock({ $0.popLast() }) { return worker }
    return try ChunkWorker(level: level, planeCount: planeCount)
  }
}
