import CZstd

/// A compression and a decompression context of zstd, to be used again and again by one thread at a time.
///
/// A byte plane of hidden states has few repeated strings but a skewed distribution of bytes: what pays is
/// zstd's entropy coder, while the search for matches costs time and, past the first layers, even size.
/// Yet zstd's negative levels, which search less, leave the entropy coder out. So a negative level here
/// means: search as little as zstd's level does, take only matches of 7 bytes or more, and always
/// entropy-code the rest.
/// Positive levels are zstd's own.
///
/// Frames carry no checksum of zstd's: the cache hashes what it stores, so that planes which are not
/// compressed are covered as well.
@safe struct ZstdCodec: ~Copyable {
  private let compression: OpaquePointer
  private let decompression: OpaquePointer

  init(level: Int) throws(CacheError) {
    guard let compression = unsafe ZSTD_createCCtx() else {
      throw .zstd(operation: "createCCtx", message: "out of memory")
    }
    guard let decompression = unsafe ZSTD_createDCtx() else {
      unsafe ZSTD_freeCCtx(compression)
      throw .zstd(operation: "createDCtx", message: "out of memory")
    }
    do throws(CacheError) {
      for (parameter, value) in Self.parameters(level: level) {
        _ = try Self.check(
          unsafe ZSTD_CCtx_setParameter(compression, parameter, value), "setParameter")
      }
    } catch {
      unsafe ZSTD_freeCCtx(compression)
      unsafe ZSTD_freeDCtx(decompression)
      throw error
    }
    unsafe self.compression = compression
    unsafe self.decompression = decompression
  }

  deinit {
    unsafe ZSTD_freeCCtx(compression)
    unsafe ZSTD_freeDCtx(decompression)
  }

  private static func parameters(level: Int) -> [(ZSTD_cParameter, Int32)] {
    let level = (ZSTD_c_compressionLevel, Int32(clamping: level))
    guard level.1 < 0 else { return [level] }
    // The last one is ZSTD_c_literalCompressionMode, always; zstd.h gives its name only to static builds.
    return [level, (ZSTD_c_minMatch, 7), (ZSTD_c_experimentalParam5, 1)]
  }

  /// The size of the largest frame that `count` bytes can make.
  static func bound(_ count: Int) -> Int { ZSTD_compressBound(count) }

  /// Compresses `source` into one frame and returns its size.
  @unsafe func compress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) throws(CacheError) -> Int {
    try Self.check(
      unsafe ZSTD_compress2(
        compression, target.baseAddress, target.count, source.baseAddress, source.count),
      "compress2")
  }

  /// Decompresses one frame, which must fill `target` exactly.
  @unsafe func decompress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) throws(CacheError) {
    let count = try Self.check(
      unsafe ZSTD_decompressDCtx(
        decompression, target.baseAddress, target.count, source.baseAddress, source.count),
      "decompressDCtx")
    guard count == target.count else {
      throw .zstd(
        operation: "decompressDCtx", message: "\(count) bytes instead of \(target.count)")
    }
  }

  private static func check(_ result: Int, _ operation: String) throws(CacheError) -> Int {
    guard ZSTD_isError(result) == 0 else {
      throw .zstd(operation: operation, message: unsafe String(cString: ZSTD_getErrorName(result)))
    }
    return result
  }
}
