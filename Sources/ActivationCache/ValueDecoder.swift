import Tensors

/// Verifies and unpacks one stored value.
enum ValueDecoder {
  /// Decodes `bytes` into the matrix that `destination` returns for its shape (rows, columns).
  /// - Throws: ``CacheError/corrupt(_:byte:reason:)``, and what `destination` throws.
  @unsafe static func decode(
    _ bytes: UnsafeRawBufferPointer, key: HiddenStatesKey, workers: ChunkWorkers,
    into destination: (Int, Int) throws(CacheError) -> Matrix
  ) throws(CacheError) -> Matrix {
    let value = try unsafe StoredValue(bytes, key: key)
    let matrix = try destination(value.rows, value.columns)
    precondition(matrix.rows == value.rows && matrix.columns == value.columns, "the shapes differ")
    let planeCount = value.elementType.byteWidth
    var offsets: [Int] = []
    offsets.reserveCapacity(value.segments.count)
    var end = value.payloadOffset
    for segment in value.segments {
      offsets.append(end)
      end += segment.byteCount
    }

    try workers.forEachChunk(value.segments.count / planeCount) { (worker, chunk) throws(CacheError) in
      let range = StoredValue.chunk(chunk, elements: value.elements)
      var planes: [UnsafePointer<UInt8>] = unsafe []
      for plane in 0..<planeCount {
        let index = chunk * planeCount + plane
        let segment = value.segments[index]
        let stored = unsafe UnsafeRawBufferPointer(
          rebasing: bytes[offsets[index]..<offsets[index] + segment.byteCount])
        guard unsafe blockHash(stored) == segment.hash else {
          throw .corrupt(key, byte: offsets[index], reason: "the bytes do not match their checksum")
        }
        var unpacked = unsafe stored
        if segment.encoding == .zstd {
          let room = unsafe worker.plane(plane, count: range.count)
          do throws(CacheError) {
            try unsafe worker.codec.decompress(stored, into: room)
          } catch {
            throw .corrupt(key, byte: offsets[index], reason: "\(error)")
          }
          unsafe unpacked = UnsafeRawBufferPointer(room)
        }
        guard let start = unsafe unpacked.assumingMemoryBound(to: UInt8.self).baseAddress else { return }
        unsafe planes.append(start)
      }
      unsafe mergePlanes(
        planes, count: range.count, elementType: value.elementType,
        into: matrix.pointer + range.lowerBound)
    }
    return matrix
  }
}
