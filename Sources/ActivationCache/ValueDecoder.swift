import Tensors

/// Verifies and unpacks one stored value.
enum ValueDecoder {
  /// Decodes `bytes` into the matrix that `destination` returns for its shape (rows, columns).
  ///
  /// Everything is copied before it is verified, and read once: a page of the map that leaves memory in between comes back
  /// from a disk that may have failed meanwhile.
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
        func corrupt(_ reason: String) -> CacheError {
          .corrupt(key, byte: offsets[index], reason: reason)
        }
        let room = unsafe worker.plane(plane, count: range.count)
        let whole = unsafe segment.encoding == .zstd ? worker.frame : room
        guard segment.byteCount <= whole.count else { throw corrupt("an impossible segment") }
        let copy = unsafe UnsafeMutableRawBufferPointer(rebasing: whole[..<segment.byteCount])
        unsafe copy.copyBytes(from: bytes[offsets[index]..<offsets[index] + segment.byteCount])
        guard unsafe blockHash(UnsafeRawBufferPointer(copy)) == segment.hash else {
          throw corrupt("the bytes do not match their checksum")
        }
        if segment.encoding == .zstd {
          do throws(CacheError) {
            try unsafe worker.codec.decompress(UnsafeRawBufferPointer(copy), into: room)
          } catch {
            throw corrupt("\(error)")
          }
        }
        guard let start = unsafe room.assumingMemoryBound(to: UInt8.self).baseAddress else { return }
        unsafe planes.append(UnsafePointer(start))
      }
      unsafe mergePlanes(
        planes, count: range.count, elementType: value.elementType,
        into: matrix.pointer + range.lowerBound)
    }
    return matrix
  }
}
