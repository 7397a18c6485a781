import Tensors

/// A matrix that stays in memory, in the byte planes of the element type as the file would have them: neither compressed
/// nor with a checksum, which memory needs as little as any other matrix does.
@safe final class HeldValue: Sendable {
  let rows: Int
  let columns: Int
  private let elementType: DType
  /// Chunk after chunk, its planes one after the other.
  private let memory: Matrix

  /// Rounds `matrix` to the element type, in place, and copies it.
  /// - Throws: ``CacheError/notFinite(_:row:column:value:)``,
  ///   ``CacheError/overflow(_:row:column:value:elementType:)`` for the first such element.
  init(
    rounding matrix: Matrix, to elementType: DType, key: HiddenStatesKey, workers: ChunkWorkers
  ) throws(CacheError) {
    rows = matrix.rows
    columns = matrix.columns
    self.elementType = elementType
    let bytes = matrix.count * elementType.byteWidth
    memory = Matrix(uninitializedRows: 1, columns: (bytes + 3) / MemoryLayout<Float>.stride)
    try workers.forEachChunk(StoredValue.chunkCount(elements: matrix.count)) {
      (_, chunk) throws(CacheError) in
      let range = StoredValue.chunk(chunk, elements: matrix.count)
      try unsafe roundIntoPlanes(
        matrix, range, elementType: elementType, planes: planes(of: range), stride: range.count, key: key)
    }
  }

  /// Fills `matrix`, which has the same shape.
  func copy(into matrix: Matrix, workers: ChunkWorkers) throws(CacheError) {
    try workers.forEachChunk(StoredValue.chunkCount(elements: matrix.count)) {
      (_, chunk) throws(CacheError) in
      let range = StoredValue.chunk(chunk, elements: matrix.count)
      let first = unsafe planes(of: range)
      let all = unsafe (0..<elementType.byteWidth).map { unsafe UnsafePointer(first + $0 * range.count) }
      unsafe mergePlanes(
        all, count: range.count, elementType: elementType, into: matrix.pointer + range.lowerBound)
    }
  }

  @unsafe private func planes(of chunk: Range<Int>) -> UnsafeMutablePointer<UInt8> {
    unsafe UnsafeMutableRawPointer(memory.pointer).assumingMemoryBound(to: UInt8.self)
      + chunk.lowerBound * elementType.byteWidth
  }
}
