/// What an activation cache has done so far. Sizes in bytes, durations in seconds of wall time.
public struct CacheStatistics: Sendable, Hashable {
  /// Bytes of all values written, in the element type, before compression.
  public var rawBytesWritten = 0
  /// Bytes of all values written, as stored.
  public var compressedBytesWritten = 0
  /// Bytes of the values that are in the cache now, before compression.
  public var currentRawBytes = 0
  /// Bytes of the values that are in the cache now, as stored.
  public var currentCompressedBytes = 0
  /// The largest size that the file has had; LMDB files never shrink.
  public var peakFileBytes = 0
  /// Values that were read, and those of them that were being decoded ahead by then.
  public var reads = 0
  public var prefetchedReads = 0
  /// Converting, splitting, and compressing, summed over calls of `write`.
  public var secondsCompressing = 0.0
  /// Handing values to LMDB and the file system.
  public var secondsCommitting = 0.0
  /// Verifying and decompressing, summed over reads and prefetches.
  public var secondsDecompressing = 0.0

  public init() {}
}

extension Duration {
  var seconds: Double {
    let (seconds, attoseconds) = components
    return Double(seconds) + Double(attoseconds) * 1e-18
  }
}
