import CCrypto
import SystemIO

/// SHA-256 of bytes that come in parts.
@safe public struct SHA256Digest: ~Copyable {
  private let context: OpaquePointer

  public init() {
    guard let created = unsafe EVP_MD_CTX_new(), unsafe EVP_DigestInit_ex(created, EVP_sha256(), nil) == 1
    else { preconditionFailure("libcrypto has no SHA-256, or the process no memory") }
    unsafe context = created
  }

  deinit { unsafe EVP_MD_CTX_free(context) }

  public mutating func update(_ bytes: RawSpan) {
    let code = unsafe bytes.withUnsafeBytes { unsafe EVP_DigestUpdate(context, $0.baseAddress, $0.count) }
    precondition(code == 1, "libcrypto refuses to digest")
  }

  public mutating func update(_ text: String) {
    let bytes = Array(text.utf8)
    unsafe update(bytes.span.bytes)
  }

  /// The digest in hexadecimal, 64 characters.
  public consuming func finish() -> String {
    var digest = [UInt8](repeating: 0, count: 32)
    let code = unsafe digest.withUnsafeMutableBufferPointer {
      unsafe EVP_DigestFinal_ex(context, $0.baseAddress, nil)
    }
    precondition(code == 1, "libcrypto refuses to digest")
    return digest.map { byte in
      let text = String(byte, radix: 16)
      return byte < 16 ? "0" + text : text
    }.joined()
  }
}

extension SHA256Digest {
  private static let chunkByteCount = 1 << 22

  /// The digest of a file's bytes. They are read and not mapped: a file that shrinks meanwhile is an error here
  /// and no signal.
  /// - Parameters:
  ///   - isCancelled: asked between the parts of a large file
  ///   - advanced: called after every part
  /// - Throws: ``FileError``, or `CancellationError`
  public static func of(
    file path: String, symlinks: SymlinkPolicy, isCancelled: () -> Bool = { false }, advanced: () -> Void = {}
  ) throws -> String {
    let file = try InputFile(path: path, symlinks: symlinks)
    var digest = SHA256Digest()
    var buffer = [UInt8](repeating: 0, count: chunkByteCount)
    while true {
      if isCancelled() { throw CancellationError() }
      let count = try file.read(into: &buffer)
      if count == 0 { return digest.finish() }
      unsafe digest.update(buffer.span.bytes.extracting(0..<count))
      advanced()
    }
  }
}
