import Tensors

/// A matrix on its way into the cache: its planes, compressed where that pays, before they are stored.
///
/// Keeps its memory from one matrix to the next; one caller at a time.
@safe final class ValueEncoder: @unchecked Sendable {
  private let elementType: DType
  private let workers: ChunkWorkers
  /// Chunk c begins at c · `chunkStride`; its segments follow one another.
  private var staging = unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
  private var value: StoredValue

  init(elementType: DType, workers: ChunkWorkers) {
    self.elementType = elementType
    self.workers = workers
    value = StoredValue(elementType: elementType, rows: 0, columns: 0, segments: [])
  }

  deinit { unsafe staging.deallocate() }

  private var planeCount: Int { elementType.byteWidth }
  /// No segment is larger than its plane: one that does not shrink is stored as it is.
  private var chunkStride: Int { planeCount * StoredValue.chunkElements }

  /// Bytes that the value takes when it is stored.
  var byteCount: Int { value.segments.reduce(value.payloadOffset) { $0 + $1.byteCount } }
  var rawBytes: Int { value.rawBytes }

  /// Rounds `matrix` to the element type, in place, splits and compresses it.
  /// - Throws: ``CacheError/notFinite(_:row:column:value:)``,
  ///   ``CacheError/overflow(_:row:column:value:elementType:)`` for the first such element.
  func encode(_ matrix: Matrix, key: HiddenStatesKey) throws(CacheError) {
    let chunks = StoredValue.chunkCount(elements: matrix.count)
    reserve(chunks * chunkStride)
    let segments = UnsafeMutableBufferPointer<Segment>.allocate(capacity: chunks * planeCount)
    unsafe segments.initialize(repeating: Segment())
    defer { unsafe segments.deallocate() }

    try workers.forEachChunk(chunks) { (worker, chunk) throws(CacheError) in
      let range = StoredValue.chunk(chunk, elements: matrix.count)
      try unsafe roundIntoPlanes(
        matrix, range, elementType: elementType, planes: worker.firstPlane, stride: StoredValue.chunkElements,
        key: key)
      var offset = chunk * chunkStride
      for plane in 0..<planeCount {
        let target = unsafe UnsafeMutableRawBufferPointer(rebasing: staging[offset...])
        let segment = try unsafe store(
          UnsafeRawBufferPointer(worker.plane(plane, count: range.count)),
          isHighest: plane == planeCount - 1, with: worker, at: target)
        unsafe segments[chunk * planeCount + plane] = segment
        offset += segment.byteCount
      }
    }
    value = unsafe StoredValue(
      elementType: elementType, rows: matrix.rows, columns: matrix.columns, segments: Array(segments))
  }

  /// Writes the whole value, `byteCount` bytes.
  @unsafe func copy(to target: UnsafeMutableRawBufferPointer) {
    let head = value.head
    unsafe target.copyBytes(from: head)
    var offset = head.count
    for (chunk, start) in stride(from: 0, to: value.segments.count, by: planeCount).enumerated() {
      let count = value.segments[start..<start + planeCount].reduce(0) { $0 + $1.byteCount }
      let source = unsafe staging[chunk * chunkStride..<chunk * chunkStride + count]
      unsafe UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + count])
        .copyMemory(from: UnsafeRawBufferPointer(rebasing: source))
      offset += count
    }
  }

  private func reserve(_ byteCount: Int) {
    guard unsafe staging.count < byteCount else { return }
    unsafe staging.deallocate()
    unsafe staging = .allocate(byteCount: byteCount, alignment: 64)
  }

  /// Writes one plane to the start of `target`, compressed if that saves at least one part in 32.
  ///
  /// - Parameter isHighest: Sign and exponent, which are always worth a try. Of the other planes, which
  ///   tend to be noise, a short stretch from the middle tells for a small part of the price.
  private func store(
    _ plane: UnsafeRawBufferPointer, isHighest: Bool, with worker: ChunkWorker,
    at target: UnsafeMutableRawBufferPointer
  ) throws(CacheError) -> Segment {
    /// The bytes of `source` as one frame, or nil where that does not pay.
    func compressed(_ source: UnsafeRawBufferPointer) throws(CacheError) -> UnsafeRawBufferPointer? {
      let count = try unsafe worker.codec.compress(source, into: worker.frame)
      guard count <= source.count - source.count / 32 else { return nil }
      return unsafe UnsafeRawBufferPointer(rebasing: worker.frame[..<count])
    }

    let sampleCount = min(plane.count, 8192)
    let start = (plane.count - sampleCount) / 2
    let sample = unsafe UnsafeRawBufferPointer(rebasing: plane[start..<start + sampleCount])
    var stored = unsafe plane
    var encoding = Segment.Encoding.raw
    var isWorthATry = isHighest
    if !isWorthATry { isWorthATry = try unsafe compressed(sample) != nil }
    if isWorthATry, let frame = try unsafe compressed(plane) {
      unsafe stored = frame
      encoding = .zstd
    }
    unsafe target.copyMemory(from: stored)
    return unsafe Segment(byteCount: stored.count, encoding: encoding, hash: blockHash(stored))
  }
}

/// Rounds the elements `chunk` of a matrix to the element type, in place, and writes plane p from `planes[p · stride]` on.
/// - Throws: ``CacheError/notFinite(_:row:column:value:)``,
///   ``CacheError/overflow(_:row:column:value:elementType:)`` for the first such element.
@unsafe func roundIntoPlanes(
  _ matrix: Matrix, _ chunk: Range<Int>, elementType: DType, planes: UnsafeMutablePointer<UInt8>, stride: Int,
  key: HiddenStatesKey
) throws(CacheError) {
  let values = unsafe matrix.pointer + chunk.lowerBound
  let isSound = unsafe splitIntoPlanes(
    values, count: chunk.count, elementType: elementType, planes: planes, stride: stride)
  if isSound { return unsafe round(values, count: chunk.count, to: elementType) }
  let index = unsafe firstUnrepresentable(values, count: chunk.count, elementType: elementType) ?? 0
  let (row, column) = (chunk.lowerBound + index).quotientAndRemainder(dividingBy: matrix.columns)
  let value = matrix[row, column]
  throw value.isFinite
    ? .overflow(key, row: row, column: column, value: value, elementType: elementType)
    : .notFinite(key, row: row, column: column, value: "\(value)")
}
